"""``module.rule``: Captum's way to override one layer, with Captum's rules and with one's own."""

from __future__ import annotations

from typing import Any

import captum.attr._utils.lrp_rules as captum_rules
import pytest
import timm
import torch
from captum.attr import LRP
from torch import Tensor, nn

from captum_transformer_lrp import TransformerAttribution
from captum_transformer_lrp.rules import Call, LinearRule, Rule


def layer(noise: Any, *, bias: bool = True) -> nn.Linear:
    module = nn.Linear(6, 5, bias=bias).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(noise(*parameter.shape))
    return module


def captums_formula(
    x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float, relevance: Tensor
) -> Tensor:
    """R_j = x_j Σ_i w_ij R_i / (z_i + ε sign z_i), where z contains the bias."""
    z = x @ weight.T if bias is None else x @ weight.T + bias
    sign = torch.where(z < 0, -1.0, 1.0)
    return x * ((relevance / (z + epsilon * sign)) @ weight)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    ("rule", "weight", "keeps_bias", "epsilon"),
    [
        (captum_rules.EpsilonRule(), lambda w: w, True, 1e-9),
        (captum_rules.EpsilonRule(0.25), lambda w: w, True, 0.25),
        (captum_rules.GammaRule(), lambda w: w + 0.25 * w.clamp(min=0), True, 1e-9),
        (
            captum_rules.GammaRule(1.0, set_bias_to_zero=True),
            lambda w: w + w.clamp(min=0),
            False,
            1e-9,
        ),
        (captum_rules.Alpha1_Beta0_Rule(), lambda w: w.clamp(min=0), True, 1e-9),
        (
            captum_rules.Alpha1_Beta0_Rule(set_bias_to_zero=True),
            lambda w: w.clamp(min=0),
            False,
            1e-9,
        ),
    ],
    ids=["epsilon", "epsilon 0.25", "gamma", "gamma, no bias", "alpha-beta", "alpha-beta, no bias"],
)
def test_captums_rules_follow_captums_formulas(
    equations: Any, noise: Any, rule: Any, weight: Any, keeps_bias: bool, epsilon: float, bias: bool
) -> None:
    module, x = layer(noise, bias=bias), noise(3, 6)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.rule = rule
    found = equations.propagate(module, x)
    expected = captums_formula(
        x,
        weight(module.weight.detach()),
        module.bias.detach() if bias and keeps_bias else None,
        epsilon,
        equations.seed(found.output),
    )
    assert torch.allclose(found.inputs[0], expected, rtol=1e-9, atol=1e-12)
    assert module.rule is rule
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert sorted(vars(rule)) == sorted(vars(type(rule)()))  # nothing is kept on the rule


def test_captums_identity_rule_passes_relevance_on(equations: Any, noise: Any) -> None:
    module = nn.Linear(6, 6).double()
    module.rule = captum_rules.IdentityRule()
    found = equations.propagate(module, noise(3, 6))
    assert torch.equal(found.inputs[0], equations.seed(found.output))


def test_a_network_of_captums_rules_is_captums_lrp(equations: Any, noise: Any) -> None:
    """Captum starts from the logit itself where the paper starts from 1."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x = noise(4, 6)

    def set_rules() -> None:
        network[0].rule = captum_rules.GammaRule(0.5)
        network[2].rule = captum_rules.EpsilonRule(1e-6)

    set_rules()
    logits = network(x).detach()
    relevance = torch.zeros(4, 3).double()
    relevance[:, 1] = logits[:, 1]
    found = equations.propagate(network, x, relevance=relevance)
    set_rules()
    expected = LRP(network).attribute(x.clone().requires_grad_(), target=1)
    assert torch.allclose(found.inputs[0], expected.detach(), rtol=1e-6, atol=1e-9)


def test_one_of_our_rules_can_be_set_on_a_module(equations: Any, noise: Any) -> None:
    module, x = layer(noise), noise(3, 6)
    expected = equations.propagate(module, x).inputs[0]
    module.rule = LinearRule()
    assert torch.equal(equations.propagate(module, x).inputs[0], expected)


class Gate(nn.Module):
    """A module of a user: features, gated by others of the same token."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, -1)
        return torch.cat([value * gate.sigmoid(), gate.cumsum(-1)], -1)


