"""Whether a call keeps the examples of a batch apart; what mixes them is an error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.rules.examples import Examples, broadcast_examples

if TYPE_CHECKING:
    from captum_transformer_lrp.engine.watch.context import Context


def require_known(watch: Context, mark: Mark) -> None:
    """Raise for a tensor that is computed from several examples."""
    if not mark.examples.known:
        watch.refuse_mixed()


def require_apart(watch: Context, examples: Examples, axes: Iterable[int], dims: int) -> None:
    """Raise if what is computed along ``axes`` of a tensor of ``dims`` axes mixes examples."""
    if examples.count == 1 or examples.axis is None:
        return
    if examples.axis in {axis % dims for axis in axes} and not _is_of_one(examples):
        watch.refuse_mixed()


def common_examples(
    watch: Context, operands: Sequence[tuple[Mark, Tensor]], shape: torch.Size
) -> Examples:
    """The examples of what is computed element by element from several tensors.

    Raises:
        MixedExamplesError: unless all have the same example at each element.
    """
    found = agreed([broadcast_examples(mark.examples, one.shape, shape) for mark, one in operands])
    if not found.known:
        watch.refuse_mixed()
    return found


def agreed(found: Sequence[Examples]) -> Examples:
    """The examples of what has been made from several tensors; unknown where they do not agree."""
    first = found[0]
    for other in found[1:]:
        first = _both(first, other)
    return first


def of_one_example(examples: Examples, result: Tensor) -> Examples:
    """The examples of a sum over an axis of examples: unknown, unless all are the same one."""
    numbers = _numbers(examples)
    if len(numbers) > 1 or result.dim() == 0:
        return Examples(examples.count, axis=None)
    return Examples(examples.count, 0, tuple(numbers or {-1}) * result.shape[0])


def _both(one: Examples, other: Examples) -> Examples:
    unknown = Examples(one.count, axis=None)
    if one == other or one.count == 1:
        return one
    if one.axis is None or other.axis is None:
        return unknown
    if _is_of_one(one) and _is_of_one(other) and _numbers(one) == _numbers(other):
        return one
    lines = _line(one), _line(other)
    if one.axis != other.axis or len(lines[0]) != len(lines[1]):
        return unknown
    pairs = list(zip(*lines, strict=True))
    if any(a != b and -1 not in (a, b) for a, b in pairs):
        return unknown
    return Examples(one.count, one.axis, tuple(a if a >= 0 else b for a, b in pairs))


def is_in_order(examples: Examples) -> bool:
    """Whether the examples lie one after another along the first axis."""
    return examples.count == 1 or (examples.axis == 0 and _line(examples) == _in_order(examples))


def _in_order(examples: Examples) -> tuple[int, ...]:
    return tuple(range(examples.count))


def _line(examples: Examples) -> tuple[int, ...]:
    return _in_order(examples) if examples.index is None else examples.index


def _numbers(examples: Examples) -> set[int]:
    return set(_line(examples)) - {-1}


def _is_of_one(examples: Examples) -> bool:
    """Whether there is nothing of more than one example."""
    return len(_numbers(examples)) <= 1
