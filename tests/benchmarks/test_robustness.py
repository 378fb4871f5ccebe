"""Robustness of maps whose change is known by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from captum.attr import Attribution, InputXGradient
from captum.metrics import sensitivity_max
from torch import Tensor

from captum_transformer_lrp.benchmarks.maps import Map
from captum_transformer_lrp.benchmarks.methods import Method
from captum_transformer_lrp.benchmarks.robustness import (
    copies,
    local_lipschitz,
    relative_stability,
    sensitivity,
)

from .test_metrics import RAMP, Weighted, map_of


class Constant(Attribution):
    """A map that never changes."""

    def __init__(self, model: Any) -> None:
        pass

    def attribute(self, inputs: Tensor, target: Any = None, **_: Any) -> Tensor:
        return torch.ones_like(inputs)


def of_input_x_gradient(weights: Tensor) -> Map:
    """Of a photo of ones: the map is the weights."""
    return map_of(weights.double(), Weighted(weights.float()))


def test_a_constant_map_is_perfectly_robust() -> None:
    found = map_of(torch.full((4, 5), 3.0).double(), method=Constant)
    assert sensitivity(found) == {"": 0}
    assert local_lipschitz(found) == {"": 0}
    assert relative_stability(found) == {"input": 0, "output": 0}


def test_the_map_of_one_pixel_changes_as_the_pixel_does() -> None:
    """Of w·x at x = 1 the map is w·x: it changes by w·noise, relatively by noise."""
    weights = torch.zeros(4, 5)
    weights[1, 2] = 7.0
    found = of_input_x_gradient(weights)
    noise = 0.05 * found.noise(5)
    changes = noise[:, 0, 1, 2].abs()
    assert sensitivity(found)[""] == pytest.approx(float(changes.max()), rel=1e-5)
    assert sensitivity(found, noise=0.1)[""] == pytest.approx(2 * sensitivity(found)[""], rel=1e-5)
    # The map is divided by its largest value, 7 before and 7 (1 + noise) after: it does not change.
    assert local_lipschitz(found)[""] == pytest.approx(0, abs=1e-6)
    by_input = changes / noise.flatten(1).norm(dim=1)
    stability = relative_stability(found)
    assert stability["input"] == pytest.approx(float(by_input.max()), rel=1e-4)
    assert stability["output"] == pytest.approx(1 / 7, rel=1e-4)


def test_sensitivity_is_that_of_captum_on_the_same_copies() -> None:
    found = of_input_x_gradient(RAMP / 50)
    pixels = copies(found, 6, 0.1).pixels
    expected = sensitivity_max(
        lambda given: (InputXGradient(found.model).attribute(given[0], target=1).sum(1),),
        (found.pixels,),
        perturb_func=lambda *_: (pixels,),
        n_perturb_samples=6,
    )
    assert sensitivity(found, samples=6, noise=0.1)[""] == pytest.approx(float(expected), rel=1e-5)


def test_two_pixels_have_the_lipschitz_constant_of_their_quotient() -> None:
    """The map is (a, b·(1 + noise)) over its largest value, which the first pixel keeps."""
    weights = torch.zeros(4, 5)
    weights[0, 0], weights[3, 3] = 8.0, 2.0
    found = of_input_x_gradient(weights)
    noise = 0.01 * found.noise(6)
    first, second = 1 + noise[:, 0, 0, 0], 1 + noise[:, 0, 3, 3]
    change = (2 / 8) * (second / first - 1)
    expected = (change.abs() / noise.flatten(1).norm(dim=1)).max()
    ours = local_lipschitz(found, samples=6, noise=0.01)[""]
    assert ours == pytest.approx(float(expected), rel=1e-3)


def test_noise_never_changes_the_prediction_and_is_the_same_for_all_methods() -> None:
    """The logits are 0 and .01: most noise would change which is larger."""
    model = Weighted(torch.full((4, 5), 0.0005))
    one, other = map_of(RAMP, model), map_of(-RAMP, model, method=Constant)
    noise = 10 * one.noise(200)
    assert (model(one.pixels + noise).argmax(-1) == 0).sum() > 50
    pixels = copies(one, 200, 10).pixels
    assert (model(pixels).argmax(-1) == 1).all()
    kept = model(one.pixels + noise).argmax(-1) == 1
    assert torch.equal(pixels[kept], (one.pixels + noise)[kept])
    assert torch.equal(pixels, copies(other, 200, 10).pixels)


def test_the_copies_of_a_photo_and_their_maps_are_made_once() -> None:
    """Of all methods the forward passes, of all metrics the maps; by each metric's own options."""
    batches: list[int] = []

    class Counted(InputXGradient):
        def attribute(self, inputs: Tensor, *args: Any, **more: Any) -> Any:
            batches.append(len(inputs))
            return super().attribute(inputs, *args, **more)

    passes: list[int] = []
    first = map_of(RAMP, method=Counted)
    one = first.logits
    first = replace(first, logits=lambda batch: passes.append(len(batch)) or one(batch))
    second = replace(first, method=Method("another", Counted))
    for found in (first, second):
        for metric in (sensitivity, local_lipschitz, relative_stability):
            metric(found, samples=20)
    assert batches == [8, 8, 4] * 2  # in parts that fit into memory
    assert passes == [20, 20]  # as they are, and with noise
    sensitivity(second, samples=3)
    sensitivity(second, samples=3, noise=0.1)
    assert batches[6:] == [3, 3]
