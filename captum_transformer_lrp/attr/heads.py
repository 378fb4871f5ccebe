"""Attention maps by their heads, in whatever layout the model has them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.lineage.passes import beside
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.errors import ExplanationError


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


def check_heads(maps: Sequence[Tensor], steps: Sequence[AttentionStep], count: int) -> None:
    """Raise unless every map is (N, heads, queries, keys)."""
    for one, step in zip(maps, steps, strict=True):
        if one.dim() < 4 or one.shape[0] != count:
            raise ExplanationError(
                f"{step.name} has no heads that can be told apart (its map has shape "
                f"{tuple(step.attention.shape)}, of {count} examples)"
            )


def fused_heads(recording: Recording, values: Tensor, step: AttentionStep, fusion: str) -> Tensor:
    """The mean, max or min over heads, (N, 1, queries, keys).

    Raises:
        ExplanationError: if the model computes the heads of one attention in several calls.
    """
    if len(beside(recording.tape, recording.tape.attentions, step)) > 1:
        raise ExplanationError(
            f"{step.name} attends in several calls beside each other, which may be its heads, so "
            'they cannot be fused: use head_fusion="mean" and no discard_ratio'
        )
    maps = per_head(values, step)
    check_heads([maps], [step], step.mark.examples.count)
    if fusion == "mean":
        return maps.mean(1, keepdim=True)
    return maps.amax(1, keepdim=True) if fusion == "max" else maps.amin(1, keepdim=True)
