"""The paper's other methods against the authors' published implementation, in float64.

The tolerances are relative to the largest entry of the compared tensor.  Attention alone has
nothing between it and the authors' but rounding (1e-9).  Relevance is computed with the authors'
stabiliser, which adds 1e-9 to every denominator whatever its sign (1e-5).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from captum_transformer_lrp import (
    AttentionGradCam,
    AttentionRollout,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
    TransformerLRP,
)
from captum_transformer_lrp.rules import AdditiveStabilizer, Call, Rule, preset

FOLDER = Path(__file__).parents[1] / "reference"
THE_AUTHORS = {"stabilizer": AdditiveStabilizer(1e-9)}
ATTENTION_ONLY, RELEVANCE = 1e-9, 1e-5


class Numbers:
    """One file of reference numbers; its cases are the pairs of an example and a target."""

    def __init__(self, name: str, inputs: str) -> None:
        with np.load(FOLDER / f"{name}_reference.npz") as file:
            self.numbers = dict(file)
        self.cases = [
            (example, int(target))
            for target in self.numbers["targets"]
            for example in range(len(self.numbers[inputs]))
        ]
        self.inputs = self.batch(inputs)
        self.targets = [target for _, target in self.cases]

    @property
    def state(self) -> dict[str, Tensor]:
        return {
            name.removeprefix("state/"): torch.tensor(value)
            for name, value in self.numbers.items()
            if name.startswith("state/")
        }

    def batch(self, name: str) -> Tensor:
        """An input, once for each case."""
        return torch.tensor(np.stack([self.numbers[name][example] for example, _ in self.cases]))

    def results(self, name: str) -> Tensor:
        """A result of each case, without dimensions of 1."""
        found = [torch.tensor(self.numbers[f"ex{i}/t{t}/{name}"]) for i, t in self.cases]
        return torch.stack(found).squeeze(1)


def largest_error(found: Tensor, expected: Tensor) -> float:
    """Over all cases, relative to the largest entry of each."""
    assert found.shape == expected.shape
    assert not found.requires_grad
    errors = (found - expected).flatten(1).abs().amax(1)
    return float((errors / expected.flatten(1).abs().amax(1)).max())


def min_max(maps: Tensor) -> Tensor:
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    return (maps - low) / (high - low)


# -- ViT ----------------------------------------------------------------------------------------


class CloneRule(Rule):
    """The authors' rule for a fan-out: each branch brings back x · R / (x + 1e-9)."""

    def relevance(self, call: Call, relevance: Tensor) -> Tensor:
        (x,) = call.inputs
        return x * relevance / (x + 1e-9)


