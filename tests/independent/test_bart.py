"""BART: an encoder, a decoder that reads the same words one place later, cross-attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import BartConfig, BartForSequenceClassification

from captum_transformer_lrp import TransformerAttribution
from tests.independent.comparison import Truth, alive, close, compare
from tests.independent.relprop import (
    Value,
    add,
    add_parameter,
    dense,
    elementwise,
    hide,
    join,
    layer_norm,
    leaf,
    matmul,
    merge_heads,
    rows,
    scale,
    softmax,
    split_heads,
    transposed,
)

HEADS, DEPTH, WIDTH, TOKENS = 2, 2, 12, 6
START, END = 2, 2


def by_hand(model: BartForSequenceClassification, ids: Tensor, allowed: Tensor) -> Truth:
    bart = model.model
    words = leaf(bart.shared.weight[ids])
    start = leaf(bart.shared.weight[START][None])
    shifted = join([start, rows(words, slice(0, -1))], torch.cat)
    attentions: list[Value] = []

    x = embedded(words, bart.encoder)
    for block in bart.encoder.layers:
        mixed = attend(x, x, block.self_attn, allowed[None], attentions)
        x = layer_norm(add(x, mixed), block.self_attn_layer_norm)
        x = layer_norm(add(x, mlp(x, block)), block.final_layer_norm)

    y = embedded(shifted, bart.decoder)
    causal = torch.ones(TOKENS, TOKENS).tril().bool()
    for block in bart.decoder.layers:
        mixed = attend(y, y, block.self_attn, causal, attentions)
        y = layer_norm(add(y, mixed), block.self_attn_layer_norm)
        crossed = attend(y, x, block.encoder_attn, allowed[None], attentions)
        y = layer_norm(add(y, crossed), block.encoder_attn_layer_norm)
        y = layer_norm(add(y, mlp(y, block)), block.final_layer_norm)

    head = model.classification_head
    read = elementwise(dense(rows(y, end_of(ids)), head.dense), torch.tanh)
    return Truth(dense(read, head.out_proj), attentions, [words])


def end_of(ids: Tensor) -> int:
    return int((ids == END).int().argmax())


def embedded(words: Value, module: Any) -> Value:
    """Positions are counted from 2."""
    positions = module.embed_positions.weight[2 : 2 + TOKENS]
    return layer_norm(add_parameter(words, positions), module.layernorm_embedding)


def attend(x: Value, seen: Value, module: Any, allowed: Tensor, attentions: list[Value]) -> Value:
    q = split_heads(dense(x, module.q_proj), HEADS)
    k = split_heads(dense(seen, module.k_proj), HEADS)
    v = split_heads(dense(seen, module.v_proj), HEADS)
    scores = scale(matmul(q, transposed(k)), (WIDTH / HEADS) ** -0.5)
    attentions.append(softmax(hide(scores, allowed)))
    return dense(merge_heads(matmul(attentions[-1], v)), module.out_proj)


def mlp(x: Value, block: Any) -> Value:
    return dense(elementwise(dense(x, block.fc1), torch.nn.functional.gelu), block.fc2)


def test_bart() -> None:
    config = BartConfig(
        vocab_size=30,
        d_model=WIDTH,
        encoder_layers=DEPTH,
        decoder_layers=DEPTH,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=20,
        decoder_ffn_dim=20,
        max_position_embeddings=16,
        num_labels=3,
        pad_token_id=1,
        eos_token_id=END,
        decoder_start_token_id=START,
    )
    model = alive(BartForSequenceClassification(config))
    ids = torch.randint(3, 30, (2, TOKENS))
    ids[0, -1] = ids[1, -3] = END
    ids[1, -2:] = 1
    mask = (ids != 1).long()
    truths = [by_hand(model, one, keep.bool()) for one, keep in zip(ids, mask, strict=True)]
    compare(model, ids, truths, 1, {"attention_mask": mask})

    found = TransformerAttribution(model).attribute(
        ids, 1, {"attention_mask": mask}, keep_identity=True
    )
    for n, truth in enumerate(truths):
        close(found[n], rollout(truth, end_of(ids[n])), "the map")


def rollout(truth: Truth, end: int) -> Tensor:
    """Eq. 14, with the words as columns: cross-attention carries mass over to the encoder."""
    C = torch.eye(TOKENS, dtype=torch.float64)
    for index in range(DEPTH):
        C = C + truth.weighted(index) @ C
    decoder = torch.zeros(TOKENS, TOKENS).double()
    decoder[1:] = torch.eye(TOKENS)[:-1]  # the decoder reads word i at place i + 1
    for index in range(DEPTH, 3 * DEPTH, 2):
        decoder = decoder + truth.weighted(index) @ decoder
        decoder = decoder + truth.weighted(index + 1) @ C
    return decoder[end]
