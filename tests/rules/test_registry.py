"""Filing rules: for functions under all their spellings, for module classes, for one object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import captum.attr._core.lrp as captum_lrp
import pytest
import torch
import torch.nn.functional as F
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor, nn

from captum_transformer_lrp.rules import (
    Call,
    GELURule,
    LinearRule,
    MatmulRule,
    PassRule,
    PoolingRule,
    Rule,
    SkipAddRule,
    SoftmaxRule,
    register_rule,
    unregister_rule,
)
from captum_transformer_lrp.rules.registry import FUNCTION_RULES


class KeepFirstRule(Rule):
    """All relevance to the first element of each example."""

    def relevance(self, call: Call, relevance: Tensor) -> Tensor:
        (x,) = call.inputs
        found = torch.zeros_like(x)
        found[:, 0] = relevance.flatten(1).sum(1)
        return found


class Cubed(nn.Module):
    """A module of a user, made of several operations."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x * x + torch.sin(x)


@pytest.fixture(autouse=True)
def tables_are_left_as_found() -> Iterator[None]:
    before = dict(FUNCTION_RULES), dict(captum_lrp.SUPPORTED_LAYERS_WITH_RULES)
    non_linear = list(captum_lrp.SUPPORTED_NON_LINEAR_LAYERS)
    yield
    assert (dict(FUNCTION_RULES), dict(captum_lrp.SUPPORTED_LAYERS_WITH_RULES)) == before
    assert non_linear == captum_lrp.SUPPORTED_NON_LINEAR_LAYERS


# -- the rules that are there -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "rule"),
    [
        (F.gelu, GELURule),
        (torch.softmax, SoftmaxRule),
        (F.softmax, SoftmaxRule),
        (Tensor.softmax, SoftmaxRule),
        (torch.matmul, MatmulRule),
        (Tensor.__matmul__, MatmulRule),
        (torch.bmm, MatmulRule),
        (torch.add, SkipAddRule),
        (Tensor.__add__, SkipAddRule),
        (Tensor.__radd__, SkipAddRule),
        (F.linear, LinearRule),
        (F.conv2d, LinearRule),
        (torch.mean, PoolingRule),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_rules_of_the_paper_are_there(function: Any, rule: type[Rule]) -> None:
    assert isinstance(FUNCTION_RULES[function], rule)
    assert isinstance(FUNCTION_RULES[function], PropagationRule)


@pytest.mark.parametrize("module", [nn.GELU, nn.Softmax, nn.LayerNorm, nn.SiLU])
def test_captum_knows_the_non_linear_layers_of_transformers(module: type[nn.Module]) -> None:
    assert module in captum_lrp.SUPPORTED_NON_LINEAR_LAYERS


def test_rules_say_what_they_are() -> None:
    assert repr(LinearRule()) == "LinearRule()"


# -- functions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling",
    [torch.tanh, Tensor.tanh],
    ids=["torch.tanh", "Tensor.tanh"],
)
@pytest.mark.parametrize("rule", [KeepFirstRule, KeepFirstRule()], ids=["class", "instance"])
def test_a_rule_for_a_function_holds_for_all_its_spellings(
    equations: Any, noise: Any, spelling: Any, rule: Any
) -> None:
    assert register_rule(spelling, rule) is rule
    try:
        for call in (torch.tanh, lambda x: x.tanh(), nn.Tanh()):
            found = equations.propagate(call, noise(2, 4)).inputs[0]
            assert torch.allclose(found[:, 0], torch.ones(2).double())
            assert not found[:, 1:].any()
    finally:
        unregister_rule(spelling)
    found = equations.propagate(torch.tanh, noise(2, 4))
    assert torch.equal(found.inputs[0], equations.seed(found.output))


def test_a_rule_for_matmul_holds_for_the_operator(equations: Any, noise: Any) -> None:
    class FirstTakesAllRule(Rule):
        def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
            u, v = call.inputs
            shape = (-1, *[1] * (u.dim() - 1))
            part = relevance.flatten(1).sum(1).reshape(shape) / u[0].numel()
            return part.expand_as(u), torch.zeros_like(v)

    u, v = noise(2, 3, 4), noise(2, 4, 3)
    register_rule(torch.matmul, FirstTakesAllRule)
    try:
        for product in (torch.matmul, torch.bmm, lambda a, b: a @ b, Tensor.matmul):
            found = equations.propagate(product, u, v)
            assert not found.inputs[1].any()
            assert torch.allclose(found.total, torch.ones(2).double())
    finally:
        unregister_rule(torch.matmul)
    assert bool(equations.propagate(torch.matmul, u, v).inputs[1].any())


