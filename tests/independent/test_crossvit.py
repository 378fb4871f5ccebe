"""CrossViT: two branches of unlike patches, whose class tokens look into each other's branch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.crossvit import CrossVit
from torch import Tensor

from captum_transformer_lrp import TransformerAttribution
from tests.independent.comparison import Truth, alive, close, compare
from tests.independent.relprop import (
    Value,
    add,
    add_parameter,
    dense,
    elementwise,
    join,
    layer_norm,
    leaf,
    matmul,
    mean,
    merge_heads,
    move,
    patches,
    resampled,
    rows,
    scale,
    softmax,
    split_heads,
    transposed,
)

HEADS = (2, 3)
SIZES = (16, 12)
GRIDS = (4, 2)


def by_hand(model: CrossVit, image: Tensor) -> Truth:
    pixels = leaf(image)
    attentions: list[Value] = []
    branches = []
    for i, size in enumerate(SIZES):
        seen = pixels if size == 16 else resampled(pixels, lambda value: resize(value, 12))
        tokens = move(patches(seen, model.patch_embed[i].proj), lambda value: value.flatten(0, 1))
        class_token = leaf(getattr(model, f"cls_token_{i}")[0])
        both = join([class_token, tokens], torch.cat)
        branches.append(add_parameter(both, getattr(model, f"pos_embed_{i}")[0]))
    for stage in model.blocks:
        for i, blocks in enumerate(stage.blocks):
            for block in blocks:
                branches[i] = transformer_block(branches[i], block, HEADS[i], attentions)
        lent = [project(rows(branches[i], slice(0, 1)), stage.projs[i]) for i in range(2)]
        fused = []
        for i in range(2):
            (block,) = stage.fusion[i]
            tokens = join([lent[i], rows(branches[1 - i], slice(1, None))], torch.cat)
            looked = cross_attend(tokens, block, HEADS[1 - i], attentions)
            back = project(add(rows(tokens, slice(0, 1)), looked), stage.revert_projs[i])
            fused.append(join([back, rows(branches[i], slice(1, None))], torch.cat))
        branches = fused
    read = [dense(rows(layer_norm(branches[i], model.norm[i]), 0), model.head[i]) for i in range(2)]
    return Truth(mean(join(read, torch.stack), 0), attentions, [pixels])


def resize(image: Tensor, size: int) -> Tensor:
    return F.interpolate(image[None], size=(size, size), mode="bicubic", align_corners=False)[0]


def transformer_block(x: Value, block: Any, heads: int, attentions: list[Value]) -> Value:
    qkv = dense(layer_norm(x, block.norm1), block.attn.qkv)
    q, k, v = (
        split_heads(move(qkv, lambda value, i=i: value.chunk(3, -1)[i]), heads) for i in range(3)
    )
    x = add(x, dense(attended(q, k, v, attentions), block.attn.proj))
    hidden = elementwise(dense(layer_norm(x, block.norm2), block.mlp.fc1), F.gelu)
    return add(x, dense(hidden, block.mlp.fc2))


def cross_attend(x: Value, block: Any, heads: int, attentions: list[Value]) -> Value:
    """One query, the class token."""
    normed = layer_norm(x, block.norm1)
    q = split_heads(dense(rows(normed, slice(0, 1)), block.attn.wq), heads)
    k = split_heads(dense(normed, block.attn.wk), heads)
    v = split_heads(dense(normed, block.attn.wv), heads)
    return dense(attended(q, k, v, attentions), block.attn.proj)


def attended(q: Value, k: Value, v: Value, attentions: list[Value]) -> Value:
    scores = scale(matmul(q, transposed(k)), q.data.shape[-1] ** -0.5)
    attentions.append(softmax(scores))
    return merge_heads(matmul(attentions[-1], v))


def project(x: Value, layers: Any) -> Value:
    return dense(elementwise(layer_norm(x, layers[0]), F.gelu), layers[2])


def test_crossvit() -> None:
    model = alive(
        CrossVit(
            img_size=16,
            img_scale=(1.0, 0.75),
            patch_size=(4, 6),
            num_classes=3,
            embed_dim=(8, 12),
            depth=((1, 2, 1), (1, 1, 1)),
            num_heads=HEADS,
            mlp_ratio=(2.0, 2.0, 1.0),
        )
    )
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    truths = [by_hand(model, image) for image in images]
    compare(model, images, truths, 1)

    found = TransformerAttribution(model).attribute(images, 1, keep_identity=True)
    for n, truth in enumerate(truths):
        pixels = sum(
            F.interpolate(grid[None, None], size=(16, 16), mode="bilinear")[0, 0]
            for grid in rollout(truth)
        )
        close(found[n].sum(0), pixels, "the map")


def rollout(truth: Truth) -> list[Tensor]:
    """Eq. 14, with the tokens of both branches as columns; the mass of each branch's patches."""
    counts = [1 + grid**2 for grid in GRIDS]
    branches = list(torch.eye(sum(counts), dtype=torch.float64).split(counts))
    steps = iter(range(len(truth.attentions)))
    for depths in ((1, 2), (1, 1)):
        for i, depth in enumerate(depths):
            for _ in range(depth):
                branches[i] = branches[i] + truth.weighted(next(steps)) @ branches[i]
        fused = []
        for i in range(2):
            tokens = torch.cat([branches[i][:1], branches[1 - i][1:]])
            class_token = branches[i][:1] + truth.weighted(next(steps)) @ tokens
            fused.append(torch.cat([class_token, branches[i][1:]]))
        branches = fused
    row = (branches[0][0] + branches[1][0]) / 2
    return [
        part[1:].reshape(grid, grid) for part, grid in zip(row.split(counts), GRIDS, strict=True)
    ]
