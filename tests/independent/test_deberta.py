"""DeBERTa: scores of content and relative position, added up; LayerNorm and biases spelled out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DebertaConfig, DebertaForSequenceClassification

from captum_transformer_lrp import TransformerAttribution
from tests.independent.comparison import Truth, alive, close, compare
from tests.independent.relprop import (
    Value,
    add,
    add_parameter,
    dense,
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
    transposed,
)

HEADS, DEPTH, WIDTH, TOKENS, REACH = 2, 2, 12, 6, 4
HEAD = WIDTH // HEADS
SCALE = 1 / float(torch.tensor(3.0 * HEAD).sqrt())  # in float32, as the model has it


def by_hand(model: DebertaForSequenceClassification, ids: Tensor, mask: Tensor) -> Truth:
    deberta = model.deberta
    words = leaf(deberta.embeddings.word_embeddings.weight[ids])
    x = add_parameter(words, deberta.embeddings.position_embeddings.weight[:TOKENS])
    x = add_parameter(x, deberta.embeddings.token_type_embeddings.weight[:1])
    x = layer_norm(x, deberta.embeddings.LayerNorm)
    x = scale(x, mask.double()[:, None])
    attentions: list[Value] = []
    for block in deberta.encoder.layer:
        positions = deberta.encoder.rel_embeddings.weight
        mixed = attend(x, block.attention.self, positions, mask, attentions)
        x = layer_norm(
            add(dense(mixed, block.attention.output.dense), x), block.attention.output.LayerNorm
        )
        hidden = elementwise(dense(x, block.intermediate.dense), torch.nn.functional.gelu)
        x = layer_norm(add(dense(hidden, block.output.dense), x), block.output.LayerNorm)
    pooled = elementwise(dense(rows(x, 0), model.pooler.dense), torch.nn.functional.gelu)
    return Truth(dense(pooled, model.classifier), attentions, [words])


def attend(
    x: Value, module: Any, positions: Tensor, mask: Tensor, attentions: list[Value]
) -> Value:
    """The projection is grouped by head: Q, K, V of head 0, then those of head 1."""
    weights = module.in_proj.weight.unflatten(0, (HEADS, 3, HEAD))
    copies = move(x, lambda value: value.expand(HEADS, -1, -1))
    q = linear(copies, weights[:, 0], module.q_bias.view(HEADS, 1, HEAD))
    k = linear(copies, weights[:, 1])
    v = linear(copies, weights[:, 2], module.v_bias.view(HEADS, 1, HEAD))
    q = scale(q, SCALE)
    content = matmul(q, transposed(k))

    # What meets a projected position embedding meets a constant: eq. 5.
    distance = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)  # of query from key
    keys = (positions @ module.pos_proj.weight.T).unflatten(-1, (HEADS, HEAD)).transpose(0, 1)
    queries = (positions @ module.pos_q_proj.weight.T + module.pos_q_proj.bias) * SCALE
    queries = queries.unflatten(-1, (HEADS, HEAD)).transpose(0, 1)
    to_position = move(linear(q, keys), lambda value: at(value, distance))
    from_position = move(linear(k, queries), lambda value: at(value, distance.mT).mT)
    scores = add(content, add(to_position, from_position))

    seen = mask.bool()[:, None] & mask.bool()
    attentions.append(softmax(hide(scores, seen)))
    return merge_heads(matmul(attentions[-1], v))


def at(scores: Tensor, distance: Tensor) -> Tensor:
    """From a score for each distance, those of the distances asked for."""
    place = (distance + REACH).clamp(0, 2 * REACH - 1)
    return scores.gather(-1, place.expand(HEADS, -1, -1))


def test_deberta() -> None:
    config = DebertaConfig(
        vocab_size=30,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=20,
        max_position_embeddings=16,
        relative_attention=True,
        max_relative_positions=REACH,
        pos_att_type=["c2p", "p2c"],
        type_vocab_size=2,
        pooler_hidden_size=WIDTH,
        num_labels=3,
    )
    model = alive(DebertaForSequenceClassification(config))
    ids = torch.randint(1, 30, (2, TOKENS))
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, 4:] = 0
    truths = [by_hand(model, *pair) for pair in zip(ids, mask, strict=True)]
    compare(model, ids, truths, 1, {"attention_mask": mask})

    # Eq. 14, the row of [CLS].
    found = TransformerAttribution(model).attribute(
        ids, 1, {"attention_mask": mask}, granularity="token", keep_identity=True
    )
    for n, truth in enumerate(truths):
        C = torch.eye(TOKENS, dtype=torch.float64)
        for index in range(DEPTH):
            C = (torch.eye(TOKENS) + truth.weighted(index)) @ C
        close(found[n], C[0], "the map")
