"""Captum's own LRP and LayerLRP on Transformers, inside ``transformer_rules()``."""

from __future__ import annotations

import threading
from typing import Any

import captum.attr._core.lrp as captum_lrp
import pytest
import torch
from captum.attr import LRP, LayerLRP
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from captum_transformer_lrp import TransformerLRP, UnsupportedOperationError, transformer_rules
from captum_transformer_lrp.rules import PassRule, Rule

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
TARGET = 2


class BertOnEmbeddings(nn.Module):
    """LRP needs inputs that have gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = BertForSequenceClassification(
            BertConfig(
                vocab_size=30,
                hidden_size=24,
                num_hidden_layers=2,
                num_attention_heads=3,
                intermediate_size=48,
                num_labels=4,
            )
        )

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        return self.bert(inputs_embeds=embeddings, attention_mask=mask).logits


def vit() -> tuple[nn.Module, Tensor, Any]:
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=4
    )
    return model.double().eval(), torch.randn(3, 3, 16, 16).double(), None


def bert() -> tuple[nn.Module, Tensor, Any]:
    torch.manual_seed(0)
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, 4:] = 0
    return BertOnEmbeddings().double().eval(), torch.randn(3, 6, 24).double(), (mask,)


MODELS = pytest.mark.parametrize("made", [vit, bert], ids=lambda made: made.__name__)


@MODELS
@pytest.mark.parametrize("preset", ["paper", "epsilon", "gamma", "alpha_beta", "lrp"])
def test_captum_s_lrp_is_ours(made: Any, preset: str) -> None:
    model, inputs, args = made()
    ours, our_delta = TransformerLRP(model, preset=preset, start="logit").attribute(
        inputs, TARGET, args, return_convergence_delta=True
    )
    with transformer_rules(preset=preset):
        captums, delta = LRP(model).attribute(inputs, TARGET, args, return_convergence_delta=True)
    assert float((captums - ours).abs().max()) < 1e-9 * float(ours.abs().max())
    assert torch.allclose(delta, our_delta, atol=1e-9 * float(our_delta.abs().max()))


@MODELS
def test_attributions_and_what_parameters_absorb_are_the_output(made: Any) -> None:
    model, inputs, args = made()
    with transformer_rules(epsilon=0) as propagation:
        attributions, delta = LRP(model).attribute(
            inputs, TARGET, args, return_convergence_delta=True
        )
    with torch.no_grad():
        logit = model(inputs, *(args or ()))[:, TARGET]
    absorbed = logit * sum(propagation.absorbed.values())
    assert torch.allclose(absorbed, delta, atol=1e-12)
    assert float((attributions.flatten(1).sum(1) + absorbed - logit).abs().max()) < 1e-6
    expected = {vit: {"cls_token", "pos_embed"}, bert: {
        "bert.bert.embeddings.position_embeddings.weight",
        "bert.bert.embeddings.token_type_embeddings.weight",
    }}  # fmt: skip
    assert set(propagation.absorbed) == expected[made]


def test_without_the_block_captum_refuses_or_double_counts() -> None:
    """Why the block is there."""
    model, inputs, _ = vit()
    with pytest.raises((TypeError, RuntimeError, AttributeError)):
        LRP(model).attribute(inputs, TARGET)


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
def test_layer_lrp_takes_a_block(at_input: bool) -> None:
    model, inputs, _ = vit()
    with transformer_rules(epsilon=0):
        found = LayerLRP(model, model.blocks[1]).attribute(
            inputs, TARGET, attribute_to_layer_input=at_input
        )
    with torch.no_grad():
        logit = model(inputs)[:, TARGET]
    assert found.shape == (3, 5, 24)
    # Above the position embedding nothing is absorbed.
    assert torch.allclose(found.flatten(1).sum(1), logit, atol=1e-9)
    assert not hasattr(model.blocks[1], "rule")
    assert not model.blocks[1]._forward_hooks


class SmallCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.conv2, self.relu2 = nn.Conv2d(4, 5, 3), nn.ReLU()
        self.linear = nn.Linear(5 * 6 * 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.conv1(x)))
        return self.linear(self.relu2(self.conv2(x)).flatten(1))

    def with_rules(self) -> SmallCNN:
        """Captum deletes them after each call."""
        self.conv1.rule, self.conv2.rule = GammaRule(), Alpha1_Beta0_Rule()
        self.pool.rule, self.linear.rule = EpsilonRule(), EpsilonRule()
        return self


def test_layers_that_captum_knows_stay_captum_s_affair() -> None:
    torch.manual_seed(0)
    model, images = SmallCNN(), torch.randn(2, 3, 18, 18)
    before = LRP(model.with_rules()).attribute(images, target=TARGET)
    with transformer_rules():
        inside = LRP(model.with_rules()).attribute(images, target=TARGET)
    after = LRP(model.with_rules()).attribute(images, target=TARGET)
    assert torch.equal(before, inside)
    assert torch.equal(before, after)


def test_nothing_stays_behind() -> None:
    model, inputs, _ = vit()
    tables = (captum_lrp.SUPPORTED_LAYERS_WITH_RULES, captum_lrp.SUPPORTED_NON_LINEAR_LAYERS)
    copies = (dict(tables[0]), list(tables[1]))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises((AssertionError, IndexError, RuntimeError)), transformer_rules():
        LRP(model).attribute(inputs, target=99)
    with transformer_rules():
        LRP(model).attribute(inputs, target=TARGET)
    assert captum_lrp.SUPPORTED_LAYERS_WITH_RULES is tables[0]
    assert captum_lrp.SUPPORTED_NON_LINEAR_LAYERS is tables[1]
    assert (dict(tables[0]), list(tables[1])) == copies
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    for module in model.modules():
        assert "rule" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    assert torch.overrides._get_current_function_mode() is None


def test_another_thread_is_not_inside_the_block() -> None:
    torch.manual_seed(0)
    model, images = SmallCNN(), torch.randn(2, 3, 18, 18)
    model.pool = nn.AvgPool2d(2)
    expected = LRP(model).attribute(images, target=TARGET)
    found = []
    with transformer_rules():
        thread = threading.Thread(
            target=lambda: found.append(LRP(model).attribute(images, target=TARGET))
        )
        thread.start()
        thread.join()
    assert torch.equal(found[0], expected)


class Wave(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumprod(1 + x, -1)


class WaveRule(Rule):
    """Written by a user: every element keeps its relevance."""

    def relevance(self, call: Any, relevance: Tensor) -> Tensor:
        return relevance


def test_a_user_s_rule_for_a_module_of_their_own() -> None:
    model, inputs, _ = vit()
    model.blocks[0].mlp.act = Wave()
    names_it = pytest.raises(UnsupportedOperationError, match=r"cumprod.*blocks\.0\.mlp\.act")
    with names_it, transformer_rules():
        LRP(model).attribute(inputs, target=TARGET)
    with transformer_rules(rules={Wave: WaveRule}):
        found = LRP(model).attribute(inputs, target=TARGET)
    ours = TransformerLRP(model, start="logit", rules={Wave: PassRule}).attribute(inputs, TARGET)
    assert float((found - ours).abs().max()) < 1e-9 * float(ours.abs().max())


class Attending(torch.autograd.Function):
    """Attention with a derivative of its own, as kernels have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x @ x.mT).softmax(-1) @ x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            return torch.autograd.grad((x @ x.mT).softmax(-1) @ x, x, grads[0])[0]


