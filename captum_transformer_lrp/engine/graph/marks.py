"""What the tape knows of a tensor: where it comes from and how its examples lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from captum_transformer_lrp.engine.graph.grids import Grid, common_grid
from captum_transformer_lrp.engine.graph.unit import Unit
from captum_transformer_lrp.rules.examples import Examples


@dataclass(frozen=True, eq=False)
class Mark:
    """Provenance of one tensor that descends from the explained inputs.

    Args:
        examples: which example each element belongs to.
        origins: bit mask of the explained inputs that it descends from.
        events: bit mask of the operations (linear, activation, attention, …) that it has passed
            since the stream that it belongs to.  Of two operands of an addition, the one whose
            events are a subset of the other's is the skip connection.
        attentions: bit mask of all attentions upstream, which skip connections do not take away.
        scores: whether it is, or is made from, a product of two activations (query · key).
        weighed: whether it is values times an attention's weights, not summed over keys yet.
        softmax: whether it is, or is made from, a softmax over anything.
        attention: whether it is, or is made from, a softmax over such scores.
        stem: whether nothing but convolutions, element by element operations and pooling has
            touched the pixels of an input, wherever they were moved first.
        grid: of such a tensor how its places lie on the pixels; None if no convolution has been
            there since they were moved.
        planes: the pixels that it has been moved from, (N, C, H, W, ...), as they lay before each
            move, the last move first; none where a layer has been there since.
        source: the index of the explained input that it merely rearranges, or None.
        base: identifies the tensor that this one is computed from element by element, or by
            statistics over some of its axes.
        statistic: whether such a statistic (a mean, a norm) was taken on the way from the base.
        arrangement: identifies how the elements have been moved since the base; None if they have
            not.
        channels: how many outputs the linear layer (or the scaling by a parameter) has whose bare
            product this is, 0 if it is anything else: a bias may follow.
        activated: whether an activation function has been applied to it since the last linear
            operation.
        features: the axis, counted from the end, along which the features of a place lie: that of
            the channels after a convolution, the last after a linear layer; None once they have
            been moved.
        unit: the call of a module with a rule of its own that it was made in, if any.
        columns: of a product of each answer with each, whose rows lie as `examples` says, how the
            examples of the other factor lie; None for anything else.
    """

    examples: Examples
    origins: int = 0
    events: int = 0
    attentions: int = 0
    scores: bool = False
    weighed: bool = False
    softmax: bool = False
    attention: bool = False
    stem: bool = False
    grid: Grid | None = None
    planes: tuple[Tensor, ...] = ()
    source: int | None = None
    base: object | None = None
    statistic: bool = False
    arrangement: object | None = None
    channels: int = 0
    activated: bool = False
    features: int | None = None
    unit: Unit | None = None
    columns: Examples | None = None

    def but(self, **changes: Any) -> Mark:
        """A copy with some facts changed."""
        copy = object.__new__(Mark)  # several times faster than dataclasses.replace()
        vars(copy).update(vars(self), **changes)
        return copy


def merged(marks: list[Mark], examples: Examples) -> Mark:
    """The provenance of a tensor that is made from several."""
    if len(marks) == 1 and marks[0].examples is examples:
        return marks[0]
    first = marks[0]
    origins = events = attentions = 0
    for mark in marks:
        origins |= mark.origins
        events |= mark.events
        attentions |= mark.attentions
    same = all(mark.base is first.base for mark in marks)
    aligned = all(mark.arrangement is first.arrangement for mark in marks)
    return Mark(
        examples=examples,
        origins=origins,
        events=events,
        attentions=attentions,
        scores=any(mark.scores for mark in marks),
        weighed=any(mark.weighed for mark in marks),
        softmax=any(mark.softmax for mark in marks),
        attention=any(mark.attention for mark in marks),
        stem=all(mark.stem for mark in marks),
        grid=common_grid([mark.grid for mark in marks]),
        planes=_common_planes([mark.planes for mark in marks]),
        source=first.source if all(mark.source == first.source for mark in marks) else None,
        base=first.base if same else object(),
        statistic=same and any(mark.statistic for mark in marks),
        arrangement=first.arrangement if aligned else object(),
        columns=next((mark.columns for mark in marks if mark.columns is not None), None),
    )


def _common_planes(planes: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The pixels that all of several tensors have been moved from."""
    first, *others = planes
    return tuple(one for one in first if all(any(one is of for of in own) for own in others))


def is_statistic_of(statistic: Mark, of: Mark) -> bool:
    """Whether one tensor is a mean, norm or the like of what the other is made from."""
    return statistic.statistic and not of.statistic and statistic.base is of.base


def is_function_of_same(u: Mark, v: Mark) -> bool:
    """Whether two tensors are made, element by element, from the same elements."""
    return (
        u.base is not None
        and u.base is v.base
        and u.arrangement is v.arrangement
        and not (u.statistic or v.statistic)
    )


def attends_beyond(mark: Mark, other: Mark) -> bool:
    """Whether one tensor has passed an attention that the other has not."""
    return bool(mark.attentions & ~other.attentions)
