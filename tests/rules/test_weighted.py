"""The other rules of the LRP family, against the layer's dense matrix in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer_lrp import TransformerLRP
from captum_transformer_lrp.rules import (
    AlphaBetaRule,
    BoundedRule,
    EpsilonRule,
    GammaRule,
    PositiveRule,
    Rule,
    UnnormalizedAddRule,
    UnnormalizedMatmulRule,
    preset,
)
from captum_transformer_lrp.rules.call import Call
from captum_transformer_lrp.rules.kernels import AutogradKernel

TOLERANCE = 1e-9


def products(x: Tensor, weight: Tensor) -> Tensor:
    """x_j w_ji for each example, (N, i, j)."""
    return x.unsqueeze(1) * weight


def shares(parts: Tensor, denominator: Tensor, relevance: Tensor) -> Tensor:
    """Σ_i parts_ij R_i / denominator_i, with nothing for 0/0."""
    denominator = denominator.masked_fill(denominator == 0, torch.inf)
    return (parts * (relevance / denominator).unsqueeze(-1)).sum(1)


def epsilon(x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor) -> Tensor:
    y = x @ weight.T + bias
    return shares(products(x, weight), y + 0.1 * torch.where(y < 0, -1.0, 1.0).double(), relevance)


def positive(x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor) -> Tensor:
    parts = products(x.clamp(min=0), weight.clamp(min=0))
    return shares(parts, parts.sum(-1), relevance)


def gamma(x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor) -> Tensor:
    parts = products(x, weight)
    favoured = parts.sign() == parts.sum(-1, keepdim=True).sign()
    parts = parts + 0.25 * parts * favoured
    return shares(parts, parts.sum(-1), relevance)


def alpha_beta(x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor) -> Tensor:
    parts = products(x, weight)
    up, down = parts.clamp(min=0), parts.clamp(max=0)
    return 2 * shares(up, up.sum(-1), relevance) - shares(down, down.sum(-1), relevance)


def bounded(x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor) -> Tensor:
    low, high = torch.full_like(x, -3), torch.full_like(x, 4)
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    parts = products(x, weight) - products(low, up) - products(high, down)
    return shares(parts, parts.sum(-1), relevance)


CASES: list[tuple[Rule, Callable[..., Tensor], bool]] = [
    (EpsilonRule(0.1), epsilon, False),
    (PositiveRule(), positive, False),
    (GammaRule(0.25), gamma, True),
    (AlphaBetaRule(2.0, 1.0), alpha_beta, True),
    (BoundedRule(-3.0, 4.0), bounded, True),
]


@pytest.mark.parametrize(
    ("rule", "equation", "conserves"), CASES, ids=[str(one[0]) for one in CASES]
)
def test_rule_follows_its_equation(
    equations: Any, noise: Any, rule: Rule, equation: Any, conserves: bool
) -> None:
    x, weight, bias = noise(3, 6), noise(5, 6), noise(5)
    found = equations.propagate(lambda x: F.linear(x, weight, bias), x, rules={F.linear: rule})
    relevance = equations.seed(found.output)
    expected = equation(x, weight, bias, relevance)
    assert float((found.inputs[0] - expected).abs().max()) < TOLERANCE
    # What the rule does not pass on, the bias and ε have: nothing is lost.
    assert float((found.total - 1).abs().max()) < TOLERANCE
    if conserves:
        assert float((found.inputs[0].sum(1) - 1).abs().max()) < TOLERANCE


def test_bounds_default_to_each_example_s_extremes(equations: Any, noise: Any) -> None:
    x, weight = noise(3, 6), noise(5, 6)
    found = equations.propagate(lambda x: F.linear(x, weight), x, rules={F.linear: BoundedRule()})
    for one in range(3):
        rule = BoundedRule(float(x[one].min()), float(x[one].max()))
        alone = equations.propagate(
            lambda x: F.linear(x, weight),
            x[one : one + 1],
            relevance=equations.seed(found.output)[one : one + 1],
            rules={F.linear: rule},
        )
        assert torch.allclose(found.inputs[0][one], alone.inputs[0][0], atol=TOLERANCE)


def test_alpha_less_beta_is_one() -> None:
    with pytest.raises(ValueError, match="alpha - beta"):
        AlphaBetaRule(2.0, 0.5)


def test_adding_without_normalisation_is_eq_2(equations: Any, noise: Any) -> None:
    u, v = noise(3, 4), noise(3, 4)
    found = equations.propagate(torch.add, u, v, rules={torch.add: UnnormalizedAddRule()})
    share = equations.seed(found.output) / (u + v)
    assert torch.allclose(found.inputs[0], u * share, atol=TOLERANCE)
    assert torch.allclose(found.inputs[1], v * share, atol=TOLERANCE)


def test_a_matmul_without_normalisation_doubles_relevance(equations: Any, noise: Any) -> None:
    """Lemma 1 (ii); the books say so: what was made from nothing is absorbed with a minus."""
    u, v = noise(3, 4, 5), noise(3, 5, 2)
    found = equations.propagate(torch.matmul, u, v, rules={torch.matmul: UnnormalizedMatmulRule()})
    for part in found.inputs:
        assert torch.allclose(part.flatten(1).sum(1), torch.ones(3).double(), atol=TOLERANCE)
    assert torch.allclose(found.absorbed, -torch.ones(3).double(), atol=TOLERANCE)


@pytest.mark.parametrize("name", ["paper", "lrp", "epsilon", "gamma", "alpha_beta"])
def test_a_preset_prints_its_rules(name: str) -> None:
    text = str(preset(name))
    assert text.startswith(name)
    assert repr(preset(name).linear) in text


def test_an_unknown_preset_names_the_known() -> None:
    with pytest.raises(ValueError, match=r"'lpr'.*paper, lrp, epsilon"):
        TransformerLRP(lambda x: x, preset="lpr")


def test_a_gradient_that_is_one_number_for_all_is_not_written_into() -> None:
    """Autograd's gradient of a sum has one element in memory."""
    x = torch.tensor([[1.0, 2.0, 5.0]])
    call = Call(torch.sum, AutogradKernel(torch.sum), (x,), x.sum())
    with torch.no_grad():
        found = EpsilonRule(0.0).relevance(call, torch.tensor(1.0))
    torch.testing.assert_close(found, x / 8)
