"""From token mass on the tape to attributions: of inputs, of tokens, between tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer_lrp.engine.flows import upsampled_to
from captum_transformer_lrp.engine.marks import Mark
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.engine.tape import AttentionStep, Phase
from captum_transformer_lrp.errors import ExplanationError

Granularity = Literal["input", "token", "matrix"]
GRANULARITIES = ("input", "token", "matrix")


def check_granularity(granularity: str, known: Sequence[str] = GRANULARITIES) -> None:
    """Raise for a granularity that does not exist."""
    if granularity not in known:
        raise ValueError(f"granularity must be one of {known}, found {granularity!r}")


def input_mass(recording: Recording, origin: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
    """Carry mass from ``origin`` down to the inputs.

    Returns:
        A map for each input, shaped as it is: for images the mass of the patch grid, bilinearly
        upsampled and spread evenly over the channels; for embeddings spread evenly over their
        features; for token ids (N, S).
    """
    tape = recording.tape
    tape.grids.clear()
    masses = recording.at_inputs(tape.backward(Phase.ROLLOUT, origin, seed, recording.all_leaves))
    found = []
    kinds = zip(masses, recording.shapes, recording.are_ids, strict=True)
    for index, (mass, shape, are_ids) in enumerate(kinds):
        arrived = mass.sum(-1) if are_ids else _at_pixels(mass, shape, tape.patch_features)
        for grid, mark in tape.grids:
            if mark.origins == 1 << index:
                arrived = arrived + _upsampled(grid, mark, shape)
            elif mark.origins & (1 << index):
                raise ExplanationError(
                    "a convolution mixes several inputs, so its tokens belong to no one of them: "
                    'use granularity="token"'
                )
        found.append(arrived)
    return tuple(found)


def _at_pixels(mass: Tensor, shape: torch.Size, patch_features: int | None) -> Tensor:
    """Mass on a float input; where a linear layer read patches of pixels, smoothed like a grid."""
    if len(shape) == 4 and patch_features is not None:
        side = math.isqrt(patch_features // shape[1])
        if side * side * shape[1] == patch_features and not any(n % side for n in shape[2:]):
            patches = F.avg_pool2d(mass.sum(1, keepdim=True), side, divisor_override=1)
            return (
                F.interpolate(patches, size=shape[2:], mode="bilinear", align_corners=False).expand(
                    shape
                )
                / shape[1]
            )
    return mass


def _upsampled(grid: Tensor, mark: Mark, shape: torch.Size) -> Tensor:
    if grid.shape[0] != shape[0] or grid.dim() != len(shape) - 1:
        raise ExplanationError(
            f"the tokens lie on a grid of shape {tuple(grid.shape)}, which does not fit an input "
            f'of shape {tuple(shape)}: use granularity="token"'
        )
    return upsampled_to(shape, grid)


def token_stream(recording: Recording) -> Tensor:
    """The token sequence that the first attention's skip connection carries, (N, S, D)."""
    if not recording.tape.streams:
        raise ExplanationError(
            "no skip connection leads around an attention of this model, so it has no sequence of "
            'tokens to attribute to: use granularity="input"'
        )
    return recording.tape.streams[0]


def token_mass(recording: Recording, seed: Tensor) -> Tensor:
    """Mass that arrives at each token below the first attention, (N, S)."""
    stream = token_stream(recording)
    (mass,) = recording.tape.backward(Phase.ROLLOUT, recording.output, seed, [stream])
    axis = batch_axis(recording, stream)
    if axis is None:
        return mass.sum(-1).reshape(1, -1)
    return mass.movedim(axis, 0).sum(-1).flatten(1)


def spread_over_features(recording: Recording, row: Tensor) -> Tensor:
    """The inverse of :func:`token_mass`: (N, S) spread evenly over the token stream's features."""
    stream = token_stream(recording)
    axis = batch_axis(recording, stream)
    if axis is None:
        tokens = row.reshape(stream.shape[:-1])
    else:
        tokens = row.reshape(stream.movedim(axis, 0).shape[:-1]).movedim(0, axis)
    return (tokens.unsqueeze(-1) / stream.shape[-1]).expand_as(stream)


