"""What the tape knows of a tensor: where it comes from and how its examples lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_transformer_lrp.rules.call import Examples

if TYPE_CHECKING:
    from captum_transformer_lrp.engine.watch.units import Unit


@dataclass(frozen=True, eq=False)
class Mark:
    """Provenance of one tensor that descends from the explained inputs.

    Args:
        examples: which example each element belongs to.
        origins: bit mask of the explained inputs that it descends from.
        events: bit mask of the operations (linear, activation, attention, …) that it has passed
            since the stream that it belongs to; of two operands of an addition, the one whose
            events are a subset of the other's is the skip connection.
        attentions: bit mask of all attentions upstream, which skip connections do not take away.
        scores: whether it is, or is made from, a product of two activations (query · key).
        softmax: whether it is, or is made from, a softmax over anything.
        attention: whether it is, or is made from, a softmax over such scores.
        stem: whether nothing but convolutions, element by element operations and pooling has
            touched the input, so that its axes are still (N, C, ...).
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
    """

    examples: Examples
    origins: int = 0
    events: int = 0
    attentions: int = 0
    scores: bool = False
    softmax: bool = False
    attention: bool = False
    stem: bool = False
    source: int | None = None
    base: object | None = None
    statistic: bool = False
    arrangement: object | None = None
    channels: int = 0
    activated: bool = False
    features: int | None = None
    unit: Unit | None = None

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
        softmax=any(mark.softmax for mark in marks),
        attention=any(mark.attention for mark in marks),
        stem=all(mark.stem for mark in marks),
        source=first.source if all(mark.source == first.source for mark in marks) else None,
        base=first.base if same else object(),
        statistic=same and any(mark.statistic for mark in marks),
        arrangement=first.arrangement if aligned else object(),
    )


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


def broadcast_examples(examples: Examples, source: torch.Size, result: torch.Size) -> Examples:
    """The examples of an operation's result whose trailing axes are those of its source."""
    if examples.count == 1 or examples.axis is None:
        return examples
    axis = examples.axis - len(source) + len(result)
    if axis >= 0 and result[axis] == source[examples.axis]:
        return replace(examples, axis=axis)
    return replace(examples, axis=None, index=None)


def unknown_examples(examples: Examples) -> Examples:
    """The examples of a tensor of which nothing is known but their number."""
    return examples if examples.count == 1 else Examples(examples.count, axis=None)


def rearranged_examples(
    examples: Examples, shape: torch.Size, rearrange: Callable[[Tensor], Any]
) -> Examples | list[Examples]:
    """Follow the examples through an operation that only moves elements.

    The operation itself is run on a small stand-in whose elements are the numbers of their
    examples: no table of shapes can know more about ``view``, ``roll`` or ``einops`` than they do.
    """
    if examples.count == 1 or examples.axis is None:
        return examples
    result = rearrange(numbered(examples, shape))
    if isinstance(result, (tuple, list)):
        return [read_examples(part, examples.count) for part in result]
    return read_examples(result, examples.count)


def numbered(examples: Examples, shape: torch.Size) -> Tensor:
    """A stand-in of the given shape whose elements are the numbers of their examples.

    They are counted from 1, as zeros are padding, and floats, as not everything is written for
    integers.  It is an expanded vector, so that views of it cost nothing.
    """
    assert examples.axis is not None
    index = range(examples.count) if examples.index is None else examples.index
    rows = torch.tensor([number + 1.0 for number in index])
    view = [1] * len(shape)
    view[examples.axis] = -1
    return rows.view(view).expand(shape)


def read_examples(numbers: Tensor, count: int) -> Examples:
    """Find the one axis along which a tensor of example numbers, counted from 1, varies."""
    unknown = Examples(count, axis=None)
    if numbers.dim() == 0:
        return unknown
    if numbers.is_complex():
        numbers = numbers.real
    if numbers.numel() == 0:  # the rows of an expert that no token is sent to
        return Examples(count, list(numbers.shape).index(0), ())
    moving = [axis for axis in range(numbers.dim()) if numbers.stride(axis) != 0]
    lines = {axis: _example_line(numbers, axis, alone=len(moving) == 1) for axis in moving or [0]}
    varying = [axis for axis, line in lines.items() if len(set(line) - {-1}) > 1]
    if len(moving) > 1:
        told_apart = varying if len(varying) == 1 else list(lines)
        lines = {axis: lines[axis] for axis in told_apart if _is_one_each(numbers, axis, lines)}
        varying = [axis for axis in varying if axis in lines]
    if not lines or len(varying) > 1:
        return unknown
    # All of one example: the axis along which there is padding too, or else any, so the first.
    padded = [axis for axis, line in lines.items() if len(set(line)) > 1]
    if not varying and len(padded) > 1:
        return unknown
    axis = (varying or padded or list(lines))[0]
    line = lines[axis]
    if set(line) == {-1}:
        return unknown
    # Where an example has nothing but padding, as one without a global token, the place is its own.
    in_place = len(line) == count and all(one in (-1, place) for place, one in enumerate(line))
    return Examples(count, axis, None if in_place else line)


def _is_one_each(numbers: Tensor, axis: int, lines: dict[int, tuple[int, ...]]) -> bool:
    """Whether each position of an axis has elements of one example alone, or of nobody."""
    others = [other for other in range(numbers.dim()) if other != axis]
    largest = [place + 1 for place in lines[axis]]
    if not others or numbers.amin(others).tolist() == largest:
        return True
    of_somebody = torch.where(numbers.isfinite() & (numbers > 0), numbers, torch.inf)
    pairs = zip(of_somebody.amin(others).tolist(), largest, strict=True)
    return all(smallest in (one, torch.inf) for smallest, one in pairs)


def _example_line(numbers: Tensor, axis: int, *, alone: bool) -> tuple[int, ...]:
    """The example of each position of an axis, -1 for what belongs to none (padding)."""
    others = [other for other in range(numbers.dim()) if other != axis]
    if alone:  # still an expanded vector
        line = numbers[tuple(slice(None) if a == axis else 0 for a in range(numbers.dim()))]
    else:
        line = numbers.amax(others) if others else numbers
    return tuple(int(value) - 1 if isfinite(value) else -1 for value in line.tolist())
