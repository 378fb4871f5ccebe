"""A checkpointed explanation is the plain one, in less memory."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from captum_transformer_lrp import ExplanationError, TransformerAttribution
from captum_transformer_lrp.benchmarks.speed import peak_of_call
from captum_transformer_lrp.rules import EpsilonRule
from tests.leaks import new_tensors

Case = tuple[Any, Any, Any, dict[str, Any]]


def vision(name: str, side: int, target: Any = 3, **sizes: Any) -> Case:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **sizes).double().eval()
    return model, torch.randn(2, 3, side, side, dtype=torch.float64), target, {}


def bert() -> Case:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    model = BertForSequenceClassification(config).double().eval()
    return model, torch.randint(1, 30, (2, 7)), [1, 0], {"attention_mask": mask}


def gpt2() -> Case:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=30, n_embd=16, n_layer=3, n_head=2, n_positions=16)
    return GPT2LMHeadModel(config).double().eval(), torch.randint(0, 30, (2, 6)), (5, 7), {}


def bart() -> Case:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=30, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_labels=2,
        max_position_embeddings=32, eos_token_id=2, pad_token_id=1, bos_token_id=0,
        decoder_start_token_id=2,
    )  # fmt: skip
    ids = torch.tensor([[0, 5, 6, 7, 2], [0, 9, 8, 4, 2]])
    return BartForSequenceClassification(config).double().eval(), ids, 1, {}


def clip() -> Case:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2}  # fmt: skip
    config = CLIPConfig(
        text_config={**small, "vocab_size": 30, "max_position_embeddings": 16, "eos_token_id": 2},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    model = CLIPModel(config).double().eval()

    def similarity(pixels: Tensor, ids: Tensor) -> Tensor:
        found: Tensor = model(pixel_values=pixels, input_ids=ids).logits_per_image.diagonal()
        return found

    ids = torch.tensor([[3, 4, 5, 2], [6, 7, 8, 2]])
    return similarity, (torch.randn(2, 3, 32, 32, dtype=torch.float64), ids), None, {}


CASES = {
    "a class token": lambda: vision("test_vit", 160),
    "a distillation token": lambda: vision(
        "deit_tiny_distilled_patch16_224", 64, target=None, img_size=64, depth=3
    ),
    "windows, merged patches, a mean": lambda: vision(
        "swin_tiny_patch4_window7_224",
        112,
        img_size=112,
        embed_dim=24,
        depths=(2, 2, 2),
        num_heads=(1, 2, 4),
    ),
    "two branches": lambda: vision(
        "crossvit_9_240",
        240,
        embed_dim=(16, 32),
        depth=((1, 2, 0), (1, 2, 0)),
        num_heads=(2, 2),
        mlp_ratio=(2, 2, 1),
    ),
    "padding": bert,
    "a causal language model": gpt2,
    "encoder and decoder": bart,
    "two towers": clip,
}


def both(case: Case, **options: Any) -> tuple[Any, Any]:
    model, inputs, target, kwargs = case
    calls = {name: options.pop(name) for name in ("granularity", "start_layer") if name in options}
    return tuple(
        TransformerAttribution(model, checkpointing=checkpointing, **options).attribute(
            inputs, target, kwargs or None, **calls
        )
        for checkpointing in (False, True)
    )


def assert_same(plain: Any, checkpointed: Any, tolerance: float = 1e-9) -> None:
    assert isinstance(plain, tuple) == isinstance(checkpointed, tuple)
    pairs = zip(plain, checkpointed, strict=True) if isinstance(plain, tuple) else [
        (plain, checkpointed)
    ]  # fmt: skip
    for one, other in pairs:
        assert one.abs().max() > 0
        torch.testing.assert_close(other, one, rtol=0, atol=tolerance * float(one.abs().max()))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_checkpointed_map_is_the_plain_one(case: Any) -> None:
    assert_same(*both(case()))


@pytest.mark.parametrize("case", [CASES["a class token"], bert, gpt2], ids=["vit", "bert", "gpt2"])
@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "token"},
        {"start_layer": 1},
        {"layers": [-1]},
        {"layers": [0]},
        {"head_weighting": "attention"},
        {"head_weighting": "none"},
    ],
    ids=str,
)
def test_so_it_is_with_every_option(case: Any, options: dict[str, Any]) -> None:
    assert_same(*both(case(), **options))


def test_a_float32_model_has_the_two_precisions_of_a_plain_explanation() -> None:
    model, images, target, _ = vision("test_vit", 160)
    # Sums of what several branches send are rounded in another order.
    assert_same(*both((model.float(), images.float(), target, {})), tolerance=1e-5)


def test_several_targets_go_down_together() -> None:
    model, images, _, _ = vision("test_vit", 160)
    calls = 0

    def forward(pixels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        found: Tensor = model(pixels)
        return found

    method = TransformerAttribution(forward, checkpointing=True)
    found = method.attribute_targets(images, [1, 4, None], internal_batch_size=1)
    assert calls == 2  # one for each example: segments are made again from the log
    for target, maps in zip([1, 4, None], found, strict=True):
        assert_same(TransformerAttribution(model).attribute(images, target), maps)


def test_memory_grows_by_the_tokens_between_blocks_not_by_their_maps() -> None:
    def peak(depth: int, checkpointing: bool) -> float:
        config = BertConfig(
            vocab_size=30, hidden_size=32, num_hidden_layers=depth, num_attention_heads=4,
            intermediate_size=64,
        )  # fmt: skip
        model = BertForSequenceClassification(config).eval()
        method = TransformerAttribution(model, checkpointing=checkpointing)
        ids = torch.ones(1, 256, dtype=torch.long)
        return peak_of_call(lambda: method.attribute(ids, target=1))

    plain = peak(8, checkpointing=False) - peak(2, checkpointing=False)
    checkpointed = peak(8, checkpointing=True) - peak(2, checkpointing=True)
    one_map = 4 * 256 * 256 * 4 / 2**20
    assert 6 * 3 * one_map > plain > 6 * 2 * one_map  # the scores are computed again
    assert checkpointed < 6 * one_map


class Attends(nn.Module):
    """Two blocks of attention, behind which something is written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 24) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            q, k, v = self.written(block(tokens)).chunk(3, -1)
            tokens = self.changed(tokens + (q @ k.mT / 8**0.5).softmax(-1) @ v)
        logits: Tensor = self.head(tokens[:, 0])
        return logits

    def written(self, qkv: Tensor) -> Tensor:
        return qkv

    def changed(self, tokens: Tensor) -> Tensor:
        return tokens