class CloningBlock(Block):
    """timm's block, with a call wherever the authors have a layer for a fan-out."""

    def forward(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        x = torch.clone(x) + self.attn(self.norm1(torch.clone(x)))
        return torch.clone(x) + self.mlp(self.norm2(torch.clone(x)))


class CloningViT(VisionTransformer):
    """timm's ViT, with a call for the authors' layer that picks the class token, too."""

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        return torch.clone(super().pool(x, pool_type))


def vision_transformer(numbers: Numbers, *, cloning: bool = False) -> VisionTransformer:
    image, patch, width, depth, heads, classes = (int(n) for n in numbers.numbers["config"])
    model = (CloningViT if cloning else VisionTransformer)(
        img_size=image,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=classes,
        block_fn=CloningBlock if cloning else Block,
    )
    model.load_state_dict(numbers.state)
    *of_blocks, of_norm = (float(epsilon) for epsilon in numbers.numbers["norm_eps"])
    for block, epsilon in zip(model.blocks, of_blocks, strict=True):
        block.norm1.eps = block.norm2.eps = epsilon
    model.norm.eps = of_norm
    return model.double().eval()


@pytest.fixture(scope="module")
def vit() -> Numbers:
    return Numbers("vit", "x")


@pytest.fixture(scope="module")
def vit_model(vit: Numbers) -> VisionTransformer:
    return vision_transformer(vit)


ROWS: dict[str, tuple[Any, dict[str, Any], dict[str, Any], float]] = {
    "attention_rollout_row_normalised": (
        AttentionRollout,
        {},
        {"row_normalize": True},
        ATTENTION_ONLY,
    ),
    "last_layer_attention": (RawAttention, {}, {}, ATTENTION_ONLY),
    "last_layer_relevance": (PartialLRP, {"preset": "paper"}, {}, RELEVANCE),
    "last_layer_relevance_x_gradient": (TransformerAttribution, {"layers": [-1]}, {}, RELEVANCE),
    "second_layer_relevance_x_gradient": (TransformerAttribution, {"layers": [1]}, {}, RELEVANCE),
    "relevance_rollout": (TransformerAttribution, {"head_weighting": "none"}, {}, RELEVANCE),
    "transformer_attribution": (TransformerAttribution, {}, {}, RELEVANCE),
    "transformer_attribution_start1": (TransformerAttribution, {}, {"start_layer": 1}, RELEVANCE),
}
"""For each result its class, how it is constructed and called, and its tolerance."""


@pytest.mark.parametrize("name", ROWS)
def test_vit_row_of_the_class_token(vit: Numbers, vit_model: VisionTransformer, name: str) -> None:
    kind, constructed, called, tolerance = ROWS[name]
    method = kind(vit_model, **constructed, **THE_AUTHORS)
    found = method.attribute(vit.inputs.double(), vit.targets, granularity="token", **called)
    assert largest_error(found[:, 1:], vit.results(name).flatten(1)) < tolerance


def test_vit_attention_grad_cam(vit: Numbers, vit_model: VisionTransformer) -> None:
    """They scale it by its smallest and largest value; we return it as it is."""
    found = AttentionGradCam(vit_model).attribute(
        vit.inputs.double(), vit.targets, granularity="token"
    )[:, 1:]
    expected = vit.results("attention_gradcam").flatten(1)
    # Where all of a map is negative before the (·)⁺ of the definition, theirs is 0/0.
    empty = expected.isnan().all(1)
    assert empty.sum() == 1
    assert not found[empty].any()
    assert largest_error(min_max(found[~empty]), expected[~empty]) < ATTENTION_ONLY


def test_vit_relevance_of_the_pixels(vit: Numbers, vit_model: VisionTransformer) -> None:
    """1.2e-5 with their stabiliser, 2.4e-5 with ours.

    The rest is what their layers for fan-outs and for the class token add: see the next test.
    """
    expected = vit.results("full_relevance_input")
    for options in (THE_AUTHORS, {"epsilon": 0}):
        found = TransformerLRP(vit_model, **options).attribute(vit.inputs.double(), vit.targets)
        assert largest_error(found.sum(1), expected.reshape_as(found.sum(1))) < 3e-5


def test_vit_relevance_of_the_pixels_with_their_fan_outs(vit: Numbers) -> None:
    """Autograd adds up the relevance of all branches; theirs is a layer that stabilises."""
    model = vision_transformer(vit, cloning=True)
    method = TransformerLRP(model, rules={torch.clone: CloneRule}, **THE_AUTHORS)
    found = method.attribute(vit.inputs.double(), vit.targets).sum(1)
    expected = vit.results("full_relevance_input").reshape_as(found)
    assert largest_error(found, expected) < 1e-6


# -- BERT ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert() -> Numbers:
    return Numbers("bert", "input_ids")


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def bert_model(request: pytest.FixtureRequest, bert: Numbers) -> BertForSequenceClassification:
    vocabulary, width, depth, heads, intermediate, positions, labels = (
        int(n) for n in bert.numbers["config"]
    )
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=intermediate,
            max_position_embeddings=positions,
            num_labels=labels,
            attn_implementation=request.param,
        )
    )
    model.load_state_dict(bert.state, strict=False)
    return model.double().eval()


@pytest.mark.parametrize("row_normalize", [False, True])
def test_bert_transformer_attribution(
    bert: Numbers, bert_model: BertForSequenceClassification, row_normalize: bool
) -> None:
    name = "transformer_attribution" + row_normalize * "_row_normalised"
    found = TransformerAttribution(bert_model, **THE_AUTHORS).attribute(
        bert.inputs,
        bert.targets,
        {"attention_mask": bert.batch("attention_mask")},
        granularity="token",
        row_normalize=row_normalize,
    )
    assert largest_error(found[:, 1:], bert.results(name)[:, 1:]) < RELEVANCE


def test_bert_relevance_of_the_embeddings(
    bert: Numbers, bert_model: BertForSequenceClassification
) -> None:
    """Theirs is that of what the embedding layer gives, after its sum and LayerNorm."""

    def from_embeddings(embeddings: Tensor, mask: Tensor) -> Tensor:
        away = (1 - mask)[:, None, None].double() * torch.finfo(torch.float64).min
        hidden = bert_model.bert.encoder(embeddings, attention_mask=away)[0]
        return bert_model.classifier(bert_model.bert.pooler(hidden))

    mask = bert.batch("attention_mask")
    embeddings = bert_model.bert.embeddings(bert.inputs).detach()
    with torch.no_grad():
        logits = bert_model(bert.inputs, attention_mask=mask).logits
        assert torch.allclose(from_embeddings(embeddings, mask), logits, atol=1e-12)
    # The z^B rule is for pixels; theirs is eq. 5 from the first layer on.
    rules = replace(preset("paper"), pixels=None)
    method = TransformerLRP(from_embeddings, preset=rules, **THE_AUTHORS)
    found = method.attribute(embeddings, bert.targets, mask)
    assert largest_error(found, bert.results("embedding_relevance")) < RELEVANCE
