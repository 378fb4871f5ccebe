"""What makes explanations cheaper leaves them as they are.

In float64 each shortcut is compared with the plain way, 1e-9 of the largest entry.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_transformer_lrp import (
    AttentionFlow,
    AttentionGradCam,
    AttentionRollout,
    BiAttention,
    LeGrad,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
    TransformerLRP,
)
from captum_transformer_lrp.engine.graph import switch
from captum_transformer_lrp.engine.phases import ALL_PHASES
from captum_transformer_lrp.rules import LinearRule, PassRule, SignAwareStabilizer, rows
from captum_transformer_lrp.rules import weighted as weighted_rules
from captum_transformer_lrp.rules.call import Call
from captum_transformer_lrp.rules.kernels import LinearKernel
from tests.attr.conftest import BUILDERS
from tests.attr.methods import each_once
from tests.leaks import new_tensors

METHODS = [
    TransformerAttribution,
    AttentionRollout,
    AttentionFlow,
    AttentionGradCam,
    PartialLRP,
    RawAttention,
    TransformerLRP,
    LeGrad,
    partial(BiAttention, n_steps=2),
]


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a part of the largest entry."""
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize(("method", "case"), each_once(BUILDERS, METHODS), indirect=["case"])
def test_a_batch_in_pieces_is_explained_as_a_whole_one(
    case: Any, method: Callable[..., Any]
) -> None:
    options = {"target": [0, 1, 2], "additional_forward_args": case.kwargs}
    whole = method(case.model).attribute(case.inputs, **options)
    pieces = method(case.model).attribute(case.inputs, **options, internal_batch_size=2)
    assert pieces.shape == whole.shape
    assert difference(pieces, whole) < 1e-9


