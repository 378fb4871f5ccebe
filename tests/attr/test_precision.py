"""The same explanation in every precision, on trained weights and on random ones.

An explanation of float32 is compared with that of float64 (1e-3 of the largest entry), one of a
half-precision model with that of float32 by rank correlation.  The float32 model has the weights
and the inputs that were rounded to half precision: bfloat16 keeps 8 bits of each, so with others
it would be another model.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from captum_transformer_lrp import TransformerAttribution, TransformerLRP

REVIEWS = [
    "a gorgeous , witty , seductive movie that never loses its charm .",
    "the plot is dull and the jokes fall flat , and yet i did not hate it .",
    "terrible",
]
HALVES = [torch.bfloat16, torch.float16]


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's, for values without ties."""
    ranks = [values.flatten().argsort().argsort().double() for values in (one, other)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


@pytest.fixture(scope="module")
def photos(imagenet_photos: Tensor) -> Tensor:
    return imagenet_photos[::6][:3]


@pytest.fixture(scope="module")
def bert(shared: Path) -> nn.Module:
    folder = shared / "models/bert_movies"
    return AutoModelForSequenceClassification.from_pretrained(folder).float().eval()


@pytest.fixture(scope="module")
def reviews(shared: Path) -> dict[str, Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models/bert_movies")
    return dict(tokenizer(REVIEWS, padding=True, return_tensors="pt"))


def of_photos(model: nn.Module, photos: Tensor, **options: Any) -> Tensor:
    """Maps without the [CLS] token."""
    found = TransformerAttribution(model).attribute(
        photos, [0, 300, 600], granularity="token", **options
    )
    assert isinstance(found, Tensor)
    return found[:, 1:]


def of_reviews(model: nn.Module, reviews: dict[str, Tensor]) -> list[Tensor]:
    """For each review its words' attributions, without [CLS], [SEP] and padding."""
    found = TransformerAttribution(model).attribute(
        reviews["input_ids"],
        1,
        {name: value for name, value in reviews.items() if name != "input_ids"},
    )
    assert isinstance(found, Tensor)
    lengths = reviews["attention_mask"].sum(1).tolist()
    return [row[1 : length - 1] for row, length in zip(found, lengths, strict=True)]


def test_float32_agrees_with_float64_on_photos(deit: nn.Module, photos: Tensor) -> None:
    single = of_photos(deit, photos)
    double = of_photos(copy.deepcopy(deit).double(), photos.double())
    assert single.dtype == torch.float32
    assert double.dtype == torch.float64
    for one, other in zip(single, double, strict=True):
        assert float((one - other).abs().max() / other.max()) < 1e-3


def test_float32_agrees_with_float64_on_reviews(
    bert: nn.Module, reviews: dict[str, Tensor]
) -> None:
    single = of_reviews(bert, reviews)
    double = of_reviews(copy.deepcopy(bert).double(), reviews)
    for one, other in zip(single, double, strict=True):
        assert float((one - other).abs().max() / other.max()) < 1e-3


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_ranks_patches_of_photos_alike(
    deit: nn.Module, photos: Tensor, dtype: torch.dtype
) -> None:
    half = of_photos(copy.deepcopy(deit).to(dtype), photos.to(dtype))
    single = of_photos(copy.deepcopy(deit).to(dtype).float(), photos.to(dtype).float())
    assert bool(half.isfinite().all())
    for one, other in zip(half, single, strict=True):
        assert rank_correlation(one, other) > 0.95


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_ranks_words_of_reviews_alike(
    bert: nn.Module, reviews: dict[str, Tensor], dtype: torch.dtype
) -> None:
    half = of_reviews(copy.deepcopy(bert).to(dtype), reviews)
    single = of_reviews(copy.deepcopy(bert).to(dtype).float(), reviews)
    assert all(bool(one.isfinite().all()) for one in half)
    assert rank_correlation(torch.cat(half), torch.cat(single)) > 0.95


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_gives_finite_maps_that_rank_alike(case: Any, dtype: torch.dtype) -> None:
    def tokens(precision: torch.dtype) -> Tensor:
        model = copy.deepcopy(case.model).to(dtype).to(precision)
        inputs = case.inputs.to(dtype).to(precision) if case.is_image else case.inputs
        found = TransformerAttribution(model).attribute(inputs, 1, case.kwargs, granularity="token")
        assert isinstance(found, Tensor)
        return found[:, 1:]

    half, single = tokens(dtype), tokens(torch.float32)
    assert half.dtype == torch.float32  # a map is worth more than its model's weights
    assert bool(half.isfinite().all())
    for one, other in zip(half, single, strict=True):
        known = other > 0  # zeros (padding) have no rank
        assert rank_correlation(one[known], other[known]) > 0.95


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_relevance_is_conserved_in_every_precision(case: Any, dtype: torch.dtype) -> None:
    """Half-precision models too are explained in float32, whose rounding over a model is 1e-4."""
    model = copy.deepcopy(case.model).to(dtype)
    inputs = case.inputs.to(dtype) if case.is_image else case.inputs
    explanation = TransformerAttribution(model).explain(inputs, 1, case.kwargs)
    assert float((explanation.total - 1).abs().max()) < 1e-3


def test_gamma_stays_within_float32_on_photos(deit: nn.Module, photos: Tensor) -> None:
    """Denominators near zero would make relevance of 1e60 over the 48 linear layers."""
    single = TransformerLRP(deit, preset="gamma").attribute(photos)
    double = TransformerLRP(copy.deepcopy(deit).double(), preset="gamma").attribute(photos.double())
    assert float(double.abs().max()) < 1e12
    for one, other in zip(single, double, strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < 1e-3
