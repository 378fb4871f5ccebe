"""Mixtral: each token goes through two of four gated MLPs, weighed by a router."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MixtralConfig, MixtralForSequenceClassification

from captum_transformer_lrp import TransformerAttribution
from tests.independent.comparison import Truth, alive, close, compare
from tests.independent.relprop import (
    Value,
    add,
    dense,
    elementwise,
    hide,
    join,
    leaf,
    linear,
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
    total,
    transposed,
)

HEADS, GROUPS, DEPTH, WIDTH, TOKENS = 4, 2, 2, 16, 6
EXPERTS, CHOSEN = 4, 2


def by_hand(model: MixtralForSequenceClassification, ids: Tensor) -> Truth:
    words = x = leaf(model.model.embed_tokens.weight[ids])
    causal = torch.ones(len(ids), len(ids)).tril().bool()
    attentions: list[Value] = []
    for block in model.model.layers:
        normed = rms_norm(x, block.input_layernorm)
        x = add(x, attend(normed, block.self_attn, causal, attentions))
        x = add(x, mixture(rms_norm(x, block.post_attention_layernorm), block.mlp))
    last = rows(rms_norm(x, model.model.norm), len(ids) - 1)
    return Truth(dense(last, model.score), attentions, [words])


def mixture(x: Value, module: Any) -> Value:
    """Each token's weighted sum over its experts (eq. 2): a gate for each of the summands.

    The router's softmax passes relevance on unchanged, and so does dividing by the sum of the
    chosen weights, a normalisation.
    """
    weights = softmax(linear(x, module.gate.weight))
    places = weights.data.topk(CHOSEN, -1).indices
    chosen = move(weights, lambda value: value.gather(-1, places))
    chosen = elementwise(chosen, lambda value: value / value.sum(-1, keepdim=True))
    outputs = [expert(x, module.experts, number) for number in range(EXPERTS)]
    said = join(
        outputs, lambda values: torch.stack(values, 1)[torch.arange(TOKENS)[:, None], places]
    )
    repeated = move(chosen, lambda value: value.unsqueeze(-1).expand(-1, -1, WIDTH))
    return total(times(said, repeated), 1)


def expert(x: Value, experts: Any, number: int) -> Value:
    both = linear(x, experts.gate_up_proj[number])
    gate = move(both, lambda value: value.chunk(2, -1)[0])
    up = move(both, lambda value: value.chunk(2, -1)[1])
    gated = times(elementwise(gate, torch.nn.functional.silu), up)
    return linear(gated, experts.down_proj[number])


def attend(x: Value, module: Any, allowed: Tensor, attentions: list[Value]) -> Value:
    q = rotated(split_heads(dense(x, module.q_proj), HEADS), 1e6)
    k = rotated(split_heads(dense(x, module.k_proj), GROUPS), 1e6)
    v = split_heads(dense(x, module.v_proj), GROUPS)
    k, v = (move(one, lambda t: t.repeat_interleave(HEADS // GROUPS, 0)) for one in (k, v))
    scores = scale(matmul(q, transposed(k)), (WIDTH / HEADS) ** -0.5)
    attentions.append(softmax(hide(scores, allowed)))
    return dense(merge_heads(matmul(attentions[-1], v)), module.o_proj)


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_mixtral(experts: str) -> None:
    config = MixtralConfig(
        vocab_size=30,
        hidden_size=WIDTH,
        intermediate_size=12,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        num_local_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        max_position_embeddings=16,
        num_labels=3,
        pad_token_id=0,
        experts_implementation=experts,
    )
    model = alive(MixtralForSequenceClassification(config))
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
