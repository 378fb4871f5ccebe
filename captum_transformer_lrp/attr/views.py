"""From token mass on the tape to attributions: of inputs, of tokens, between tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.phases import Rollout
from captum_transformer_lrp.engine.phases.rollout import upsampled_to
from captum_transformer_lrp.engine.phases.walk import moved_mass
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.rules.examples import Examples

Granularity = Literal["input", "token", "matrix"]
GRANULARITIES = ("input", "token", "matrix")


def check_granularity(granularity: str, known: Sequence[str] = GRANULARITIES) -> None:
    """Raise for a granularity that does not exist."""
    if granularity not in known:
        raise ValueError(f"granularity must be one of {known}, found {granularity!r}")


def input_mass(
    recording: Recording,
    origin: Tensor,
    seed: Tensor,
    maps: Mapping[int, Tensor] | None = None,
    *,
    moved: bool = False,
    through: int = 0,
) -> tuple[Tensor, ...]:
    """Carry mass from ``origin`` down to the inputs.

    Args:
        recording: the forward pass.
        origin: where mass starts, on the tape.
        seed: how much, of the shape of ``origin``.
        maps: as of :class:`~captum_transformer_lrp.engine.phases.Rollout`; None for no attention.
        moved: whether to leave out what no attention has moved.
        through: bits of attentions that mass must go through, not around.

    Returns:
        A map for each input, shaped as it is: for images the mass of the patch grid, bilinearly
        upsampled and spread evenly over the channels; for embeddings spread evenly over their
        features; for token ids (N, S).
    """
    rollout = Rollout(maps, through=through)
    arrived = _carried(recording, rollout, origin, seed, recording.all_leaves, moved)
    return at_inputs(recording, arrived, rollout.grids)


def _carried(
    recording: Recording,
    rollout: Rollout,
    origin: Tensor,
    seed: Tensor,
    wanted: Sequence[Tensor],
    moved: bool,
) -> list[Tensor]:
    if moved:
        return moved_mass(recording.tape, rollout, origin, seed, wanted)
    return recording.tape.backward(rollout, origin, seed, wanted)


def at_inputs(
    recording: Recording, arrived_at: Sequence[Tensor], grids: Sequence[tuple[Tensor, Mark]]
) -> tuple[Tensor, ...]:
    """Maps of the inputs from the mass at their leaves and at the grids that tokens are made on."""
    tape = recording.tape
    masses = recording.at_inputs(arrived_at)
    found = []
    kinds = zip(masses, recording.shapes, recording.are_ids, strict=True)
    for index, (mass, shape, are_ids) in enumerate(kinds):
        arrived = mass.sum(-1) if are_ids else _at_pixels(mass, shape, tape.patch_features)
        for grid, mark in grids:
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
    """The tokens that the first attention works on: what skips it, in whatever layout.

    Where additions around it are nested, as where queries are added to what they have attended
    to, it is what skips most: what skips less is made of it.
    """
    tape = recording.tape
    if not tape.streams:
        raise ExplanationError(
            "no skip connection leads around an attention of this model, so it has no sequence of "
            'tokens to attribute to: use granularity="input"'
        )
    found = tape.streams[0].tensor
    for later in tape.streams[1:]:
        of_found, of_later = tape.mark(found), tape.mark(later.tensor)
        assert of_found is not None
        assert of_later is not None
        around = later.attentions & tape.streams[0].attentions
        same = of_later.origins == of_found.origins and of_later.events & ~of_found.events == 0
        if around and same:
            found = later.tensor
    return found


def token_mass(
    recording: Recording,
    seed: Tensor,
    maps: Mapping[int, Tensor] | None = None,
    *,
    moved: bool = False,
    through: int = 0,
) -> Tensor:
    """Mass that the logits send to each token below the first attention, (N, S).

    Takes the arguments of :func:`input_mass`.
    """
    rollout = Rollout(maps, through=through, stops_at_grids=False)
    stream = token_stream(recording)
    (mass,) = _carried(recording, rollout, recording.output, seed, [stream], moved)
    return summed_by_token(recording, mass)


def summed_by_token(recording: Recording, values: Tensor) -> Tensor:
    """Values at the token stream, summed over each token's features, (N, S)."""
    of_tokens = values.sum(feature_axis(recording), keepdim=True)
    return _examples_first(token_stream_mark(recording).examples, of_tokens).flatten(1)


def spread_over_features(recording: Recording, row: Tensor) -> Tensor:
    """The inverse of :func:`token_mass`: (N, S) spread evenly over the token stream's features."""
    stream, examples = token_stream(recording), token_stream_mark(recording).examples
    features = feature_axis(recording)
    of_tokens = stream.narrow(features, 0, 1)
    # Each token's place in the row tells where its value goes.
    places = torch.arange(of_tokens.numel(), device=row.device).reshape(of_tokens.shape)
    tokens = torch.empty_like(row.flatten())
    tokens[_examples_first(examples, places).flatten()] = row.flatten()
    return (tokens.reshape(of_tokens.shape) / stream.shape[features]).expand_as(stream)


def token_stream_mark(recording: Recording) -> Mark:
    """What is known of the token stream."""
    mark = recording.tape.mark(token_stream(recording))
    assert mark is not None
    return mark


