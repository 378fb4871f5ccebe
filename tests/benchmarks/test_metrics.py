"""Metrics of single maps, on models and maps whose values are known by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import Attribution, InputXGradient
from torch import Tensor, nn
from typer.testing import CliRunner

from captum_transformer_lrp import examples
from captum_transformer_lrp.benchmarks import BenchmarkError, LabelledImage, map_metrics
from captum_transformer_lrp.benchmarks.faithfulness import (
    deletion,
    infidelity,
    insertion,
    saco,
    salience_faithfulness,
    squares,
)
from captum_transformer_lrp.benchmarks.maps import Map, entropy, sparseness
from captum_transformer_lrp.benchmarks.methods import Method, methods_by_name
from captum_transformer_lrp.benchmarks.metrics import METRICS
from captum_transformer_lrp.benchmarks.removal import draws
from captum_transformer_lrp.benchmarks.sanity import (
    class_sensitivity,
    parameter_randomisation,
    random_logit,
    randomised_from_the_top,
    smooth,
)
from captum_transformer_lrp.benchmarks.segmentation import relevance_mass, relevance_rank
from captum_transformer_lrp.cli import app
from captum_transformer_lrp.models import ImageModel, load_image_model


class Weighted(nn.Module):
    """Two logits: 0, and a weighted sum of the first channel."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, pixels: Tensor) -> Tensor:
        total = (pixels[:, 0] * self.weights).sum((1, 2))
        return torch.stack([torch.zeros_like(total), total], 1)


RAMP = torch.arange(20.0, dtype=torch.float64).view(4, 5)


def map_of(
    relevance: Tensor,
    model: nn.Module | None = None,
    *,
    method: Callable[[Any], Attribution] = InputXGradient,
    target: int = 1,
) -> Map:
    """A map of an image of ones, whose removed pixels are zero."""
    classifier = Weighted(torch.full((4, 5), 0.1)) if model is None else model
    return Map(
        relevance,
        torch.ones(1, 3, *relevance.shape),
        target,
        classifier,
        lambda batch: classifier(batch).detach(),
        lambda removal, gone: torch.ones(1, 3, *relevance.shape).masked_fill(gone, 0),
        Method("method", method),
    )


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_deletion_and_insertion_are_areas_under_the_probability() -> None:
    """Each of twenty pixels adds .1 to the logit: the curve is a sigmoid, whatever the order."""
    curve = [sigmoid(0.1 * left) for left in range(20, -1, -1)]
    expected = sum((a + b) / 2 / 20 for a, b in pairwise(curve))
    assert deletion(map_of(RAMP))[""] == pytest.approx(expected, rel=1e-6)
    assert insertion(map_of(RAMP))[""] == pytest.approx(expected, rel=1e-6)


def test_the_true_order_deletes_fastest_and_inserts_fastest() -> None:
    model = Weighted(RAMP.float() / 50)
    right, wrong = map_of(RAMP, model), map_of(-RAMP, model)
    chance = map_of(torch.rand(4, 5, generator=torch.Generator().manual_seed(0)).double(), model)
    assert deletion(right)[""] < deletion(chance)[""] < deletion(wrong)[""]
    assert insertion(right)[""] > insertion(chance)[""] > insertion(wrong)[""]


def test_saco_is_one_for_the_true_order_and_minus_one_for_the_opposite() -> None:
    # The mean of an image of ones is one: half of it is dark, so that a group can lose something.
    model = Weighted(RAMP.float() / 50)
    for relevance, expected in ((RAMP, 1.0), (-RAMP, -1.0), (torch.ones(4, 5).double(), 0.0)):
        found = map_of(relevance, model)
        pixels = found.pixels.clone()
        pixels[..., 0, 0] = -20.0
        seen = Map(**{**vars(found), "pixels": pixels})
        assert salience_faithfulness(seen, groups=10)[""] == pytest.approx(expected)


def test_saco_by_hand() -> None:
    """Of the pairs' weights 1, 4 and 3 the last contradicts its drops."""
    assert saco([5, 4, 1], [0.9, 0.2, 0.4]) == pytest.approx((1 + 4 - 3) / 8)
    assert saco([2, 2, 2], [0.1, 0.3, 0.2]) == 0


