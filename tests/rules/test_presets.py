"""Presets are tables: they print, and types, names and instances override them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from captum.attr import LRP
from torch import Tensor, nn

from captum_transformer_lrp import TransformerLRP, transformer_rules
from captum_transformer_lrp.rules import Call, EpsilonRule, GammaRule, PassRule, Rule, preset


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x))[:, 0])


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Own().double().eval()


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 4, 6, dtype=torch.float64)


class CountingRule(EpsilonRule):
    """LRP-ε, which notes how often it is asked."""

    def __init__(self) -> None:
        super().__init__(1e-9)
        self.asked = 0

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        self.asked += 1
        return super().relevance(call, relevance)


@pytest.mark.parametrize(
    ("key", "times"),
    [("head", 1), ("layer.linear1", 1), (nn.Linear, 4), (torch.nn.functional.linear, 6)],
    ids=["a name", "a nested name", "a type", "a function"],
)
def test_an_override_goes_before_the_table(
    model: nn.Module, x: Tensor, key: Any, times: int
) -> None:
    """Of six linear calls two are functional, in nn.MultiheadAttention."""
    plain = TransformerLRP(model, preset="attnlrp").attribute(x, 1)
    for rules in ({}, {key: (rule := CountingRule())}):
        chosen = preset("attnlrp").overridden(rules)
        given = None if rules else {key: (rule := CountingRule())}
        found = TransformerLRP(model, preset=chosen, rules=given).attribute(x, 1)
        assert rule.asked == times
        assert torch.allclose(found, plain, rtol=1e-9)


def test_the_rule_of_an_instance_goes_before_all_others(model: Any, x: Tensor) -> None:
    named, own = CountingRule(), CountingRule()
    model.head.rule = own
    TransformerLRP(model, preset=preset("cp_lrp").overridden({"head": named})).attribute(x, 1)
    assert (own.asked, named.asked) == (1, 0)


@pytest.mark.filterwarnings("ignore::UserWarning:captum")
@pytest.mark.parametrize("name", ["attnlrp", "cp_lrp", "libra"])
def test_stock_lrp_runs_on_it_and_adds_up(model: nn.Module, x: Tensor, name: str) -> None:
    rule = CountingRule()
    with transformer_rules(preset(name).overridden({"head": rule})) as propagation:
        found, delta = LRP(model).attribute(x, target=1, return_convergence_delta=True)
    shares = sum(propagation.absorbed.values())
    assert rule.asked == 1
    expected = TransformerLRP(model, preset=name, start="logit").attribute(x, 1)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-12)
    assert torch.allclose(delta, model(x)[:, 1] * shares, atol=1e-9)


def test_a_name_that_no_module_has_is_an_error(model: nn.Module, x: Tensor) -> None:
    method = TransformerLRP(model, rules={"haed": PassRule})
    with pytest.raises(ValueError, match=r"no such module \(did you mean 'head'\?\)"):
        method.attribute(x, 1)
    function = TransformerLRP(lambda value: model(value), rules={"head": PassRule})
    with pytest.raises(ValueError, match="what is explained is a function"):
        function.attribute(x, 1)
    with pytest.raises(TypeError, match="PropagationRule"):
        preset("attnlrp").overridden({"head": "epsilon"})  # type: ignore[dict-item]


def test_a_preset_prints_its_table() -> None:
    chosen = preset("attnlrp").but(linear=GammaRule(0.1)).overridden({"head": PassRule()})
    lines = str(chosen).splitlines()
    assert lines[0] == "attnlrp (Achtibat et al. 2024)"
    assert [line.split("  ")[0] for line in lines[1:]] == list(chosen.table())
    assert lines[-1].split() == ["module", "'head'", "PassRule()"]
    assert all(isinstance(rule, Rule) for rule in chosen.table().values())


def test_a_bias_added_by_itself_takes_what_that_of_a_linear_layer_takes() -> None:
    class Spelled(nn.Module):
        def __init__(self, fused: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fused = fused
            self.linear, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            weight, bias = self.linear.weight, self.linear.bias
            x = self.linear(x) if self.fused else x @ weight.T + bias
            x = x + (x @ x.transpose(-2, -1)).softmax(-1) @ x
            return self.head(x[:, 0])

    torch.manual_seed(1)
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    fused, spelled = (
        TransformerLRP(Spelled(value).double().eval(), preset="cp_lrp").attribute(x, 1)
        for value in (True, False)
    )
    assert torch.allclose(fused, spelled, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["epsilon", "gamma", "attnlrp", "attnlrp_gamma", "cp_lrp", "libra"]
)
def test_what_speaks_against_a_class_is_negative_whatever_the_logit(name: str) -> None:
    """A constant taken from all logits changes signs, but nothing that tells classes apart."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=5).double().eval()
    x = torch.randn(2, 3, 160, 160).double()
    maps = []
    for shift in (0.0, 3.0, -3.0):
        shifted = copy.deepcopy(model)
        shifted.head.bias.data -= shift
        maps.append(TransformerLRP(shifted, preset=name).attribute(x, 1))
    for one in maps[1:]:
        assert float(torch.corrcoef(torch.stack([maps[0].flatten(), one.flatten()]))[0, 1]) > 0.9


def test_the_paper_s_rules_start_from_one() -> None:
    assert [preset(name).start for name in ("paper", "lrp", "alpha_beta")] == ["one_hot"] * 3
    assert TransformerLRP(nn.Identity(), preset="attnlrp").start == "logit"
    assert TransformerLRP(nn.Identity(), preset="attnlrp", start="one_hot").start == "one_hot"


@pytest.mark.parametrize("name", ["epsilon", "attnlrp", "cp_lrp", "libra"])
def test_a_logit_near_zero_does_not_explode(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=5).eval()
    x = torch.randn(1, 3, 160, 160)
    usual = TransformerLRP(model, preset=name).attribute(x, 1).abs().max()
    with torch.no_grad():
        model.head.bias[1] -= model(x)[0, 1] - 1e-7
    assert float(TransformerLRP(model, preset=name).attribute(x, 1).abs().max()) < 10 * float(usual)
