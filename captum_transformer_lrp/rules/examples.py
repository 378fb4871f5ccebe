"""Which example of the batch each element of a tensor belongs to, and where moves take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.errors import ExplanationError

_MIXED = (
    "the examples of the batch cannot be told apart in one of the model's tensors, so relevance "
    "cannot be summed for each: explain one example at a time"
)


@dataclass(frozen=True)
class Examples:
    """Which example of the batch each element of a tensor belongs to.

    Relevance is normalised per example, and the examples need not lie along dimension 0: windowed
    attention folds them into ``batch · windows``, sequence-first code keeps them in dimension 1.

    Args:
        count: number of examples.
        axis: the dimension that the examples lie along, or None where that is not known.
        index: for each position of that dimension, its example, or -1 for padding that belongs to
            none; None if position = example.
    """

    count: int
    axis: int | None = 0
    index: tuple[int, ...] | None = None

    @property
    def known(self) -> bool:
        """Whether per-example sums can be taken."""
        return self.count == 1 or self.axis is not None

    def sum(self, values: Tensor) -> Tensor:
        """Sum of ``values`` (shape as the call's output) for each example, shape ``(count,)``."""
        if self.count == 1:
            return values.sum().reshape(1)
        if self.axis is None:
            raise ExplanationError(_MIXED)
        rows = values.movedim(self.axis, 0).flatten(1).sum(1) if values.dim() > 1 else values
        if self.index is None:
            return rows
        index = torch.tensor(self.index, dtype=torch.long, device=values.device)
        sums = rows.new_zeros(self.count + 1).index_add(0, index % (self.count + 1), rows)
        return sums[: self.count]

    def spread(self, per_example: Tensor, dim: int) -> Tensor:
        """``per_example`` of shape ``(count,)``, shaped to multiply a tensor of ``dim`` axes."""
        if self.count == 1:
            return per_example.reshape([1] * dim)
        if self.axis is None:
            raise ExplanationError(_MIXED)
        rows = per_example
        if self.index is not None:
            with_nobody = torch.cat([per_example, per_example.new_zeros(1)])
            index = torch.tensor(self.index, dtype=torch.long, device=per_example.device)
            rows = with_nobody[index]
        shape = [1] * dim
        shape[self.axis] = -1
        return rows.reshape(shape)


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
