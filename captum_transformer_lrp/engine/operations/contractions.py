"""Products element by element that are summed: the matrix products that they are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.ancestors import is_of_features
from captum_transformer_lrp.engine.graph.arguments import Function, Kwargs
from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.graph.tape import Tape
from captum_transformer_lrp.engine.operations.scaling import shares_by_attention
from captum_transformer_lrp.engine.watch.context import Context
from captum_transformer_lrp.errors import UnsupportedOperationError

Axes = tuple[int, ...]
"""Axes of a tensor, counted from either end."""


def contracted(
    watch: Context, function: Function, source: Tensor, dim: Any, kwargs: Kwargs
) -> Tensor | None:
    """The sum of a product element by element, as the matrix product that it is.

    None if it is none: if it is no product of two activations, or either lacks an axis.
    """
    factors = watch.tape.made_of.products.get(source)
    name = function.__name__
    if factors is None or name not in ("sum", "mean") or kwargs.get("dtype") is not None:
        return None
    dims = [dim] if isinstance(dim, int) else list(dim or ())
    gone = {one % source.dim() for one in dims}
    letters = "abcdefghijklmnopqrstuvwxyz"[: source.dim()]
    terms, operands = [], []
    known = [mark for factor in factors if (mark := watch.mark(factor))]
    if any(_choose_features(watch.tape, factor, gone, source) for factor in factors):
        return None  # a router's weights, which choose among experts
    for factor in factors:
        extra = source.dim() - factor.dim()
        sizes = [1] * extra + list(factor.shape)
        has = [size == whole for size, whole in zip(sizes, source.shape, strict=True)]
        if not gone or not all(has[axis] for axis in gone):
            return None
        terms.append("".join(one for one, kept in zip(letters, has, strict=True) if kept))
        with watch:
            shape = [size for size, kept in zip(sizes, has, strict=True) if kept]
            operands.append(factor if len(shape) == factor.dim() else factor.reshape(shape))
    if set(terms[0]) == set(terms[1]) and not any(mark.node.attention for mark in known):
        return None  # of two vectors, such as their similarity: nothing chooses among anything
    kept = "".join(one for axis, one in enumerate(letters) if axis not in gone)
    with watch:
        total = torch.einsum(f"{terms[0]},{terms[1]}->{kept}", *operands)
        for axis in sorted(gone) if kwargs.get("keepdim") else ():
            total = total.unsqueeze(axis)
        return total / math.prod(source.shape[axis] for axis in gone) if name == "mean" else total


def _choose_features(tape: Tape, factor: Tensor, gone: set[int], source: Tensor) -> bool:
    """Whether a factor is a softmax over a layer's outputs, not over scores nor over tokens."""
    mark = tape.mark(factor)
    if mark is None or not mark.node.softmax or mark.node.attention:
        return False
    return any(is_of_features(tape, factor, axis - source.dim()) for axis in gone)


class LostAttentionError(UnsupportedOperationError):
    """Attention is spelled so that its map is not known."""


def refuse_weighed(watch: Context, *marks: Mark | None) -> None:
    """Raise for values times attention weights that are not summed over keys."""
    if any(mark is not None and mark.node.weighed for mark in marks):
        raise LostAttentionError(
            f"{watch.names.caller()} multiplies values by attention weights one by one, and "
            "then does something else than to sum the product over the keys, so it is not known "
            "which token attends to which: write it as weights @ values, or sum the product itself"
        )


def shares_of(
    watch: Context,
    operands: tuple[Tensor, Tensor],
    axes: tuple[Axes, Axes],
    free: tuple[Axes, Axes],
) -> tuple[tuple[float, float], int | None]:
    """Which factor of a product that is no attention takes the mass.

    One that has been attended to takes it from queries that choose among contexts, as in linear
    attention.  Where it is itself a query, with features that are compared with those of the
    other's places, as with the pixels of a mask, each takes half.  What goes to these places has
    been moved there, as by an attention; which operand they are is the second result.
    """
    marks = [mark for one in operands if (mark := watch.mark(one))]
    shares = shares_by_attention(marks[0], marks[1])
    if shares == (0.5, 0.5):
        return shares, None
    attended = shares.index(1.0)
    is_query = any(is_of_features(watch.tape, operands[attended], axis) for axis in axes[attended])
    if not is_query or not free[1 - attended]:
        return shares, None
    return (0.5, 0.5), 1 - attended
