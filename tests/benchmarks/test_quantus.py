"""Our metrics against those of Quantus, and our methods in Quantus."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_transformer_lrp import TransformerAttribution
from captum_transformer_lrp.benchmarks import BenchmarkError, quantus_explainer
from captum_transformer_lrp.benchmarks.faithfulness import TWENTIETHS
from captum_transformer_lrp.benchmarks.maps import Map, entropy, sparseness
from captum_transformer_lrp.benchmarks.quantus import quantus_score
from captum_transformer_lrp.benchmarks.removal import STEPS, imputed, removal_order, removed_first
from captum_transformer_lrp.benchmarks.robustness import local_lipschitz, relative_stability
from captum_transformer_lrp.benchmarks.sanity import random_logit, smooth
from captum_transformer_lrp.benchmarks.segmentation import (
    agreement,
    relevance_mass,
    relevance_rank,
)
from captum_transformer_lrp.models import ImageModel

from .test_metrics import Weighted, map_of

quantus = pytest.importorskip("quantus", reason="Quantus is not installed: pip install quantus")
QUIET = {"disable_warnings": True, "display_progressbar": False}
MAPS = [torch.randn(10, 10, generator=torch.Generator().manual_seed(n)).double() for n in range(5)]


def called(metric: Any, relevance: Tensor, model: Any = None, **more: Any) -> Any:
    batch = {"x_batch": np.ones((1, 1, 10, 10), dtype=np.float32), "y_batch": np.array([1])}
    given = {"a_batch": relevance.numpy()[None, None], "device": "cpu", **batch, **more}
    return metric(model=model, **given)


@pytest.mark.parametrize("relevance", MAPS)
def test_sparseness_and_entropy_are_those_of_quantus(relevance: Tensor) -> None:
    model = Weighted(torch.ones(10, 10)).eval()
    (expected,) = called(quantus.Sparseness(**QUIET), relevance, model)
    assert sparseness(map_of(relevance))[""] == pytest.approx(expected, abs=1e-6)
    (expected,) = called(quantus.Complexity(**QUIET), relevance, model)
    assert entropy(map_of(relevance))[""] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("relevance", MAPS)
def test_the_curve_of_deletion_is_that_of_pixel_flipping(relevance: Tensor) -> None:
    model = Weighted(relevance.float() / 10).eval()
    metric = quantus.PixelFlipping(
        features_in_step=5, perturb_baseline=0.0, abs=False, normalise=False, **QUIET
    )
    (expected,) = called(metric, relevance, model, softmax=True)
    found = map_of(relevance, model)
    gone = removed_first(relevance, "positive", TWENTIETHS)
    ours = found.probability(found.without("mean", gone))
    np.testing.assert_allclose(ours[1:], expected, atol=1e-6)


@pytest.mark.parametrize("relevance", MAPS)
def test_imputation_and_road_are_those_of_quantus(relevance: Tensor) -> None:
    pixels = torch.randn(1, 3, 10, 10, generator=torch.Generator().manual_seed(9)).double()
    impute = partial(quantus.perturb_func.noisy_linear_imputation, noise=0)
    gone = removed_first(relevance, "positive")
    ours = imputed(pixels, gone, noise=0)
    order = removal_order(relevance, "positive").numpy()
    for step, photo in zip(STEPS, ours, strict=True):
        expected = impute(arr=pixels[0].numpy(), indices=order[:step])
        np.testing.assert_allclose(photo, expected, atol=1e-6)
    # Of photos of several channels Quantus takes the indices of values for those of pixels.
    model = Weighted(relevance).double().eval()
    metric = quantus.ROAD(
        percentages=list(STEPS), perturb_func=impute, abs=False, normalise=False, **QUIET
    )
    found = called(metric, relevance, model, x_batch=pixels[:, :1].float().numpy())
    right = model(ours).argmax(-1) == 1
    assert list(found.values()) == right.double().tolist()


@pytest.mark.parametrize("relevance", MAPS)
def test_localisation_is_that_of_quantus(relevance: Tensor) -> None:
    mask = np.zeros((10, 10), dtype=np.uint8)
    mask[2:6, 3:9] = 1
    positive = relevance.abs()
    options = {"abs": False, "normalise": False, **QUIET}
    given = {"model": Weighted(torch.ones(10, 10)).eval(), "s_batch": mask[None, None]}
    for metric, ours in (
        (quantus.RelevanceMassAccuracy(**options), relevance_mass),
        (quantus.RelevanceRankAccuracy(**options), relevance_rank),
    ):
        (expected,) = called(metric, positive, **given)
        assert ours(positive.numpy().ravel(), mask.ravel() == 1) == pytest.approx(
            expected, abs=1e-6
        )
    (expected,) = called(quantus.PointingGame(**options), positive, **given)
    assert agreement(positive.numpy(), mask)["pointing"] == pytest.approx(float(expected))


class TwoSums(nn.Module):
    """Two logits, each a weighted sum of the first channel."""

    def __init__(self, *weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.stack(weights).float())

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.einsum("nhw,chw->nc", pixels[:, 0], self.weights)


def test_the_random_logit_is_that_of_quantus() -> None:
    """Of two classes the other one is not drawn: both correlate the same maps."""
    model = TwoSums(MAPS[0], MAPS[0] + MAPS[1]).eval()
    explain = quantus_explainer("input_x_gradient")
    relevance = torch.as_tensor(explain(model, np.ones((1, 1, 10, 10)), [1]))[0, 0]
    metric = quantus.RandomLogit(
        num_classes=2,
        similarity_func=quantus.similarity_func.correlation_spearman,
        abs=False,
        normalise=False,
        **QUIET,
    )
    (expected,) = called(metric, relevance, model, explain_func=explain)
    assert 0.1 < expected < 0.95
    assert random_logit(map_of(relevance, model))[""] == pytest.approx(expected, abs=1e-6)


class OneChannel(Weighted):
    """A logit that is not linear, so that gradients change; in single precision as in Quantus."""

    def forward(self, pixels: Tensor) -> Tensor:
        rounded = pixels.float().double()
        return super().forward(rounded + rounded**3)


@pytest.mark.parametrize("weights", MAPS)
def test_robustness_is_that_of_quantus_on_the_same_noise(weights: Tensor) -> None:
    """The largest logit is the second, and no noise changes that."""
    model = OneChannel(weights.abs() / 10 + 0.1).double().eval()
    pixels = torch.rand(1, 1, 10, 10, generator=torch.Generator().manual_seed(1)).double() + 0.5
    explain = quantus_explainer("input_x_gradient")
    given = {"x_batch": pixels.numpy(), "explain_func": explain, "softmax": False}
    relevance = torch.as_tensor(explain(model, pixels, [1]))[0, 0]
    found = Map(**{**vars(map_of(relevance, model)), "pixels": pixels})

    def from_ours(scale: float) -> Any:
        noise = iter(scale * found.noise(10).flatten(1).numpy())
        return lambda arr, **_: arr + next(noise)

    metric = quantus.LocalLipschitzEstimate(
        nr_samples=10, perturb_func=from_ours(0.1), abs=False, normalise=True, **QUIET
    )
    (expected,) = called(metric, relevance, model, **given)
    ours = local_lipschitz(found, samples=10, noise=0.1)[""]
    assert ours == pytest.approx(expected, abs=1e-6)
    stability = relative_stability(found, samples=10)
    for name, kind in (
        ("input", quantus.RelativeInputStability),
        ("output", quantus.RelativeOutputStability),
    ):
        metric = kind(nr_samples=10, perturb_func=from_ours(0.05), abs=False, **QUIET)
        (expected,) = called(metric, relevance, model, **given)
        assert expected > 0.1
        assert stability[name] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("weights", MAPS)
def test_smooth_maps_are_those_of_quantus(weights: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = OneChannel(weights).double().eval()
    pixels = torch.rand(1, 1, 10, 10, generator=torch.Generator().manual_seed(2)).double()
    found = Map(**{**vars(map_of(weights, model)), "pixels": pixels})
    noise = iter(found.noise(4)[:, None].numpy())
    monkeypatch.setattr(np.random, "randn", lambda *_: next(noise))
    metric = quantus.SmoothMPRT(
        nr_samples=5, noise_magnitude=0.1, abs=False, normalise=False, **QUIET
    )
    metric.explain_func = quantus_explainer("input_x_gradient")
    std = 0.1 * (pixels.max() - pixels.min()).numpy()
    monkeypatch.setattr(quantus, "explain", metric.explain_func)
    expected = metric.explain_smooth_batch_numpy(model, pixels.numpy(), np.array([1]), std=std)
    ours = smooth(found, model, samples=5, noise=0.1)
    np.testing.assert_allclose(ours, expected[0, 0], atol=1e-6)


def test_a_metric_of_quantus_measures_our_maps() -> None:
    found = map_of(MAPS[0], Weighted(torch.ones(10, 10)).eval())
    assert quantus_score("quantus:Sparseness", found) == pytest.approx(sparseness(found)[""])
    with pytest.raises(BenchmarkError, match="Quantus has no metric 'Beauty'"):
        quantus_score("quantus:Beauty", found)
    with pytest.raises(BenchmarkError, match="expected one for a photo"):
        quantus_score("quantus:PixelFlipping:features_in_step=5", found)


def test_quantus_explains_by_our_methods(tiny: ImageModel) -> None:
    inputs = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    maps = quantus_explainer()(tiny.model, inputs.numpy(), np.array([2, 0]))
    expected = TransformerAttribution(tiny.model).attribute(inputs, target=[2, 0])
    torch.testing.assert_close(
        torch.as_tensor(maps)[:, 0].float(), expected.sum(1), rtol=1e-4, atol=1e-6
    )
    metric = quantus.MaxSensitivity(nr_samples=2, **QUIET)
    scores = metric(
        model=tiny.model,
        x_batch=inputs.numpy(),
        y_batch=np.array([2, 0]),
        explain_func=quantus_explainer("raw_attention"),
        device="cpu",
    )
    assert len(scores) == 2
    assert np.isfinite(scores).all()