def batch_axis(recording: Recording, stream: Tensor) -> int | None:
    """Where the examples lie in the token stream; None for a single example, wherever it lies."""
    mark = recording.tape.mark(stream)
    assert mark is not None
    if mark.examples.count == 1:
        return None
    if mark.examples.axis is None or mark.examples.index is not None:
        raise ExplanationError(
            "this model folds its examples and tokens into one dimension: explain one example at "
            'a time, or use granularity="input"'
        )
    return mark.examples.axis


def per_head(values: Tensor, step: AttentionStep) -> Tensor:
    """An attention tensor as (N, heads, S, S), if the model has it so or folds heads into N."""
    examples = step.mark.examples
    if values.dim() == 3 and values.shape[0] % examples.count == 0:
        heads = values.shape[0] // examples.count
        consecutive = tuple(n for n in range(examples.count) for _ in range(heads))
        if (
            examples.count == 1
            or examples.index == consecutive
            or (heads == 1 and examples.index is None and examples.axis == 0)
        ):
            return values.unflatten(0, (examples.count, heads))
    return values


def chosen_layers(layers: Sequence[int] | None, count: int) -> list[int]:
    """The attentions that a user has chosen, counted from the input; None for all.

    Raises:
        ValueError: for one that there is not.
    """
    for layer in layers or ():
        if not -count <= layer < count:
            raise ValueError(
                f"layers must be among the model's {count} attentions, {-count} to {count - 1}; "
                f"found {layer}"
            )
    return list(range(count)) if layers is None else sorted({layer % count for layer in layers})


def check_heads(maps: Sequence[Tensor], steps: Sequence[AttentionStep], count: int) -> None:
    """Raise unless every map is (N, heads, queries, keys)."""
    for one, step in zip(maps, steps, strict=True):
        if one.dim() < 4 or one.shape[0] != count:
            raise ExplanationError(
                f"{step.name} has no heads that can be told apart (its map has shape "
                f"{tuple(step.attention.shape)}, of {count} examples)"
            )


def fused_heads(values: Tensor, step: AttentionStep, fusion: str) -> Tensor:
    """The mean, max or min over heads, (N, 1, queries, keys)."""
    maps = per_head(values, step)
    check_heads([maps], [step], step.mark.examples.count)
    if fusion == "mean":
        return maps.mean(1, keepdim=True)
    return maps.amax(1, keepdim=True) if fusion == "max" else maps.amin(1, keepdim=True)


def attention_matrices(steps: Sequence[AttentionStep], count: int) -> list[Tensor]:
    """E_h of each step's weighted map, (N, S, S) each.

    Raises:
        ExplanationError: if the model's attentions are not all between the same tokens.
    """
    matrices = []
    for step in steps:
        assert step.weighted is not None
        maps = per_head(step.weighted, step)
        if maps.dim() != 4 or maps.shape[0] != count or maps.shape[2] != maps.shape[3]:
            raise ExplanationError(
                f"{step.name} attends within windows or between different tokens (its map has "
                f"shape {tuple(step.weighted.shape)}), so there is no one matrix over all tokens: "
                'use granularity="input" or "token" without row_normalize'
            )
        matrices.append(maps.mean(1))
    sizes = {matrix.shape[-1] for matrix in matrices}
    if len(sizes) > 1:
        raise ExplanationError(
            f"the attentions are between {sorted(sizes)} tokens, so they have no product: use "
            'granularity="input" or "token" without row_normalize'
        )
    return matrices


def rollout_matrix(matrices: Sequence[Tensor], *, row_normalize: bool) -> Tensor:
    """C of eq. 14: the product of I + E_h(∇A ⊙ R)⁺ over the blocks.

    The paper numbers blocks from the output; in its published code and here the matrix of the
    block nearest the output stands on the left, so that row i says what token i of the output is
    made from.

    Args:
        matrices: (N, S, S) for each block, the block nearest the input first.
        row_normalize: whether each I + E_h(∇A ⊙ R)⁺ has its rows divided by their sums.

    Example:
        >>> half = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
        >>> rollout_matrix([half, half], row_normalize=False)
        tensor([[[1., 2.],
                 [0., 1.]]])
    """
    product: Tensor | None = None
    for matrix in matrices:
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        block = identity + matrix
        if row_normalize:
            block = block / block.sum(-1, keepdim=True)
        product = block if product is None else block @ product
    assert product is not None
    return product
