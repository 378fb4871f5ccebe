"""Is a map simple: is its relevance on few pixels?"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_transformer_lrp.benchmarks.maps import Map


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
