"""Is a map faithful: does the model need what the map calls relevant?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import captum.metrics
import torch
from torch import Tensor

from captum_transformer_lrp.benchmarks.maps import Map
from captum_transformer_lrp.benchmarks.removal import area, draws, removal_order, removed_first

TWENTIETHS: Final = range(0, 101, 5)
"""The shares of the pixels at the points of a curve of insertion or deletion, in per cent."""


def deletion(found: Map, removal: str = "blur", cells: int | None = None) -> dict[str, float]:
    """The area under the class's probability as pixels go, the most relevant first: low is good.

    RISE (Petsiuk et al., BMVC 2018); ``cells`` as in :func:`removed_first`.
    """
    gone = removed_first(found.relevance, "positive", TWENTIETHS, cells)
    return {"": area(found.probability(found.without(removal, gone)).tolist(), 0.05)}


def insertion(found: Map, removal: str = "blur", cells: int | None = None) -> dict[str, float]:
    """The area under the class's probability as pixels come, the most relevant first: high is good.

    RISE (Petsiuk et al., BMVC 2018); ``cells`` as in :func:`removed_first`.
    """
    come = removed_first(found.relevance, "positive", TWENTIETHS, cells)
    return {"": area(found.probability(found.without(removal, ~come)).tolist(), 0.05)}


def road(found: Map, cells: int | None = None) -> dict[str, float]:
    """The area under the class's probability as pixels become the noisy mean of their neighbours.

    ``"MoRF"`` with the most relevant first, low is good, ``"LeRF"`` with the least relevant first,
    and their difference.  ROAD (Rong et al., ICML 2022) over 10 … 90 % of the pixels, at most 0.8;
    ``cells`` as in :func:`removed_first`.  ``perturbation --removal road`` has the accuracy.
    """
    areas = {}
    for name, test in (("MoRF", "positive"), ("LeRF", "negative")):
        gone = removed_first(found.relevance, test, cells=cells)
        areas[name] = area(found.probability(found.without("road", gone)).tolist())
    return {**areas, "LeRF − MoRF": areas["LeRF"] - areas["MoRF"]}


def infidelity(found: Map, removal: str = "mean", samples: int = 50) -> dict[str, float]:
    """Does relevance in a square predict how much the logit falls without it?  Low is good.

    The mean squared error of the best multiple of the sum (Yeh et al., *On the (In)fidelity and
    Sensitivity of Explanations*, NeurIPS 2019), by :func:`captum.metrics.infidelity`.  Each of the
    random squares is at most half as high as the photo.
    """

    def logit(kept: Tensor) -> Tensor:
        return found.logits(found.without(removal, kept == 0)).double()[:, found.target].cpu()

    def taken(kept: Tensor) -> tuple[Tensor, Tensor]:
        gone = squares(len(kept), kept.shape[-2:], draws(found.pixels)).to(kept)
        return gone, kept - gone

    relevance = found.relevance[None, None]
    kept = torch.ones_like(relevance)
    score = captum.metrics.infidelity(
        logit, taken, kept, relevance, n_perturb_samples=samples, normalize=True
    )
    return {"": float(score)}


def squares(count: int, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Masks (N, 1, H, W) of random squares, of any side up to half the shorter one."""
    side = torch.randint(1, max(min(size) // 2, 1) + 1, (count, 1), generator=generator)
    within = []
    for length in size:
        first = (torch.rand(count, 1, generator=generator) * (length - side + 1)).long()
        places = torch.arange(length)
        within.append((places >= first) & (places < first + side))
    return (within[0][:, :, None] & within[1][:, None])[:, None]


def salience_faithfulness(
    found: Map, groups: int = 10, removal: str | None = None
) -> dict[str, float]:
    """SaCo: do groups of pixels change the probability in the order of their relevance?  At most 1.

    Wu, Kang, Tang, Hong, Yan, *On the Faithfulness of Vision Transformer Explanations*, CVPR 2024,
    algorithm 1.  Pixels of a group take the photo's mean colour, or what a removal puts there.
    """
    groups = min(groups, found.relevance.numel())
    parts = removal_order(found.relevance, "positive").tensor_split(groups)
    masks = torch.zeros(groups, found.relevance.numel(), dtype=torch.bool)
    for mask, part in zip(masks, parts, strict=True):
        mask[part] = True
    gone = masks.view(groups, 1, *found.relevance.shape).to(found.pixels.device)
    if removal is None:
        batch = torch.where(gone, found.pixels.mean((2, 3), keepdim=True), found.pixels)
    else:
        batch = found.without(removal, gone)
    drops = found.probability(found.pixels) - found.probability(batch)
    flat = found.relevance.flatten()
    return {"": saco([float(flat[part].sum()) for part in parts], drops.tolist())}


def saco(saliences: Sequence[float], drops: Sequence[float]) -> float:
    """The share of the differences in salience that the drops of the probability bear out.

    >>> saco([3, 2, 0], [0.5, 0.1, 0.3])  # 1 + 3 − 2 of 1 + 3 + 2
    0.333...
    >>> saco([1, 1], [0.5, 0.1])
    0.0
    """
    values, falls = (torch.tensor(one, dtype=torch.float64) for one in (saliences, drops))
    weights = (values[:, None] - values).triu()
    signed = torch.where(falls[:, None] >= falls, weights, -weights).sum()
    return float(signed / (weights.abs().sum() or 1.0))
