"""Longformer: each token sees its neighbours and one global token, which sees all.

The model computes its windows in overlapping chunks of shifted diagonals; here every map is a
dense matrix over all tokens, and the model's layout is undone to compare.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LongformerConfig, LongformerForSequenceClassification

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
    move,
    rows,
    scale,
    softmax,
    split_heads,
    transposed,
)

HEADS, DEPTH, WIDTH, TOKENS, REACH = 2, 2, 12, 12, 2
CHUNKS = TOKENS // REACH


def by_hand(model: LongformerForSequenceClassification, ids: Tensor, mask: Tensor) -> Truth:
    embeddings = model.longformer.embeddings
    words = leaf(embeddings.word_embeddings.weight[ids])
    places = torch.where(mask == 1, mask.cumsum(0) + 1, 1)  # counted from 2, and 1 for padding
    x = add_parameter(words, embeddings.position_embeddings.weight[places])
    x = add_parameter(x, embeddings.token_type_embeddings.weight[:1])
    x = layer_norm(x, embeddings.LayerNorm)
    attentions: list[Value] = []
    for block in model.longformer.encoder.layer:
        mixed = attend(x, block.attention.self, mask.bool(), attentions)
        output = block.attention.output
        x = layer_norm(add(dense(mixed, output.dense), x), output.LayerNorm)
        hidden = elementwise(dense(x, block.intermediate.dense), torch.nn.functional.gelu)
        x = layer_norm(add(dense(hidden, block.output.dense), x), block.output.LayerNorm)
    read = elementwise(dense(rows(x, 0), model.classifier.dense), torch.tanh)
    return Truth(dense(read, model.classifier.out_proj), attentions, [words])


def attend(x: Value, module: Any, seen: Tensor, attentions: list[Value]) -> Value:
    """One softmax over the global token and the neighbours, multiplied with values in two parts."""
    q, k, v = (
        split_heads(dense(x, part), HEADS) for part in (module.query, module.key, module.value)
    )
    scores = matmul(scale(q, (WIDTH / HEADS) ** -0.5), transposed(k))
    to_first = matmul(scale(q, (WIDTH / HEADS) ** -0.5), transposed(row_of_heads(k, 0)))
    place = torch.arange(TOKENS)
    near = (place[:, None] - place).abs() <= REACH
    local = hide(scores, near & seen & (place > 0))
    both = softmax(join([to_first, local], lambda values: torch.cat(values, -1)))
    both = move(both, lambda value: value * seen[:, None])  # padding looks at nothing
    attentions.append(move(both, lambda value: value[..., :1]))
    attentions.append(move(both, lambda value: value[..., 1:]))
    of_first = matmul(attentions[-2], row_of_heads(v, 0))
    of_neighbours = matmul(attentions[-1], v)
    mixed = merge_heads(add(of_first, of_neighbours))

    # The first token looks at all tokens, by projections of its own, and this takes its row.
    q = split_heads(dense(rows(x, slice(0, 1)), module.query_global), HEADS)
    k, v = (split_heads(dense(x, part), HEADS) for part in (module.key_global, module.value_global))
    scores = matmul(scale(q, (WIDTH / HEADS) ** -0.5), transposed(k))
    attentions.append(softmax(hide(scores, seen)))
    first = merge_heads(matmul(attentions[-1], v))
    return join([first, rows(mixed, slice(1, None))], torch.cat)


def row_of_heads(x: Value, row: int) -> Value:
    """Of (heads, S, d) one token, (heads, 1, d)."""
    return move(x, lambda value: value[:, row : row + 1])


def undone(index: int, found: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours from the model's layout, (heads, S/w, w, 3w): query c·w + r, key c·w + d - w."""
    if index % 3 != 1:
        return found.reshape(expected.shape), expected
    chunked = found.reshape(HEADS, CHUNKS, REACH, 3 * REACH)
    plain = torch.zeros(HEADS, TOKENS, TOKENS, dtype=found.dtype)
    covered = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    for c in range(CHUNKS):
        queries = slice(c * REACH, (c + 1) * REACH)
        first, last = max(0, (c - 1) * REACH), min(TOKENS, (c + 2) * REACH)
        offset = (c - 1) * REACH
        plain[:, queries, first:last] = chunked[:, c, :, first - offset : last - offset]
        covered[queries, first:last] = True
    return plain, expected * covered


def test_longformer() -> None:
    config = LongformerConfig(
        vocab_size=30,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=20,
        attention_window=2 * REACH,
        max_position_embeddings=20,
        type_vocab_size=1,
        num_labels=3,
        pad_token_id=1,
    )
    model = alive(LongformerForSequenceClassification(config))
    ids = torch.randint(3, 30, (2, TOKENS))
    ids[1, -3:] = 1
    mask = (ids != 1).long()
    truths = [by_hand(model, *pair) for pair in zip(ids, mask, strict=True)]
    compare(model, ids, truths, 1, {"attention_mask": mask}, arrange=undone)

    found = TransformerAttribution(model).attribute(
        ids, 1, {"attention_mask": mask}, granularity="token", keep_identity=True
    )
    for n, truth in enumerate(truths):
        close(found[n], rollout(truth), "the map")


def rollout(truth: Truth) -> Tensor:
    """Eq. 14, the row of the first token; each block's matrix put together from three parts."""
    C = torch.eye(TOKENS, dtype=torch.float64)
    for index in range(0, 3 * DEPTH, 3):
        weighted = truth.weighted(index + 1).clone()
        weighted[:, :1] += truth.weighted(index)
        weighted[:1] = truth.weighted(index + 2)
        C = C + weighted @ C
    return C[0]
