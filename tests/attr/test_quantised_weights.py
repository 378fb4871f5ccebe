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
from torch import nn

from captum_transformer_lrp import (
    ExplanationError,
    TransformerAttribution,
)
from tests.attr.sentences import SENTENCES, correlations, maps

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


@pytest.mark.parametrize(
    "method", ["attnlrp", pytest.param("transformer_attribution", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("config", CONFIGS)
def test_maps_are_those_of_a_copy_with_dequantised_weights(
    classifier: tuple[Any, Any], config: str, method: str
) -> None:
    model, tokenizer = classifier
    packed = quantised(model, config)
    kinds = {name: type(value) for name, value in packed.named_parameters()}
    args = tokenizer, method, SENTENCES[:8]
    found = maps(packed, *args)
    for one, other in zip(found, maps(by_hand(packed), *args), strict=True):
        torch.testing.assert_close(one, other)
    assert kinds == {name: type(value) for name, value in packed.named_parameters()}
    ranks = correlations(found, maps(model, *args))
    assert sum(ranks) / len(ranks) >= 0.95


def test_a_form_that_does_not_say_its_values_is_told(classifier: tuple[Any, Any]) -> None:
    from tests.attr.test_bad_inputs import Packed

    model = copy.deepcopy(classifier[0])
    packed = Packed(model.classifier.weight.detach().to(torch.int8))
    model.classifier.weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(ExplanationError, match=r"weight of classifier.*Packed"):
        TransformerAttribution(model).attribute(torch.tensor([[2, 5, 3]]), 1)
