"""Random weights that can be verified."""

from __future__ import annotations

import torch
from torch import nn


def draw_zero_weights(model: nn.Module) -> None:
    """Draw what starts at 0 or close to it: heads, biases and layer scales.

    A model of random weights has nothing to propagate there, and no check of it says anything.

    Example:
        >>> norm = nn.LayerNorm(2)
        >>> draw_zero_weights(norm)
        >>> bool(norm.bias.any())
        True
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1 or not bool((parameter.abs() > 1e-3).any()):
                parameter.add_(0.05 * torch.randn_like(parameter))