class HalvesRule(Rule):
    """Half of what arrives stays, half is spread over the token's features."""

    def relevance(self, call: Call, relevance: Tensor) -> Tensor:
        spread = relevance.mean(-1, keepdim=True).expand_as(relevance)
        return (relevance + spread) / 2


def test_a_users_own_rule_on_a_users_own_module(equations: Any, noise: Any) -> None:
    module, x = Gate(), noise(2, 3, 6)
    module.rule = HalvesRule()
    found = equations.propagate(module, x)
    arriving = equations.seed(found.output)
    expected = (arriving + arriving.mean(-1, keepdim=True)) / 2
    assert torch.equal(found.output, Gate()(x))
    assert torch.allclose(found.inputs[0], expected)
    assert torch.allclose(found.total, torch.ones(2).double())


def test_a_module_with_its_own_rule_inside_a_transformer() -> None:
    torch.manual_seed(0)

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.gate = nn.Linear(4, 8), Gate()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(self.gate(self.embed(x))).mean(1))

    model, x = Classifier().double().eval(), torch.randn(2, 5, 4).double()
    model.gate.rule = HalvesRule()
    explanation = TransformerAttribution(model).explain(x, 1)
    with torch.no_grad():
        assert torch.allclose(explanation.output, model(x), rtol=1e-9, atol=1e-12)
    assert float((explanation.total - 1).abs().max()) < 1e-9
    assert bool(explanation.attributions.isfinite().all())
    assert isinstance(model.gate.rule, HalvesRule)


def test_module_rule_goes_before_the_class_and_the_function(equations: Any, noise: Any) -> None:
    class NothingRule(Rule):
        def relevance(self, call: Call, relevance: Tensor) -> Tensor:
            return torch.zeros_like(call.inputs[0])

    module, x = layer(noise), noise(2, 6)
    expected = equations.propagate(module, x).inputs[0]
    overrides = {nn.Linear: NothingRule, nn.functional.linear: NothingRule}
    assert not equations.propagate(module, x, rules=overrides).inputs[0].any()
    module.rule = LinearRule()
    assert torch.equal(equations.propagate(module, x, rules=overrides).inputs[0], expected)


def test_each_use_of_a_module_has_its_own_relevance(equations: Any, noise: Any) -> None:
    """A module that is used twice: state on the module would mix up the two calls."""
    module = nn.Linear(6, 6).double()
    module.rule = captum_rules.EpsilonRule()
    x = noise(2, 6)
    found = equations.propagate(lambda value: module(module(value)), x)
    relevance = equations.seed(found.output)
    middle = module(x).detach()
    args = (module.weight.detach(), module.bias.detach(), 1e-9)
    expected = captums_formula(x, *args, captums_formula(middle, *args, relevance))
    assert torch.allclose(found.inputs[0], expected, rtol=1e-6, atol=1e-9)
    with pytest.raises(AttributeError):
        module.activations  # noqa: B018


def test_captums_rules_work_on_a_float32_model_and_their_share_is_booked() -> None:
    """In float64 the rule's copy of the layer is, too, buffers included."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), timm.create_model("test_vit", num_classes=4)).eval()
    model[0].running_mean.uniform_()
    model[0].rule = captum_rules.EpsilonRule()
    model[1].blocks[0].mlp.fc1.rule = captum_rules.GammaRule()
    explanation = TransformerAttribution(model, epsilon=0).explain(torch.randn(2, 3, 160, 160), 1)
    assert float((explanation.total - 1).abs().max()) < 1e-5
    assert set(explanation.absorbed) == {"0", "1.blocks.0.mlp.fc1", "1.pos_embed", "1.cls_token"}
