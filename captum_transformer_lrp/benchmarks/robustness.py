"""Does a map stay as it is where the photo hardly changes?

Noise that changes the prediction is halved until it does not, and is the same for all methods.
"""

from __future__ import annotations

import captum.metrics
import torch
from torch import Tensor

from captum_transformer_lrp.benchmarks.maps import Map

SMALLEST = 1e-6
"""In the place of a zero that is divided by."""


def sensitivity(found: Map, samples: int = 10, radius: float = 0.02) -> dict[str, float]:
    """The largest change of the map, relative to its norm, by noise in ±``radius``: low is good.

    Yeh et al., *On the (In)fidelity and Sensitivity of Explanations*, NeurIPS 2019, by
    :func:`captum.metrics.sensitivity_max`.
    """

    def explained(given: Tensor | tuple[Tensor]) -> tuple[Tensor]:
        batch = given if isinstance(given, Tensor) else given[0]
        with torch.enable_grad():
            return (torch.stack([found.again(pixels=one[None]) for one in batch]),)

    def perturbed(batch: Tensor, radius: float) -> Tensor:
        noise = 2 * torch.special.ndtr(found.noise(len(batch))) - 1  # uniform
        return nearby(found, radius * noise)

    return {
        "": float(
            captum.metrics.sensitivity_max(
                explained,
                found.pixels,
                perturb_func=perturbed,
                perturb_radius=radius,
                n_perturb_samples=samples,
            )
        )
    }


def local_lipschitz(found: Map, samples: int = 10, noise: float = 0.1) -> dict[str, float]:
    """The largest change of the map per change of the photo by normal noise: low is good.

    Alvarez-Melis & Jaakkola, *On the Robustness of Interpretability Methods*, 2018.  Distances are
    Euclidean; a map is divided by its largest absolute value, as in Quantus.
    """
    largest = 0.0
    for pixels in nearby(found, noise * found.noise(samples)):
        change = _scaled(found.relevance) - _scaled(found.again(pixels=pixels[None]))
        distance = float((found.pixels[0] - pixels).double().norm())
        largest = max(largest, float(change.norm()) / (distance + 1e-10))
    return {"": largest}


def relative_stability(found: Map, samples: int = 10, noise: float = 0.05) -> dict[str, float]:
    """The largest relative change of the map per that of ``"input"`` or ``"output"``: low is good.

    Agarwal et al., *Rethinking Stability for Attribution-based Explanations*, 2022, eq. 2 and 5.
    The relative change is by pixels, so that those with hardly any relevance count most.  The
    output are the logits, whose change is absolute.
    """
    logits, values = found.logits(found.pixels).double(), {"input": 0.0, "output": 0.0}
    for one in nearby(found, noise * found.noise(samples)):
        pixels = one[None]
        change = relative_change(found.relevance, found.again(pixels=pixels))
        output = float((logits - found.logits(pixels).double()).norm())
        by = {"input": relative_change(found.pixels, pixels), "output": output}
        for name, divisor in by.items():
            values[name] = max(values[name], change / (divisor or SMALLEST))
    return values


def relative_change(first: Tensor, second: Tensor) -> float:
    """The norm of the change of each value, relative to what it was.

    >>> relative_change(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 10.0]))  # 3 and 4
    5.0
    """
    before = first.double()
    return float(((before - second.double()) / before.where(before != 0, SMALLEST)).norm())


def nearby(found: Map, noise: Tensor) -> Tensor:
    """The photo with each noise (N, 3, H, W), halved until the prediction is the photo's."""
    own = found.logits(found.pixels.expand_as(noise)).argmax(-1)
    while (other := found.logits(found.pixels + noise).argmax(-1) != own).any():
        noise = torch.where(other[:, None, None, None], noise / 2, noise)
    return found.pixels + noise


def _scaled(relevance: Tensor) -> Tensor:
    return relevance / (relevance.abs().max() or 1.0)