def test_a_function_without_a_rule_can_be_given_one(equations: Any, noise: Any) -> None:
    from captum_transformer_lrp import UnsupportedOperationError

    x = noise(2, 4)
    with pytest.raises(UnsupportedOperationError, match="cumprod"):
        equations.propagate(lambda value: value.cumprod(1), x)
    register_rule(torch.cumprod, KeepFirstRule)
    try:
        found = equations.propagate(lambda value: value.cumprod(1), x)
        assert torch.allclose(found.inputs[0][:, 0], torch.ones(2).double())
    finally:
        unregister_rule(torch.cumprod)
    with pytest.raises(UnsupportedOperationError, match="cumprod"):
        equations.propagate(lambda value: value.cumprod(1), x)


def test_a_function_of_ones_own_can_be_announced(equations: Any, noise: Any) -> None:
    @torch.overrides.wrap_torch_function(lambda x: (x,))
    def sharpened(x: Tensor) -> Tensor:
        return x.pow(3).cumprod(-1)

    register_rule(sharpened, PassRule)
    try:
        found = equations.propagate(sharpened, noise(2, 4))
        assert torch.equal(found.inputs[0], equations.seed(found.output))
    finally:
        unregister_rule(sharpened)


# -- module classes -----------------------------------------------------------------------------


def test_a_rule_for_a_module_class_explains_it_as_a_whole(equations: Any, noise: Any) -> None:
    x = noise(2, 4)
    register_rule(Cubed, KeepFirstRule)
    try:
        assert isinstance(captum_lrp.SUPPORTED_LAYERS_WITH_RULES[Cubed](), KeepFirstRule)
        found = equations.propagate(lambda value: Cubed()(value), x)
        assert torch.equal(found.output, Cubed()(x))
        assert torch.allclose(found.inputs[0][:, 0], torch.ones(2).double())
        assert not found.inputs[0][:, 1:].any()
    finally:
        unregister_rule(Cubed)
    assert Cubed not in captum_lrp.SUPPORTED_LAYERS_WITH_RULES


def test_a_pass_rule_makes_a_class_non_linear_for_captum() -> None:
    register_rule(Cubed, PassRule)
    try:
        assert Cubed in captum_lrp.SUPPORTED_NON_LINEAR_LAYERS
    finally:
        unregister_rule(Cubed)
    assert Cubed not in captum_lrp.SUPPORTED_NON_LINEAR_LAYERS


def test_unregistering_a_class_of_captums_restores_captums_rule() -> None:
    before = captum_lrp.SUPPORTED_LAYERS_WITH_RULES[nn.Linear]
    register_rule(nn.Linear, KeepFirstRule)
    try:
        unregister_rule(nn.Linear)
        assert captum_lrp.SUPPORTED_LAYERS_WITH_RULES.get(nn.Linear) is before
    finally:
        captum_lrp.SUPPORTED_LAYERS_WITH_RULES[nn.Linear] = before


def test_unregistering_what_is_not_registered_does_nothing() -> None:
    unregister_rule(Cubed)
    unregister_rule(torch.cumprod)
    unregister_rule(torch.matmul)


# -- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    ["LinearRule", None, nn.Linear, 3, torch.matmul],
    ids=["name", "None", "module class", "number", "function"],
)
def test_a_rule_must_be_a_propagation_rule(rule: Any) -> None:
    with pytest.raises(TypeError, match=r"captum PropagationRule.*found"):
        register_rule(torch.tanh, rule)
    with pytest.raises(TypeError):
        register_rule(Cubed, rule)


@pytest.mark.parametrize("target", ["tanh", 3, int, Tensor], ids=str)
def test_a_target_must_be_a_function_or_a_module_class(target: Any) -> None:
    with pytest.raises(TypeError, match=r"functions and nn\.Module classes, found"):
        register_rule(target, PassRule)


def test_a_rule_must_answer_for_every_input(equations: Any, noise: Any) -> None:
    class OneTooFewRule(Rule):
        def relevance(self, call: Call, relevance: Tensor) -> Tensor:
            return relevance

    with pytest.raises(ValueError, match=r"OneTooFewRule.*1 relevances for the 2 inputs of"):
        equations.propagate(torch.add, noise(2, 3), noise(2, 3), rules={torch.add: OneTooFewRule})


# -- rules= -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [KeepFirstRule, KeepFirstRule()], ids=["class", "instance"])
def test_the_rules_argument_overrides_the_registry(equations: Any, noise: Any, rule: Any) -> None:
    x = noise(2, 4)
    found = equations.propagate(lambda value: value.tanh(), x, rules={torch.tanh: rule})
    assert not found.inputs[0][:, 1:].any()
    without = equations.propagate(lambda value: value.tanh(), x)
    assert bool(without.inputs[0][:, 1:].any())
    of_module = equations.propagate(lambda value: Cubed()(value), x, rules={Cubed: rule})
    assert not of_module.inputs[0][:, 1:].any()


@pytest.mark.parametrize(
    "rules", [{torch.tanh: "no rule"}, {5: PassRule}], ids=["no rule", "no target"]
)
def test_the_rules_argument_is_checked(equations: Any, noise: Any, rules: Any) -> None:
    with pytest.raises(TypeError, match=r"PropagationRule|rules are for functions"):
        equations.propagate(torch.tanh, noise(2, 4), rules=rules)