def plainly(x: Tensor) -> Tensor:
    return (x @ x.mT).softmax(-1) @ x


class Joining(nn.Module):
    """A stream, a constant and a branch in one, which may be cut and joined again."""

    def __init__(self, attend: Any, joins: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.constant = nn.Parameter(torch.randn(1, 2, 8))
        self.attend, self.joins = attend, joins

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        joined = torch.cat([x, self.constant, self.inner(x).tanh()], 1)
        logits: Tensor = self.head(self.joins(joined).reshape(len(x), -1, 8).mean(1))
        return logits


JOINS = {
    "cut": lambda x: torch.cat([x[:, :5], x[:, 5:]], 1),
    "split": lambda x: torch.cat(x.split([2, 10], 1), 1),
    "chunks": lambda x: torch.cat(x.chunk(3, 1), 1),
    "tokens": lambda x: torch.stack(x.unbind(1), 1),
    "narrow": lambda x: torch.cat([x.narrow(1, 0, 7), x.narrow(1, 7, 5)], 1),
    "custom function": lambda x: x,
}


@pytest.mark.parametrize("how", JOINS)
def test_what_is_asked_while_the_model_runs_does_not_count(how: str) -> None:
    """Derivatives tell the engine what parts are made of; no relevance and no book is changed."""
    attend = Attending.apply if how == "custom function" else plainly
    inputs = torch.randn(1, 5, 8, dtype=torch.float64)
    found = []
    for model in (Joining(plainly, lambda x: x), Joining(attend, JOINS[how])):
        with transformer_rules() as propagation:
            relevance = LRP(model.double().eval()).attribute(inputs, TARGET)
        found.append((relevance, propagation.absorbed["constant"]))
    for plain, other in zip(*found, strict=True):
        assert torch.allclose(plain, other, rtol=1e-9)
