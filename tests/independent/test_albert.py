"""ALBERT: one block, used over and over; post-norm; factorised embeddings; GELU spelled out."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AlbertConfig, AlbertForSequenceClassification

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
    matmul,
    merge_heads,
    rows,
    scale,
    softmax,
    split_heads,
    transposed,
)

HEADS, DEPTH = 2, 3


def by_hand(model: AlbertForSequenceClassification, ids: Tensor, allowed: Tensor) -> Truth:
    albert = model.albert
    block = albert.encoder.albert_layer_groups[0].albert_layers[0]
    words = leaf(albert.embeddings.word_embeddings.weight[ids])
    x = add_parameter(words, albert.embeddings.token_type_embeddings.weight[:1])
    x = add_parameter(x, albert.embeddings.position_embeddings.weight[: len(ids)])
    x = dense(
        layer_norm(x, albert.embeddings.LayerNorm), albert.encoder.embedding_hidden_mapping_in
    )
    attentions: list[Value] = []
    for _ in range(DEPTH):
        attention = block.attention
        q = split_heads(dense(x, attention.query), HEADS)
        k = split_heads(dense(x, attention.key), HEADS)
        v = split_heads(dense(x, attention.value), HEADS)
        scores = scale(matmul(q, transposed(k)), q.data.shape[-1] ** -0.5)
        attentions.append(softmax(hide(scores, allowed)))
        attended = dense(merge_heads(matmul(attentions[-1], v)), attention.dense)
        x = layer_norm(add(x, attended), attention.LayerNorm)
        hidden = elementwise(dense(x, block.ffn), gelu)
        x = layer_norm(add(dense(hidden, block.ffn_output), x), block.full_layer_layer_norm)
    pooled = elementwise(dense(rows(x, 0), albert.pooler), torch.tanh)
    return Truth(dense(pooled, model.classifier), attentions, [words])


def gelu(x: Tensor) -> Tensor:
    """The tanh approximation."""
    return torch.nn.functional.gelu(x, approximate="tanh")


def test_albert() -> None:
    config = AlbertConfig(
        vocab_size=30,
        embedding_size=6,
        hidden_size=12,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=20,
        max_position_embeddings=16,
        num_labels=3,
    )
    model = alive(AlbertForSequenceClassification(config))
    ids = torch.randint(1, 30, (2, 7))
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    truths = [by_hand(model, one, keep.bool()) for one, keep in zip(ids, mask, strict=True)]
    compare(model, ids, truths, 1, {"attention_mask": mask})

    # Eq. 14, block by block: the row of [CLS].
    found = TransformerAttribution(model).attribute(
        ids, 1, {"attention_mask": mask}, granularity="token", keep_identity=True
    )
    for n, truth in enumerate(truths):
        C = torch.eye(7, dtype=torch.float64)
        for index in range(DEPTH):
            C = (torch.eye(7) + truth.weighted(index)) @ C
        close(found[n], C[0], "the map")