def test_infidelity_is_zero_for_the_exact_map_at_any_scale() -> None:
    """The logit loses the weights of what goes; a map that says otherwise errs by hand."""
    model = Weighted(RAMP.float() / 50)
    for scale in (1.0, -3.0, 0.02):
        assert infidelity(map_of(scale * RAMP, model))[""] == pytest.approx(0, abs=1e-10)
    drops = squares(50, (4, 5), draws(torch.ones(1, 3, 4, 5))).flatten(1).double()
    lost, said = drops @ RAMP.flatten() / 50, drops.sum(1)
    best = (lost @ said) / (said @ said)
    expected = float(((lost - best * said) ** 2).mean())
    assert expected > 0.01
    flat = map_of(torch.ones(4, 5).double(), model)
    assert infidelity(flat)[""] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (7, 12), (1, 3), (30, 9)])
def test_squares_are_squares_within_the_photo(size: tuple[int, int]) -> None:
    masks = squares(300, size, torch.Generator().manual_seed(0))[:, 0]
    sides = set()
    for mask in masks:
        (rows,), (columns,) = (mask.any(axis).nonzero(as_tuple=True) for axis in (1, 0))
        assert len(rows) == len(columns) == rows[-1] - rows[0] + 1
        assert mask.sum() == len(rows) ** 2
        sides.add(len(rows))
    assert sides == set(range(1, max(min(size) // 2, 1) + 1))


def test_sparseness_and_entropy_of_one_pixel_and_of_all() -> None:
    one = torch.zeros(4, 5).double()
    one[2, 3] = -4.0
    flat = torch.full((4, 5), 0.3).double()
    assert sparseness(map_of(one))[""] == pytest.approx(19 / 20, abs=1e-5)
    assert sparseness(map_of(flat))[""] == pytest.approx(0, abs=1e-12)
    assert entropy(map_of(one))[""] == 0
    assert entropy(map_of(flat))[""] == pytest.approx(math.log(20))
    assert entropy(map_of(0 * flat))[""] == pytest.approx(math.log(20))
    # Shares 1/4 and 3/4; the Gini index of 1 and 3 is 1/4.
    two = torch.tensor([[1.0, -3.0]]).double()
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert entropy(map_of(two, nn.Identity()))[""] == pytest.approx(expected)
    assert sparseness(map_of(two, nn.Identity()))[""] == pytest.approx(0.25, abs=1e-6)


def test_weights_become_random_from_the_output_and_the_model_stays_as_it_is() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 6) for _ in range(4)]
    # Registered in another order than they are called in.
    model = nn.Sequential(*layers)
    model._modules = dict(reversed(model._modules.items()))  # calls 3, 2, 1, 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for stage, copied in enumerate(randomised_from_the_top(model, torch.ones(1, 6)), start=1):
        changed = {
            name[0]
            for name, value in copied.state_dict().items()
            if not torch.equal(value, before[name])
        }
        assert changed == {str(number) for number in range(stage)}
        for name, value in copied.state_dict().items():
            assert value.mean() == pytest.approx(float(before[name].mean()), abs=0.5)
    assert stage == 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    first, again = (list(randomised_from_the_top(model, torch.ones(1, 6)))[-1] for _ in range(2))
    assert torch.equal(first[0].weight, again[0].weight)


class Edges(Attribution):
    """A map of the photo alone, as an edge detector's."""

    def __init__(self, model: Any) -> None:
        pass

    def attribute(self, inputs: Tensor, target: Any = None, **_: Any) -> Tensor:
        return inputs.abs()


def test_smooth_maps_are_means_over_noise(scenes: ImageModel) -> None:
    """The mean of |x + noise|, the last without noise; MPRT of one sample is that of the map."""
    pixels = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    found = map_of(pixels[0].sum(0).double(), scenes.model, method=Edges)
    seen = Map(**{**vars(found), "pixels": pixels})
    noise = 0.2 * (pixels.max() - pixels.min()) * seen.noise(3)
    expected = torch.cat([pixels, pixels + noise]).abs().sum(1).mean(0)
    ours = smooth(seen, scenes.model, samples=4, noise=0.2)
    torch.testing.assert_close(ours, expected.double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(smooth(seen, scenes.model, 1, 0.2), seen.again())
    values = parameter_randomisation(seen, samples=3)
    assert list(values) == ["25 %", "50 %", "75 %", "100 %"]
    assert list(values.values()) == pytest.approx([1.0] * 4)


@pytest.fixture(scope="module")
def scenes() -> ImageModel:
    return load_image_model("bundled/scenes")


@pytest.fixture(scope="module")
def data(scenes: ImageModel) -> list[LabelledImage]:
    folder = Path(examples.__file__).parent / "assets" / "scenes"
    return [
        LabelledImage(name, folder / f"{name}.png", scenes.class_names.index(name))
        for name in ("butterfly", "horse", "tractor")
    ]


def test_random_weights_change_what_explains_the_model_and_not_an_edge_detector(
    scenes: ImageModel,
) -> None:
    pixels = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    found = map_of(pixels[0].sum(0).double(), scenes.model, method=Edges)
    seen = Map(**{**vars(found), "pixels": pixels})
    values = parameter_randomisation(seen)
    assert list(values) == ["25 %", "50 %", "75 %", "100 %", "entropy"]
    assert [values[f"{share} %"] for share in (25, 50, 75, 100)] == pytest.approx([1.0] * 4)
    assert values["entropy"] == pytest.approx(0)


@pytest.fixture(scope="module")
def checked(
    scenes: ImageModel, data: list[LabelledImage], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    return map_metrics(
        scenes,
        data,
        ["transformer_attribution", "attention_rollout", "input_x_gradient"],
        metrics=["mprt,random_logit", "class_sensitivity"],
        output=tmp_path_factory.mktemp("metrics"),
    )


@pytest.mark.slow
def test_gradients_and_relevance_lose_their_map_with_all_weights_random(checked: Any) -> None:
    for method in ("transformer_attribution", "input_x_gradient"):
        assert checked.figure(method, "mprt", "100 %").value < 0.3


@pytest.mark.slow
def test_a_map_that_ignores_the_class_is_found_out(checked: Any) -> None:
    for metric in ("random_logit", "class_sensitivity"):
        assert checked.figure("attention_rollout", metric).value == pytest.approx(1)
        assert checked.figure("transformer_attribution", metric).value < 0.99


def test_maps_of_opposite_classes_have_opposite_ranks() -> None:
    """Of logits w·x and −w·x gradient times input is opposite."""

    class Opposite(Weighted):
        def forward(self, pixels: Tensor) -> Tensor:
            total = (pixels[:, 0] * self.weights).sum((1, 2))
            return torch.stack([-total, total], 1)

    found = map_of(RAMP, Opposite(RAMP.float()))
    assert random_logit(found)[""] == pytest.approx(-1)
    assert class_sensitivity(found)[""] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("values", "mass", "rank"),
    [
        ([4.0, 3.0, 2.0, 1.0], 0.5, 0.5),
        ([-4.0, 3.0, -2.0, 1.0], 0.25, 0.5),
        ([0.0, 0.0, 0.0, 0.0], 0.0, 0.5),
        ([1.0, 0.0, 1.0, 0.0], 0.5, 0.5),
        ([2.0, 0.0, 0.0, 2.0], 1.0, 1.0),
    ],
)
def test_mass_and_rank_on_the_object(values: list[float], mass: float, rank: float) -> None:
    truth = np.array([True, False, False, True])
    assert relevance_mass(np.array(values), truth) == pytest.approx(mass)
    assert relevance_rank(np.array(values), truth) == pytest.approx(rank)


def test_a_metric_that_there_is_none_of_is_told(
    scenes: ImageModel, data: list[LabelledImage], tmp_path: Path
) -> None:
    with pytest.raises(BenchmarkError, match=r"no metric 'deletion'; there are deletion:blur, "):
        map_metrics(scenes, data, ["random"], metrics=["deletion"], output=tmp_path)
    with pytest.raises(BenchmarkError, match="deletion:blur has no option 'cell'; it has removal"):
        map_metrics(scenes, data, ["random"], metrics=["deletion:blur:cell=2"], output=tmp_path)


def test_a_metric_takes_options_after_colons(
    scenes: ImageModel, data: list[LabelledImage], tmp_path: Path
) -> None:
    names = ["deletion:blur:cells=6", "deletion:blur", "saco:groups=4"]
    found = map_metrics(scenes, data[:1], ["random"], metrics=names, output=tmp_path)
    assert len({found.figure("random", name).value for name in names}) == 3


@pytest.mark.slow
def test_the_command_measures_every_metric(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    command = ["benchmark", "metrics", "--model", "test_vit", "--checkpoint", str(checkpoint)]
    command += ["--data", str(photos), "--output", str(tmp_path), "--limit", "2"]
    command += ["--methods", "raw_attention,random", "--metric", ",".join(METRICS)]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "400"})
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "results.json").read_text())["figures"]
    assert {one["metric"] for one in figures} == set(METRICS)
    assert all(one["count"] == 2 for one in figures)


def test_methods_can_be_named_as_everywhere() -> None:
    assert methods_by_name(["random:cells=4"])[0].cells == 4
