"""GPT-2: causal, pre-norm, one projection for Q, K and V, the last token read, GELU spelled out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2ForSequenceClassification

from captum_transformer_lrp import TransformerAttribution
from tests.independent.comparison import Truth, alive, close, compare
from tests.independent.relprop import (
    Value,
    add,
    add_parameter,
    elementwise,
    hide,
    layer_norm,
    leaf,
    linear,
    matmul,
    merge_heads,
    move,
    rows,
    scale,
    softmax,
    split_heads,
    transposed,
)

HEADS, DEPTH, WIDTH, TOKENS = 2, 2, 12, 6


def by_hand(model: GPT2ForSequenceClassification, ids: Tensor) -> Truth:
    words = leaf(model.transformer.wte.weight[ids])
    x = add_parameter(words, model.transformer.wpe.weight[: len(ids)])
    causal = torch.ones(len(ids), len(ids)).tril().bool()
    attentions: list[Value] = []
    for block in model.transformer.h:
        qkv = conv1d(layer_norm(x, block.ln_1), block.attn.c_attn)
        q, k, v = (
            split_heads(move(qkv, lambda value, i=i: value.split(WIDTH, -1)[i]), HEADS)
            for i in range(3)
        )
        scores = scale(matmul(q, transposed(k)), (WIDTH / HEADS) ** -0.5)
        attentions.append(softmax(hide(scores, causal)))
        x = add(conv1d(merge_heads(matmul(attentions[-1], v)), block.attn.c_proj), x)
        hidden = conv1d(layer_norm(x, block.ln_2), block.mlp.c_fc)
        hidden = elementwise(hidden, lambda h: torch.nn.functional.gelu(h, approximate="tanh"))
        x = add(x, conv1d(hidden, block.mlp.c_proj))
    last = rows(layer_norm(x, model.transformer.ln_f), int(ids.count_nonzero()) - 1)
    return Truth(linear(last, model.score.weight), attentions, [words])


def conv1d(x: Value, module: Any) -> Value:
    """GPT-2's name for a linear layer whose weight is (in, out)."""
    return linear(x, module.weight.T, module.bias)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gpt2(attention: str) -> None:
    config = GPT2Config(
        vocab_size=30,
        n_embd=WIDTH,
        n_layer=DEPTH,
        n_head=HEADS,
        n_positions=16,
        num_labels=3,
        pad_token_id=0,
        attn_implementation=attention,
    )
    model = alive(GPT2ForSequenceClassification(config))
    ids = torch.randint(1, 30, (2, TOKENS))
    ids[1, 4:] = 0  # padding on the right, which no earlier token sees
    truths = [by_hand(model, one) for one in ids]
    compare(model, ids, truths, 1)

    # Eq. 14: the row of the token that is read.
    found = TransformerAttribution(model).attribute(ids, 1, granularity="token", keep_identity=True)
    for n, truth in enumerate(truths):
        C = torch.eye(TOKENS, dtype=torch.float64)
        for index in range(DEPTH):
            C = (torch.eye(TOKENS) + truth.weighted(index)) @ C
        close(found[n], C[int(ids[n].count_nonzero()) - 1], "the map")
