"""A map of a photo or of a text as metrics see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from captum_transformer_lrp.benchmarks.methods import Method
from captum_transformer_lrp.benchmarks.removal import Without, draws


@dataclass(frozen=True)
class Map:
    """A map of a photo, and what made it.

    Args:
        relevance: float64 (H, W), on the CPU; of a text (1, T), for the tokens that are read.
        pixels: normalised, (1, 3, H, W); of a text the ids of its pieces, (1, S).
        target: the explained class.
        model: the classifier.
        logits: those of a batch of pixels, (N, C).
        without: what takes pixels away.
        method: the method.
    """

    relevance: Tensor
    pixels: Tensor
    target: int
    model: nn.Module
    logits: Callable[[Tensor], Tensor]
    without: Without
    method: Method

    def probability(self, batch: Tensor) -> Tensor:
        """Of the explained class, float64 (N,), on the CPU."""
        return self.logits(batch).double().softmax(-1)[:, self.target].cpu()

    def again(
        self,
        target: int | None = None,
        model: nn.Module | None = None,
        pixels: Tensor | None = None,
    ) -> Tensor:
        """The map of another class, of another model, or of other pixels (1, 3, H, W)."""
        chosen = self.target if target is None else target
        seen = self.pixels if pixels is None else pixels
        return self.method.maps(model or self.model, seen, [chosen])[0]

    def noise(self, samples: int) -> Tensor:
        """Normal noise (samples, 3, H, W) on the photo's device, the same for all methods."""
        shape = (samples, *self.pixels.shape[1:])
        return torch.randn(shape, generator=draws(self.pixels)).to(self.pixels)


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's; 0 where a map is constant, for then there are no ranks.

    >>> rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 4.0, 9.0]))
    1.0
    >>> rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.ones(3))
    0.0
    """
    maps = [one.flatten().numpy() for one in (first, second)]
    if any(one.min() == one.max() for one in maps):
        return 0.0
    return float(spearmanr(*maps).statistic)
