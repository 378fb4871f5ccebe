"""A function from the model's output to a number for each example is a target, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from captum_transformer_lrp import PartialLRP, TransformerAttribution, TransformerLRP, compare
from captum_transformer_lrp.attr.comparison import METHODS
from captum_transformer_lrp.attr.targets import seed
from captum_transformer_lrp.errors import ExplanationError

IDS = torch.tensor([[2, 5, 6, 7], [2, 9, 8, 7]])
# Methods that draw samples, or compare with samples of a baseline.
RANDOM = ("gradient_shap", "kernel_shap", "lime", "shapley_value_sampling")


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=20, hidden_size=16, num_labels=3, **sizes)
    return BertForSequenceClassification(config).double().eval()


@pytest.mark.parametrize("name", [name for name in METHODS if name not in RANDOM])
def test_a_function_that_picks_a_logit_is_that_logit(model: Any, name: str) -> None:
    found = compare(model, IDS, {"index": 1, "function": lambda logits: logits[:, 1]}, [name])[name]
    assert torch.allclose(found["index"], found["function"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("multiply", [True, False])
def test_a_method_of_captum_keeps_its_options_and_the_targets_behind_a_function(
    model: Any, multiply: bool
) -> None:
    name = "integrated_gradients"
    options = {name: {"multiply_by_inputs": multiply, "n_steps": 3}}
    targets = {"function": lambda logits: logits[:, 1], "index": 1, "other": 0}
    found = compare(model, IDS, targets, [name], options=options)[name]
    alone = compare(model, IDS, {"other": 0}, [name], options=options)[name]
    assert torch.allclose(found["index"], found["function"], rtol=1e-6, atol=1e-9)
    assert torch.equal(found["other"], alone["other"])


@pytest.mark.parametrize("preset", ["attnlrp", "cp_lrp", "lrp"])
def test_relevance_of_a_difference_is_the_difference(model: Any, preset: str) -> None:
    """These rules share out any amount, so that the whole is linear in what it starts from."""
    method = TransformerLRP(model, preset=preset, start="logit")
    one, other = (method.attribute(IDS, target) for target in (0, 2))
    found = method.attribute(IDS, lambda logits: logits[:, 0] - logits[:, 2])
    assert torch.allclose(found, one - other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "method", [TransformerAttribution, TransformerLRP, lambda m: PartialLRP(m, preset="paper")]
)
def test_a_start_that_eq_9_and_10_would_cancel_is_refused(model: Any, method: Any) -> None:
    with pytest.raises(ValueError, match="take the difference of the maps"):
        method(model).attribute(IDS, lambda logits: logits[:, 0] - logits[:, 2])


@pytest.mark.parametrize(
    "function",
    [
        lambda logits: logits[:, 1] - logits[:, 0],
        lambda logits: logits.log_softmax(-1)[:, 1],
        lambda logits: logits.square().sum(1),
        lambda logits: logits[:, :2].mean(1),
        lambda logits: logits.logsumexp(1),
    ],
)
def test_a_seed_is_the_gradient(function: Any) -> None:
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-6
    expected = torch.zeros_like(logits)
    for index in range(3):
        nudge = torch.zeros_like(logits)
        nudge[:, index] = step
        expected[:, index] = (function(logits + nudge) - function(logits - nudge)) / (2 * step)
    assert torch.allclose(seed(logits, function), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda logits: logits, r"returned \(2, 3\)"),
        (lambda logits: logits.sum(), r"returned \(\)"),
        (lambda logits: 3.0, "returned float"),
        (lambda logits: logits.argmax(1), "does not depend on the output"),
        (lambda logits: logits.detach()[:, 0], "does not depend on the output"),
    ],
)
def test_what_is_no_number_for_each_example_is_named(function: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seed(torch.zeros(2, 3), function)


def test_a_contrast_of_classes_needs_a_class(model: Any) -> None:
    def both(logits: Tensor) -> Tensor:
        return logits[:, 0] + logits[:, 1]

    with pytest.raises(ValueError, match="one class as the target"):
        TransformerLRP(model, preset="attnlrp", contrast="clrp").attribute(IDS, both)
    with pytest.raises(ExplanationError, match="transformer_attribution: the target"):
        compare(model, IDS, {"a": lambda logits: -logits[:, 0]}, ["transformer_attribution"])
