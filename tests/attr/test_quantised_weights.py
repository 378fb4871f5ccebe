"""Weights of few bits, as torchao keeps them: a call dequantises them for itself.

The maps are those of a copy whose weights were dequantised by hand, and near those of the model in
float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from captum_transformer_lrp import (
    ExplanationError,
    TransformerAttribution,
    TransformerLRP,
    examples,
)

quantization = pytest.importorskip("torchao.quantization")
granularity = pytest.importorskip("torchao.quantization.granularity")

CONFIGS: dict[str, Callable[[], Any]] = {
    "int8": lambda: quantization.Int8WeightOnlyConfig(),
    "int4 in groups": lambda: quantization.IntxWeightOnlyConfig(
        weight_dtype=torch.int4, granularity=granularity.PerGroup(32)
    ),
    "int4 by rows": lambda: quantization.IntxWeightOnlyConfig(
        weight_dtype=torch.int4, granularity=granularity.PerAxis(0)
    ),
    "int8, activations too": lambda: quantization.Int8DynamicActivationInt8WeightConfig(),
    "float8": lambda: quantization.Float8WeightOnlyConfig(),
}
METHODS: dict[str, Callable[[Any], Any]] = {
    "transformer_attribution": TransformerAttribution,
    "attnlrp": lambda model: TransformerLRP(model, preset="attnlrp"),
}
SENTENCES = (
    "A gorgeous, witty film, though the ending is a little dull.",
    "The acting is superb, but the plot is dull.",
    "A wonderful story, but bad acting.",
    "It never fails to entertain the audience.",
    "I didn't enjoy this lifeless and silly movie.",
    "A moving and beautiful film about friendship.",
    "The jokes are stale and the cast looks bored.",
    "An honest, warm and funny comedy for the whole family.",
)


@pytest.fixture(scope="module")
def classifier() -> tuple[Any, Any]:
    return examples.sentiment_classifier()


def quantised(model: nn.Module, config: str) -> Any:
    found = copy.deepcopy(model)
    quantization.quantize_(found, CONFIGS[config]())
    return found


def by_hand(model: nn.Module) -> Any:
    found = copy.deepcopy(model)
    for module in found.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.dequantize(), requires_grad=False)
    return found


def maps(model: Any, tokenizer: Any, method: str) -> list[Tensor]:
    found = []
    for text in SENTENCES:
        given = tokenizer(text, return_tensors="pt")
        mask = {"attention_mask": given["attention_mask"]}
        found.append(METHODS[method](model).attribute(given["input_ids"], 1, mask)[0, 1:-1])
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("config", CONFIGS)
def test_maps_are_those_of_a_copy_with_dequantised_weights(
    classifier: tuple[Any, Any], config: str, method: str
) -> None:
    model, tokenizer = classifier
    packed = quantised(model, config)
    kinds = {name: type(value) for name, value in packed.named_parameters()}
    found = maps(packed, tokenizer, method)
    for one, other in zip(found, maps(by_hand(packed), tokenizer, method), strict=True):
        torch.testing.assert_close(one, other)
    assert kinds == {name: type(value) for name, value in packed.named_parameters()}
    ranks = [
        spearmanr(one, other)[0]
        for one, other in zip(found, maps(model, tokenizer, method), strict=True)
    ]
    assert sum(ranks) / len(ranks) >= 0.95


def test_a_form_that_does_not_say_its_values_is_told(classifier: tuple[Any, Any]) -> None:
    from tests.attr.test_bad_inputs import Packed

    model = copy.deepcopy(classifier[0])
    packed = Packed(model.classifier.weight.detach().to(torch.int8))
    model.classifier.weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(ExplanationError, match=r"weight of classifier.*Packed"):
        TransformerAttribution(model).attribute(torch.tensor([[2, 5, 3]]), 1)
