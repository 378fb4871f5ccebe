"""The learning-rate schedule of both models."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warm_up_then_cosine(optimizer: Optimizer, steps: int) -> LambdaLR:
    """Rise over the first twentieth of the steps, then fall to 0 in half a cosine wave."""
    warm_up = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return LambdaLR(optimizer, factor)
