"""Causal language models: one logit at one position, and every token of a continuation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from captum_transformer_lrp import (
    AttentionRollout,
    LeGrad,
    TransformerAttribution,
    explain_continuation,
)
from captum_transformer_lrp.attr.comparison import METHODS
from captum_transformer_lrp.errors import ExplanationError
from tests.attr.methods import each_once

NAMES = list(METHODS)
OURS = [name for name in NAMES[: NAMES.index("saliency")] if name != "legrad"]
PROMPT = torch.tensor([[5, 6, 7, 11], [12, 13, 9, 4]])
CONTINUATION = torch.tensor([[8, 9, 3], [10, 11, 6]])


def gpt2() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=30, n_positions=32, n_embd=24, n_layer=2, n_head=4)
    return GPT2LMHeadModel(config).double().eval()


def llama() -> Any:
    """With grouped queries: four heads share two pairs of keys and values."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


def close(found: Tensor, expected: Tensor) -> bool:
    """Rotary angles are computed in float32 by transformers itself."""
    return torch.allclose(found, expected, rtol=1e-6, atol=1e-9)


MODELS = {"gpt2": gpt2, "llama": llama}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]()


def test_one_logit_at_one_position(model: Any) -> None:
    """Relevance is conserved, and no token after the position has a part."""
    found = TransformerAttribution(model).explain(PROMPT, target=(2, 8))
    assert torch.allclose(found.total, torch.ones(2).double(), atol=1e-6)
    assert isinstance(found.attributions, Tensor)
    assert not found.attributions[:, 3].any()
    assert not found.relevances[0][:, 3].any()
    assert (found.attributions[:, :3] > 0).all()


def test_each_token_is_explained_as_in_the_text_that_ends_before_it(model: Any) -> None:
    method = TransformerAttribution(model)
    found = explain_continuation(method, PROMPT, CONTINUATION)
    assert found.shape == (2, 3, 7)
    text = torch.cat([PROMPT, CONTINUATION], 1)
    for step in range(3):
        before = text[:, : 4 + step]
        targets = [(3 + step, int(token)) for token in CONTINUATION[:, step]]
        expected = method.attribute(before, targets)
        assert isinstance(expected, Tensor)
        assert close(found[:, step, : 4 + step], expected)
        assert not found[:, step, 4 + step :].any()


@pytest.mark.parametrize(("name", "model"), each_once(MODELS, OURS), indirect=["model"])
def test_every_method_explains_each_token_by_those_before_it(model: Any, name: str) -> None:
    method: Any = METHODS[name](model)
    found = explain_continuation(method, PROMPT, CONTINUATION)
    text = torch.cat([PROMPT, CONTINUATION], 1)
    for step in range(3):
        assert not found[:, step, 4 + step :].any()
        if name == "attcat":
            continue  # by definition, it counts the attention that comes from later tokens, too
        before = text[:, : 4 + step]
        targets = [(3 + step, int(token)) for token in CONTINUATION[:, step]]
        expected = method.attribute(before, targets)
        assert close(found[:, step, : 4 + step], expected)


def test_a_method_of_one_answer_says_so(model: Any) -> None:
    with pytest.raises(ExplanationError, match="LeGrad reads one answer"):
        explain_continuation(LeGrad(model), PROMPT, CONTINUATION)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing_and_gets_nothing(model: Any, side: str) -> None:
    method = TransformerAttribution(model)
    short = PROMPT[1:, :2]
    padding = torch.zeros(1, 2, dtype=torch.long)
    parts = [padding, short] if side == "left" else [short, padding]
    prompts = torch.cat([PROMPT[:1], torch.cat(parts, 1)])
    mask = (prompts != 0).long()
    found = explain_continuation(method, prompts, CONTINUATION, attention_mask=mask)
    alone = explain_continuation(method, short, CONTINUATION[1:])
    kept = torch.cat([mask[1].bool(), torch.ones(3, dtype=torch.bool)])
    assert close(found[1][:, kept], alone[0])
    assert not found[1][:, ~kept].any()
    assert close(found[:1], explain_continuation(method, PROMPT[:1], CONTINUATION[:1]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_that_are_given_go_with_their_tokens(model: Any, side: str) -> None:
    short = PROMPT[1:, :2]
    padding = torch.zeros(1, 2, dtype=torch.long)
    prompt = torch.cat([padding, short] if side == "left" else [short, padding], 1)
    mask = (prompt != 0).long()
    seen = torch.cat([mask, torch.ones_like(CONTINUATION[1:])], 1)
    positions = 3 + seen.cumsum(1) - 1  # of a text that begins at position 3
    method = TransformerAttribution(model)
    found = explain_continuation(
        method, prompt, CONTINUATION[1:], attention_mask=mask,
        additional_forward_args={"position_ids": positions},
    )  # fmt: skip
    alone = explain_continuation(
        method, short, CONTINUATION[1:],
        additional_forward_args={"position_ids": 3 + torch.arange(5)[None]},
    )  # fmt: skip
    assert close(found[0][:, seen[0].bool()], alone[0])
    assert not found[0][:, ~seen[0].bool()].any()


def test_continuations_of_different_lengths(model: Any) -> None:
    method = TransformerAttribution(model)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    found = explain_continuation(method, PROMPT, CONTINUATION, continuation_mask=mask)
    alone = explain_continuation(method, PROMPT[1:], CONTINUATION[1:, :1])
    assert close(found[1, :1, :5], alone[0])
    assert not found[1, 1:].any()


def test_other_methods_explain_continuations_too() -> None:
    found = explain_continuation(AttentionRollout(gpt2()), PROMPT, CONTINUATION)
    assert found.shape == (2, 3, 7)
    assert (found[:, 0, :4] > 0).all()


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((PROMPT, CONTINUATION[:1]), ValueError, "2 prompts, but 1 continuations"),
        ((PROMPT.float(), CONTINUATION), ValueError, "must be token ids"),
        ((PROMPT[0], CONTINUATION), ValueError, "must be token ids"),
        (
            ("a text", "its end"),
            TypeError,
            r"found str: explain_generation\(model, tokenizer, prompt\)",
        ),
        ((PROMPT, [[8, 9, 3]]), TypeError, "continuation_ids must be a tensor"),
    ],
)
def test_what_does_not_fit_is_named(arguments: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        explain_continuation(TransformerAttribution(gpt2()), *arguments)


def test_an_empty_prompt_has_nothing_before_its_continuation() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])
    method = TransformerAttribution(gpt2())
    with pytest.raises(ValueError, match="no tokens"):
        explain_continuation(method, PROMPT, CONTINUATION, attention_mask=mask)
