"""A map of a photo or of a text as metrics see it, and how simple it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from captum_transformer_lrp.benchmarks.methods import Method
from captum_transformer_lrp.benchmarks.removal import Without, draws

Made = TypeVar("Made")


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
        mapped: from a class and a model to the map of a text.
        made: what :meth:`once` has made, of this photo by whichever method.
    """

    relevance: Tensor
    pixels: Tensor
    target: int
    model: nn.Module
    logits: Callable[[Tensor], Tensor]
    without: Without
    method: Method
    mapped: Callable[[int, nn.Module], Tensor] | None = None
    made: dict[str, tuple[Any, Any]] = field(default_factory=dict, kw_only=True, repr=False)

    def probability(self, batch: Tensor) -> Tensor:
        """Of the explained class, float64 (N,), on the CPU."""
        return self.logits(batch).double().softmax(-1)[:, self.target].cpu()

    def again(self, target: int | None = None, model: nn.Module | None = None) -> Tensor:
        """The map of another class, or of another model."""
        chosen, model = self.target if target is None else target, model or self.model
        if self.mapped is not None:
            return self.mapped(chosen, model)
        return self.method.maps(model, self.pixels, [chosen])[0]

    def of_copies(self, pixels: Tensor, model: nn.Module | None = None) -> Tensor:
        """The maps (N, H, W) of other pixels (N, 3, H, W), or of another model's."""
        return self.method.of_batch(model or self.model, pixels, self.target)

    def once(self, name: str, key: Any, make: Callable[[], Made]) -> Made:
        """What is made at the first call with a key, and kept until one with another key."""
        if name not in self.made or self.made[name][0] != key:
            self.made[name] = (key, make())
        made: Made = self.made[name][1]
        return made

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


def sparseness(found: Map) -> dict[str, float]:
    """The Gini index of the absolute values: 0 for a constant map, near 1 for a single pixel.

    Chalasani et al., *Concise Explanations of Neural Networks using Adversarial Training*, ICML
    2020, with the small number that Quantus adds to each value.
    """
    values = found.relevance.abs().flatten().sort().values + 1e-7
    count = len(values)
    weights = 2 * torch.arange(1, count + 1, dtype=values.dtype) - count - 1
    return {"": float((weights * values).sum() / (count * values.sum()))}


def entropy(found: Map) -> dict[str, float]:
    """Of the absolute values' shares, in nats: log(H·W) for a constant map, 0 for a single pixel.

    Bhatt, Weller, Moura, *Evaluating and Aggregating Feature-based Model Explanations*, IJCAI 2020
    ("complexity").
    """
    return {"": entropy_of(found.relevance)}


def entropy_of(relevance: Tensor) -> float:
    """The entropy of a map; one of zeros counts as constant.

    >>> round(entropy_of(torch.tensor([[1.0, -1.0], [0.0, 0.0]])), 4)
    0.6931
    """
    values = relevance.abs().flatten()
    values = values if values.any() else torch.ones_like(values)
    return float(torch.special.entr(values / values.sum()).sum())
