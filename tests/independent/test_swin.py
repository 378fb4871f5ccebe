"""Swin: shifted windows, padding, relative positions, merged patches, mean pooling.

The picture is not square and its second stage does not divide into windows.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

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
    mean,
    merge_heads,
    move,
    patches,
    scale,
    softmax,
    split_heads,
    transposed,
)

WINDOW, HEADS = 4, (2, 4)
GRID = (8, 12)


def by_hand(model: SwinTransformer, image: Tensor) -> Truth:
    pixels = leaf(image)
    x = layer_norm(patches(pixels, model.patch_embed.proj), model.patch_embed.norm)
    attentions: list[Value] = []
    for stage, heads in zip(model.layers, HEADS, strict=True):
        if stage is not model.layers[0]:
            x = dense(
                layer_norm(move(x, merged), stage.downsample.norm), stage.downsample.reduction
            )
        for index, block in enumerate(stage.blocks):
            x = add(x, attend(layer_norm(x, block.norm1), block.attn, heads, index, attentions))
            hidden = elementwise(dense(layer_norm(x, block.norm2), block.mlp.fc1), gelu)
            x = add(x, dense(hidden, block.mlp.fc2))
    x = move(layer_norm(x, model.norm), lambda value: value.flatten(0, 1))
    truth = Truth(dense(mean(x, 0), model.head.fc), attentions, [pixels])
    return truth


def gelu(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x)


def merged(x: Tensor) -> Tensor:
    """(H, W, D) → (H/2, W/2, 4 D), the lower neighbour before the right one."""
    return torch.cat([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]], -1)


def attend(x: Value, module: Any, heads: int, index: int, attentions: list[Value]) -> Value:
    height, width, _ = x.data.shape
    members, regions = windows(height, width, shifted=index % 2 == 1)

    def gathered(value: Tensor) -> Tensor:  # token number -1 is padding
        return torch.cat([value.flatten(0, 1), torch.zeros_like(value[0, :1])])[members]

    def scattered(value: Tensor) -> Tensor:
        found = torch.zeros(height * width, value.shape[-1], dtype=value.dtype)
        inside = members >= 0
        return found.index_put((members[inside],), value[inside]).unflatten(0, (height, width))

    qkv = dense(move(x, gathered), module.qkv)
    q, k, v = (
        split_heads(move(qkv, lambda value, i=i: value.chunk(3, -1)[i]), heads) for i in range(3)
    )
    scores = matmul(scale(q, q.data.shape[-1] ** -0.5), transposed(k))
    scores = add_parameter(scores, position_bias(module.relative_position_bias_table))
    allowed = regions[:, None, :, None] == regions[:, None, None, :]
    attentions.append(softmax(hide(scores, allowed)))
    return dense(move(merge_heads(matmul(attentions[-1], v)), scattered), module.proj)


def windows(height: int, width: int, shifted: bool) -> tuple[Tensor, Tensor]:
    """The token numbers in each window, and the region of the picture that each is from.

    A picture no larger than a window along an axis is not shifted along it.  Rolling puts tokens
    from opposite sides into one window; they are of different regions and do not see each other.
    """
    shifts = [WINDOW // 2 if shifted and size > WINDOW else 0 for size in (height, width)]
    sizes = [-(-size // WINDOW) * WINDOW for size in (height, width)]
    members = torch.full(sizes, -1)
    regions = torch.zeros(sizes, dtype=torch.long)
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            if i < height and j < width:
                rolled = (i + shifts[0]) % height, (j + shifts[1]) % width
                members[i, j] = rolled[0] * width + rolled[1]
            for place, size, shift in ((i, sizes[0], shifts[0]), (j, sizes[1], shifts[1])):
                region = (place >= size - WINDOW) + (place >= size - shift) if shift else 0
                regions[i, j] = 3 * regions[i, j] + region
    return cut(members), cut(regions)


def cut(values: Tensor) -> Tensor:
    """(H, W) → (windows, WINDOW²)."""
    return values.unfold(0, WINDOW, WINDOW).unfold(1, WINDOW, WINDOW).flatten(0, 1).flatten(1)


def position_bias(table: Tensor) -> Tensor:
    """(heads, WINDOW², WINDOW²) from a table with a row for each offset."""
    places = [(i, j) for i in range(WINDOW) for j in range(WINDOW)]
    offsets = torch.tensor(
        [
            [(i - k + WINDOW - 1) * (2 * WINDOW - 1) + j - m + WINDOW - 1 for k, m in places]
            for i, j in places
        ]
    )
    return table[offsets].permute(2, 0, 1)


def small() -> SwinTransformer:
    model = SwinTransformer(
        img_size=(16, 24),
        patch_size=2,
        num_classes=3,
        embed_dim=8,
        depths=(2, 2),
        num_heads=HEADS,
        window_size=WINDOW,
        mlp_ratio=2,
    )
    alive(model)
    return model


def test_swin() -> None:
    model = small()
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    truths = [by_hand(model, image) for image in images]
    compare(model, images, truths, 1)

    found = TransformerAttribution(model).attribute(
        images, 1, granularity="token", keep_identity=True
    )
    for n, truth in enumerate(truths):
        close(found[n], rollout(truth), "the map")


def rollout(truth: Truth) -> Tensor:
    """Mean pooling: all tokens in equal parts."""
    return product(truth).mean(0)


def product(truth: Truth) -> Tensor:
    """Eq. 14 over all tokens: windows are blocks of I + E_h(∇A ⊙ R)⁺, merging is a matrix.

    A merged token is four tokens in equal parts.
    """
    height, width = GRID
    C = torch.eye(height * width, dtype=torch.float64)
    for index in range(4):
        if index == 2:
            numbers = torch.arange(height * width).reshape(height, width, 1)
            four = merged(numbers).flatten(0, 1)
            height, width = height // 2, width // 2
            C = torch.zeros(len(four), 4 * len(four)).double().scatter(1, four, 0.25) @ C
        block = torch.eye(height * width, dtype=torch.float64)
        members, _ = windows(height, width, shifted=index % 2 == 1)
        for tokens, weighted in zip(members, truth.weighted(index), strict=True):
            inside = tokens >= 0
            block[tokens[inside][:, None], tokens[inside]] += weighted[inside][:, inside]
        C = block @ C
    return C