class AddsInPlace(Attends):
    def changed(self, tokens: Tensor) -> Tensor:
        tokens += tokens.relu()
        return tokens


class WritesIntoConstants(Attends):
    """As mixtures of experts do with what their experts return."""

    def changed(self, tokens: Tensor) -> Tensor:
        found = torch.zeros_like(tokens)
        for rows in ([0, 2], [1, 3], [0, 1]):
            found.index_add_(1, torch.tensor(rows), tokens[:, rows].relu())
        found[:, 2] = tokens[:, 0]
        return tokens + found


class WritesIntoViews(Attends):
    def written(self, qkv: Tensor) -> Tensor:
        query = qkv[..., :8]
        query[:, 0] = qkv[:, 1, 8:16]
        return qkv


def attending(kind: type[Attends]) -> Case:
    torch.manual_seed(0)
    return kind().double().eval(), torch.randn(2, 4, 8, dtype=torch.float64), 1, {}


@pytest.mark.parametrize("kind", [AddsInPlace, WritesIntoConstants])
def test_what_a_model_writes_in_place_is_written_again(kind: type[Attends]) -> None:
    assert_same(*both(attending(kind)))


def test_what_is_written_into_views_is_refused() -> None:
    model, tokens, target, _ = attending(WritesIntoViews)
    with pytest.raises(ExplanationError, match="explain the model without checkpointing"):
        TransformerAttribution(model, checkpointing=True).attribute(tokens, target)


@pytest.mark.parametrize("name", ["rules", "module.rule"])
def test_rules_of_modules_are_refused(name: str) -> None:
    model, images, target, _ = vision("test_vit", 160)
    rules = {"blocks.0.mlp.fc1": EpsilonRule()} if name == "rules" else None
    if name == "module.rule":
        model.blocks[0].mlp.fc1.rule = EpsilonRule()
    with pytest.raises(ExplanationError, match=re.escape("checkpointing=False")):
        TransformerAttribution(model, rules=rules, checkpointing=True).attribute(images, target)


@pytest.mark.parametrize("options", [{"granularity": "matrix"}, {"row_normalize": True}])
def test_a_matrix_of_all_tokens_is_refused(options: dict[str, Any]) -> None:
    model, images, target, _ = vision("test_vit", 160)
    with pytest.raises(ValueError, match="checkpointing=False"):
        TransformerAttribution(model, checkpointing=True).attribute(images, target, **options)


def test_what_needs_all_maps_is_refused() -> None:
    model, images, target, _ = vision("test_vit", 160)
    with pytest.raises(ValueError, match="maps of all blocks"):
        TransformerAttribution(model, checkpointing=True).explain(images, target)


@pytest.mark.parametrize("case", [CASES["a class token"], bert], ids=["vit", "bert"])
@pytest.mark.parametrize("target", [1, 99], ids=["success", "no such target"])
def test_nothing_is_left_behind(case: Any, target: int) -> None:
    model, inputs, _, kwargs = case()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    method = TransformerAttribution(model, checkpointing=True)

    def explain() -> None:
        with pytest.raises(ValueError, match="out of range") if target == 99 else nullcontext():
            method.attribute(inputs, target, kwargs or None)

    explain()  # what is made once, and kept
    with new_tensors() as living:
        explain()
        assert living() == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(one.grad is None and one.requires_grad for one in model.parameters())
    assert not any(one._forward_hooks or one._backward_hooks for one in model.modules())
