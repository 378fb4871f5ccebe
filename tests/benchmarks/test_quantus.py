"""Our metrics against those of Quantus, and our methods in Quantus."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_transformer_lrp import TransformerAttribution
from captum_transformer_lrp.benchmarks import BenchmarkError, quantus_explainer
from captum_transformer_lrp.benchmarks.metrics import (
    entropy,
    probability_curve,
    random_logit,
    sparseness,
)
from captum_transformer_lrp.benchmarks.quantus import quantus_score
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
    return metric(model=model, a_batch=relevance.numpy()[None, None], device="cpu", **batch, **more)


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
    ours = probability_curve(found, found.pixels, found.removed("mean"))
    np.testing.assert_allclose(ours[1:], expected, atol=1e-6)


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