def _examples_first(examples: Examples, values: Tensor) -> Tensor:
    """Values with the examples along the first axis, taken out of any that they are folded into."""
    if examples.count == 1:
        return values.unsqueeze(0)
    if examples.axis is None:
        raise ExplanationError(
            "in this model's tokens the examples of the batch cannot be told apart: explain one "
            'example at a time, or use granularity="input"'
        )
    if examples.index is None:
        return values.movedim(examples.axis, 0)
    numbers = torch.tensor(examples.index)
    if (numbers.bincount(minlength=examples.count) * examples.count != len(numbers)).any():
        raise ExplanationError(
            "this model has not as many tokens for each example of the batch: explain one example "
            'at a time, or use granularity="input"'
        )
    order = numbers.argsort(stable=True).to(values.device)
    apart = values.index_select(examples.axis, order)
    return apart.unflatten(examples.axis, (examples.count, -1)).movedim(examples.axis, 0)


def feature_axis(recording: Recording) -> int:
    """Which axis of the token stream a token's features lie along: the last, or C of (N, C, H, W).

    The layer that has made the tokens tells.  If they have been moved since, mass does: linear
    layers spread it evenly over their inputs, so that whatever is put behind the first attention
    arrives alike along that axis.
    """
    stream, mark = token_stream(recording), token_stream_mark(recording)
    step = recording.tape.attentions[0]
    if mark.features is not None:
        return mark.features
    if stream.dim() < 3 or step.output is None:
        return -1
    maps = {step.index: _any_positive(step.attention)}
    for seed in (_any_positive(step.output), torch.ones_like(step.output)):
        rollout = Rollout(maps, stops_at_grids=False)
        (mass,) = recording.tape.backward(rollout, step.output, seed, [stream])
        axes = _constant_axes(mass.detach(), mark.examples.axis or 0)
        if len(axes) == 1:
            return axes[0] - stream.dim()
    return -1


def _any_positive(like: Tensor) -> Tensor:
    """Numbers between 1 and 2 without a pattern, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    return (1 + torch.rand(like.shape, generator=generator)).to(like)


def _constant_axes(values: Tensor, batch: int) -> list[int]:
    """The axes but that of the batch along which what there is at all is always the same."""
    found = []
    for axis in range(values.dim() - 1, -1, -1):
        if axis == batch or values.shape[axis] == 1:
            continue
        largest = values.amax(axis)
        least = torch.where(values > 0, values, torch.inf).amin(axis)
        if bool((largest > 0).any()) and bool((largest - least <= 1e-3 * largest).all()):
            found.append(axis)
    return found


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


def heads_apart(values: Tensor, step: AttentionStep) -> Tensor:
    """A tensor of an attention as (N, heads, ...), if the model has it so or folds heads into N."""
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


def per_head(values: Tensor, step: AttentionStep) -> Tensor:
    """An attention map, or what belongs to it, as (N, heads, queries, keys), if there are such."""
    axes = step.axes
    if axes is not None and axes != (-2, -1):
        values = values.movedim(axes, (-2, -1))
    return heads_apart(values, step)


def as_attention(maps: Tensor, step: AttentionStep) -> Tensor:
    """The inverse of :func:`per_head`."""
    axes = (-2, -1) if step.axes is None else step.axes
    moved = step.attention.movedim(axes, (-2, -1))
    return maps.reshape(moved.shape).movedim((-2, -1), axes)


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


def attention_matrices(
    steps: Sequence[AttentionStep], maps: Mapping[int, Tensor], count: int
) -> list[Tensor]:
    """E_h of each step's map, found in ``maps`` by its index, (N, S, S) each.

    Raises:
        ExplanationError: if the model's attentions are not all between the same tokens.
    """
    matrices = []
    for step in steps:
        weighted = maps[step.index]
        heads = per_head(weighted, step)
        if heads.dim() != 4 or heads.shape[0] != count or heads.shape[2] != heads.shape[3]:
            raise ExplanationError(
                f"{step.name} attends within windows or between different tokens (its map has "
                f"shape {tuple(weighted.shape)}), so there is no one matrix over all tokens: "
                'use granularity="input" or "token" without row_normalize'
            )
        matrices.append(heads.mean(1))
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
    unmoved, moved = rollout_parts(matrices, row_normalize=row_normalize)
    return moved + torch.diag_embed(unmoved)


def rollout_parts(matrices: Sequence[Tensor], *, row_normalize: bool) -> tuple[Tensor, Tensor]:
    """C of eq. 14 in two parts: what no attention has moved, and what at least one has.

    Args:
        matrices: as in :func:`rollout_matrix`.
        row_normalize: as in :func:`rollout_matrix`.

    Returns:
        The diagonal of the first, (N, S), all ones unless rows are normalised; and the second,
        (N, S, S), which is C − I then.  It is computed without that difference.

    Example:
        >>> half = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
        >>> rollout_parts([half, half], row_normalize=False)[1]
        tensor([[[0., 2.],
                 [0., 0.]]])
    """
    unmoved = matrices[0].new_ones(matrices[0].shape[:-1])
    moved = torch.zeros_like(matrices[0])
    for matrix in matrices:
        stays = torch.ones_like(unmoved)
        if row_normalize:
            stays = 1 / (1 + matrix.sum(-1))
            matrix = matrix * stays.unsqueeze(-1)
        moved = stays.unsqueeze(-1) * moved + matrix @ moved + matrix * unmoved.unsqueeze(-2)
        unmoved = stays * unmoved
    return unmoved, moved
