"""Llama: RMSNorm spelled out, rotary positions, two queries to each key, gated MLP."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification

from captum_transformer_lrp import TransformerAttribution
from tests.independent.comparison import Truth, alive, close, compare
from tests.independent.relprop import (
    Value,
    add,
    dense,
    elementwise,
    hide,
    leaf,
    matmul,
    merge_heads,
    move,
    rms_norm,
    rotated,
    rows,
    scale,
    softmax,
    split_heads,
    times,
    transposed,
)

HEADS, GROUPS, DEPTH, WIDTH, TOKENS = 4, 2, 2, 16, 6


def by_hand(model: LlamaForSequenceClassification, ids: Tensor) -> Truth:
    words = x = leaf(model.model.embed_tokens.weight[ids])
    causal = torch.ones(len(ids), len(ids)).tril().bool()
    attentions: list[Value] = []
    for block in model.model.layers:
        normed = rms_norm(x, block.input_layernorm)
        mixed = attend(normed, block.self_attn, causal, attentions)
        x = add(x, mixed)
        normed = rms_norm(x, block.post_attention_layernorm)
        gate = elementwise(dense(normed, block.mlp.gate_proj), torch.nn.functional.silu)
        x = add(x, dense(times(gate, dense(normed, block.mlp.up_proj)), block.mlp.down_proj))
    last = rows(rms_norm(x, model.model.norm), len(ids) - 1)
    return Truth(dense(last, model.score), attentions, [words])


def attend(x: Value, module: Any, allowed: Tensor, attentions: list[Value]) -> Value:
    q = rotated(split_heads(dense(x, module.q_proj), HEADS))
    k = rotated(split_heads(dense(x, module.k_proj), GROUPS))
    v = split_heads(dense(x, module.v_proj), GROUPS)
    k, v = (move(one, lambda t: t.repeat_interleave(HEADS // GROUPS, 0)) for one in (k, v))
    scores = scale(matmul(q, transposed(k)), (WIDTH / HEADS) ** -0.5)
    attentions.append(softmax(hide(scores, allowed)))
    return dense(merge_heads(matmul(attentions[-1], v)), module.o_proj)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_llama(attention: str) -> None:
    config = LlamaConfig(
        vocab_size=30,
        hidden_size=WIDTH,
        intermediate_size=20,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=16,
        num_labels=3,
        pad_token_id=0,
        attn_implementation=attention,
    )
    model = alive(LlamaForSequenceClassification(config))
    ids = torch.randint(3, 30, (2, TOKENS))
    truths = [by_hand(model, one) for one in ids]
    compare(model, ids, truths, 2)

    # Eq. 14: the row of the last token.
    found = TransformerAttribution(model).attribute(ids, 2, granularity="token", keep_identity=True)
    for n, truth in enumerate(truths):
        C = torch.eye(TOKENS, dtype=torch.float64)
        for index in range(DEPTH):
            C = (torch.eye(TOKENS) + truth.weighted(index)) @ C
        close(found[n], C[-1], "the map")
