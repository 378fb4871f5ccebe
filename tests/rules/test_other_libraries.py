"""Rules against zennit, Captum and autoLRP, each on what it can run; float64, within 1e-5.

What differs by design is said in docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import LRP
from captum.attr._utils import lrp_rules
from torch import Tensor, nn

from captum_transformer_lrp import TransformerLRP, transformer_rules
from captum_transformer_lrp.rules import (
    AlphaBetaRule,
    EpsilonRule,
    GammaRule,
    LinearRule,
    Preset,
    Rule,
)


def mlp() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, torch.rand(2, 6)


class SmallCNN(nn.Module):
    """Captum has no rule for nn.Flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, stride=2)
        self.relu1, self.relu2, self.head = nn.ReLU(), nn.ReLU(), nn.Linear(45, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu2(self.second(self.relu1(self.first(x))))
        return self.head(torch.flatten(x, 1))


def cnn() -> tuple[nn.Module, Tensor]:
    return SmallCNN(), torch.rand(2, 3, 8, 8)


@pytest.fixture(params=[mlp, cnn], ids=["MLP", "CNN"])
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, inputs = request.param()
    return model.double().eval(), inputs.double()


def ours(model: nn.Module, inputs: Tensor, rule: Rule) -> Tensor:
    """Captum's LRP by one of our rules."""
    with transformer_rules(Preset("one rule", "a test", linear=rule, pixels=None)):
        found = LRP(model).attribute(inputs, target=1)
    return found.detach()


def close(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def without_bias(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)


@pytest.mark.filterwarnings("ignore::UserWarning:captum")
@pytest.mark.parametrize("name", ["epsilon", "gamma", "z plus", "alpha beta"])
def test_rules_are_zennit_s(network: tuple[nn.Module, Tensor], name: str) -> None:
    zennit_rules = pytest.importorskip("zennit.rules")
    from zennit.attribution import Gradient
    from zennit.composites import LayerMapComposite
    from zennit.types import AvgPool, Linear

    model, inputs = network
    if name == "gamma":
        inputs = torch.randn_like(inputs)  # of both signs: theirs is the generalised rule, too
    pairs: dict[str, tuple[Rule, Any]] = {
        "epsilon": (EpsilonRule(1e-6), zennit_rules.Epsilon(epsilon=1e-6)),
        "gamma": (GammaRule(0.25), zennit_rules.Gamma(gamma=0.25, stabilizer=1e-12)),
        "z plus": (LinearRule(), zennit_rules.ZPlus(stabilizer=1e-12)),
        "alpha beta": (AlphaBetaRule(2.0, 1.0), zennit_rules.AlphaBeta(2.0, 1.0, 1e-12)),
    }
    rule, theirs = pairs[name]
    if name != "epsilon":
        without_bias(model)  # ours give it nothing, zennit's a share
    composite = LayerMapComposite(
        [(nn.ReLU, zennit_rules.Pass()), (Linear, theirs), (AvgPool, zennit_rules.Norm())]
    )
    found = ours(model, inputs, rule)  # before zennit: it hooks the modules
    logits = model(inputs).detach()
    start = torch.zeros_like(logits)
    start[:, 1] = logits[:, 1]
    with Gradient(model=model, composite=composite) as attributor:
        _, expected = attributor(inputs.requires_grad_(), start)
    assert close(found, expected)


@pytest.mark.filterwarnings("ignore::UserWarning:captum")
@pytest.mark.parametrize(
    ("rule", "theirs"),
    [
        (EpsilonRule(1e-9), lrp_rules.EpsilonRule),
        (GammaRule(0.25), lrp_rules.GammaRule),
        (LinearRule(), lrp_rules.Alpha1_Beta0_Rule),
    ],
    ids=["epsilon", "gamma", "alpha 1, beta 0"],
)
def test_rules_are_captum_s(
    network: tuple[nn.Module, Tensor], rule: Rule, theirs: Callable[[], Any]
) -> None:
    model, inputs = network
    without_bias(model) if not isinstance(rule, EpsilonRule) else None
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.abs_()  # a positive logit: Captum's γ favours positive products for others, too
    found = ours(model, inputs, rule)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.rule = theirs()
    assert close(found, LRP(model).attribute(inputs, target=1).detach())


class BareAttention(nn.Module):
    """Two attentions without what autoLRP divides in its own way: sums, biases and means."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(6, 18, bias=False) for _ in range(2))
        self.up, self.head = nn.Linear(6, 12, bias=False), nn.Linear(12, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for linear in self.maps:
            q, k, v = linear(x).chunk(3, -1)
            x = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head(torch.tanh(self.up(x)))[:, 0]


@pytest.mark.parametrize("preset", ["attnlrp", "cp_lrp"])
def test_attention_is_autolrp_s(preset: str) -> None:
    autolrp = pytest.importorskip("autolrp")
    from autolrp.config import ATTNLRP, BASE, CPLRP, LRPConfig

    torch.manual_seed(0)
    model = BareAttention().double().eval()
    x = torch.randn(1, 5, 6, dtype=torch.float64)
    rules = {**BASE, **(ATTNLRP if preset == "attnlrp" else CPLRP)}
    wrapped = autolrp.tensor(x)
    model(wrapped)[0, 1].lrp(config=LRPConfig(rule=rules))
    expected = wrapped.relevance.detach()
    found = TransformerLRP(model, preset=preset, start="one_hot").attribute(x, 1)
    assert close(found, expected)