def test_progress_counts_the_pieces_of_a_batch(
    vit_case: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = vit_case.attribute(0, internal_batch_size=2)
    assert capsys.readouterr().err == ""
    shown = vit_case.attribute(0, internal_batch_size=2, show_progress=True)
    assert "2/2" in capsys.readouterr().err
    assert torch.equal(quiet, shown)


def test_a_batch_in_pieces_needs_a_class_for_each_example(vit_case: Any) -> None:
    with pytest.raises(ValueError, match="2 entries, but there are 3 examples"):
        vit_case.attribute([0, 1], internal_batch_size=2)
    with pytest.raises(ValueError, match="internal_batch_size must be at least 1, found 0"):
        vit_case.attribute(0, internal_batch_size=0)


def test_targets_together_are_explained_as_one_by_one(case: Any) -> None:
    together = case.attribution.attribute_targets(case.inputs, [0, [1, 2, 3], 4], case.kwargs)
    for target, found in zip([0, [1, 2, 3], 4], together, strict=True):
        assert difference(found, case.attribute(target)) < 1e-9


PRESETS = ["paper", "lrp", "epsilon", "gamma", "alpha_beta", "attnlrp", "cp_lrp", "libra"]


@pytest.mark.parametrize(("preset", "case"), each_once(BUILDERS, PRESETS), indirect=["case"])
def test_targets_go_down_to_the_inputs_together(case: Any, preset: str) -> None:
    passes = []

    class CountingRule(PassRule):
        def relevance(self, call: Call, relevance: Tensor) -> Tensor:
            passes.append(call)
            return super().relevance(call, relevance)

    rules = {torch.nn.functional.gelu: CountingRule}
    method = TransformerLRP(case.model, preset=preset, rules=rules)
    together = method.attribute_targets(case.inputs, [0, [1, 2, 3], 4], case.kwargs)
    of_three = len(passes)
    alone = method.attribute(case.inputs, 4, case.kwargs)
    assert of_three == len(passes) - of_three > 0
    assert difference(together[2], alone) < 1e-9


@pytest.mark.parametrize("contrast", ["clrp", "sglrp"])
def test_contrasts_of_targets_go_down_together(vit_case: Any, contrast: Any) -> None:
    method = TransformerLRP(vit_case.model, contrast=contrast)
    together = method.attribute_targets(vit_case.inputs, [0, 4])
    for target, found in zip([0, 4], together, strict=True):
        assert difference(found, method.attribute(vit_case.inputs, target)) < 1e-9


def test_a_rule_that_cannot_take_targets_together_takes_them_one_by_one(vit_case: Any) -> None:
    class ReadingRule(PassRule):
        def relevance(self, call: Call, relevance: Tensor) -> Tensor:
            assert relevance.sum().item() != 1e9
            return relevance

    method = TransformerAttribution(vit_case.model, rules={torch.nn.functional.gelu: ReadingRule})
    together = method.attribute_targets(vit_case.inputs, [0, 4])
    assert difference(together[1], vit_case.attribute(4)) < 1e-9


@pytest.mark.parametrize(
    ("method", "case"),
    each_once(
        BUILDERS, [AttentionRollout, AttentionGradCam, PartialLRP, RawAttention, TransformerLRP]
    ),
    indirect=["case"],
)
def test_what_no_phase_needs_is_not_missed(case: Any, method: Callable[..., Any]) -> None:
    spare, full = method(case.model), method(case.model)
    full.phases = ALL_PHASES
    assert set(spare.phases) < set(full.phases)
    found = [one.attribute(case.inputs, 1, case.kwargs) for one in (spare, full)]
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "rule",
    [LinearRule(), weighted_rules.PositiveRule(), weighted_rules.EpsilonRule()],
    ids=lambda rule: type(rule).__name__,
)
def test_rows_without_relevance_may_be_left_out(rule: Any) -> None:
    torch.manual_seed(0)
    x, weight, bias, relevance = (
        torch.randn(shape, dtype=torch.float64) for shape in ((2, 7, 4), (5, 4), (5,), (2, 7, 5))
    )
    relevance[:, 1:] = 0
    output = torch.nn.functional.linear(x, weight, bias)
    call = Call(
        torch.nn.functional.linear,
        LinearKernel(),
        (x,),
        output,
        weight=weight,
        bias=bias,
        stabilizer=SignAwareStabilizer(),
    )
    asked: list[int] = []
    some_rows = rows._few_rows

    def few_rows(call: Call, values: Tensor) -> Tensor | None:
        found = some_rows(call, values)
        asked.append(0 if found is None else len(found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_few_rows", few_rows)
        few = rule.relevance(call, relevance)
        patch.setattr(rows, "_few_rows", lambda call, values: None)
        all_rows = rule.relevance(call, relevance)
    assert asked == [2]
    assert difference(few, all_rows) < 1e-14
    assert not few[:, 1:].any()


@pytest.mark.parametrize("method", [TransformerAttribution, PartialLRP, TransformerLRP])
def test_everything_is_computed_in_the_model_s_own_precision(
    vit_case: Any, method: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[torch.dtype] = set()
    record = switch.record

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        result = record(*args, **kwargs)
        seen.add(result.dtype)
        return result

    monkeypatch.setattr(switch, "record", watched)
    model, inputs = copy.deepcopy(vit_case.model).float(), vit_case.inputs.float()
    for options, expected in (
        ({}, torch.float32),
        ({"epsilon": 0}, torch.float64),
        ({"stabilizer": SignAwareStabilizer()}, torch.float64),
        ({"dtype": torch.float64}, torch.float64),
        ({"epsilon": 0, "dtype": torch.float32}, torch.float32),
    ):
        seen.clear()
        found = method(model, **options).attribute(inputs, 1)
        assert seen == {expected}
        assert found.dtype == torch.float32
    seen.clear()
    method(vit_case.model).attribute(vit_case.inputs, 1)
    assert seen == {torch.float64}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", [TransformerAttribution, PartialLRP, TransformerLRP])
def test_no_copy_of_a_weight_outlives_its_call(
    vit_case: Any, method: Callable[..., Any], dtype: torch.dtype | None
) -> None:
    """Of the weights of a half-precision model nothing is kept in another precision."""
    model = copy.deepcopy(vit_case.model).bfloat16()
    shapes = {parameter.shape for parameter in model.parameters() if parameter.dim() == 2}
    images = vit_case.inputs.bfloat16()
    made = method(model, dtype=dtype)._recorded(images, None)
    with new_tensors() as living, made as recording:
        found = [one for one in living() if one.shape in shapes and one.dtype != torch.bfloat16]
        saved = [
            one
            for node in graph(recording.output.grad_fn)
            for one in getattr(node, "saved_tensors", ())
            if one.shape in shapes and one.dtype != torch.bfloat16
        ]
    assert not [*found, *saved]


def graph(root: Any) -> set[Any]:
    """The nodes of an autograd graph."""
    nodes, found = [root], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in found:
            found.add(node)
            nodes += [following for following, _ in node.next_functions]
    return found
