"""Does a map stay as it is where the photo hardly changes?

All metrics look at the same copies of the photo, with normal noise that is the same for all
methods.  Noise that changes the prediction is halved until it does not.  Where metrics have the
same options, the maps of the copies are made once for all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from captum_transformer_lrp.benchmarks.maps import Map

SMALLEST = 1e-6
"""In the place of a zero that is divided by."""


class Copies(NamedTuple):
    """Copies of a photo, (N, 3, H, W), their logits (N, C), and those of the photo itself."""

    pixels: Tensor
    logits: Tensor
    own: Tensor


def sensitivity(found: Map, samples: int = 5, noise: float = 0.05) -> dict[str, float]:
    """The largest change of the map, relative to its norm: low is good.

    Yeh et al., *On the (In)fidelity and Sensitivity of Explanations*, NeurIPS 2019; equal to
    :func:`captum.metrics.sensitivity_max` on the same copies.
    """
    own, maps = found.relevance, copied_maps(found, samples, noise)
    return {"": float((maps - own).flatten(1).norm(dim=1).max() / (own.norm() or 1.0))}


def local_lipschitz(found: Map, samples: int = 5, noise: float = 0.05) -> dict[str, float]:
    """The largest change of the map per change of the photo: low is good.

    Alvarez-Melis & Jaakkola, *On the Robustness of Interpretability Methods*, 2018.  Distances are
    Euclidean; a map is divided by its largest absolute value, as in Quantus.
    """
    own, *others = map(_scaled, (found.relevance, *copied_maps(found, samples, noise)))
    changes = (torch.stack(others) - own).flatten(1).norm(dim=1)
    moved = (copies(found, samples, noise).pixels - found.pixels).double().flatten(1).norm(dim=1)
    return {"": float((changes / (moved.cpu() + 1e-10)).max())}


def relative_stability(found: Map, samples: int = 5, noise: float = 0.05) -> dict[str, float]:
    """The largest relative change of the map per that of ``"input"`` or ``"output"``: low is good.

    Agarwal et al., *Rethinking Stability for Attribution-based Explanations*, 2022, eq. 2 and 5.
    The relative change is by pixels, so that those with hardly any relevance count most.  The
    output are the logits, whose change is absolute.
    """
    near = copies(found, samples, noise)
    changes = relative_change(found.relevance, copied_maps(found, samples, noise))
    by = {
        "input": relative_change(found.pixels[0], near.pixels),
        "output": (near.logits - near.own).double().norm(dim=1),
    }
    return {
        name: float((changes / one.where(one != 0, SMALLEST).cpu()).max())
        for name, one in by.items()
    }


def relative_change(first: Tensor, others: Tensor) -> Tensor:
    """The norm (N,) of the change of each value, relative to what it was; others are (N, …).

    >>> relative_change(torch.tensor([1.0, 2.0]), torch.tensor([[4.0, 10.0]]))  # 3 and 4
    tensor([5.], dtype=torch.float64)
    """
    before = first.double()
    change = (before - others.double()) / before.where(before != 0, SMALLEST)
    return change.flatten(1).norm(dim=1)


def copies(found: Map, samples: int, noise: float) -> Copies:
    """Copies of the photo with noise, each halved until the prediction is the photo's."""

    def make() -> Copies:
        added = noise * found.noise(samples)
        own = found.logits(found.pixels.expand_as(added))
        while True:
            logits = found.logits(found.pixels + added)
            other = logits.argmax(-1) != own.argmax(-1)
            if not other.any():
                return Copies(found.pixels + added, logits, own)
            added = torch.where(other[:, None, None, None], added / 2, added)

    return found.once("copies", (samples, noise), make)


def copied_maps(found: Map, samples: int, noise: float) -> Tensor:
    """The method's maps of the copies, (N, H, W)."""
    key = (found.method.label, samples, noise)
    pixels = copies(found, samples, noise).pixels
    return found.once("maps of copies", key, lambda: found.of_copies(pixels))


def _scaled(relevance: Tensor) -> Tensor:
    return relevance / (relevance.abs().max() or 1.0)
