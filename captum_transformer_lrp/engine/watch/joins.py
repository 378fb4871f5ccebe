"""Several tensors in one: what a part of it is made from, and its sum over them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs, replace_tensors
from captum_transformer_lrp.engine.graph.made_of import Slice
from captum_transformer_lrp.engine.graph.marks import Kind, Mark, skipped
from captum_transformer_lrp.engine.graph.op import NoPhase
from captum_transformer_lrp.engine.graph.tensor_table import HeldTable

if TYPE_CHECKING:
    from captum_transformer_lrp.engine.watch.context import Context

_MOST_PARTS = 64
"""A sum over more slices is a pooling of tokens."""


def to_be_joined(watch: Context, active: Sequence[Tensor]) -> HeldTable[Tensor]:
    """Views of activations that are about to be put together.

    The derivative of a part of the result at such a view is that of what was joined; at the
    activation it would be that of all that the others are made from, too.  There are none where
    all activations are alike, and none of them is a sum of slices.
    """
    marks = [mark for one in active if (mark := watch.mark(one))]
    views: HeldTable[Tensor] = HeldTable()
    sums = any(watch.tape.made_of.slices.get(one) is not None for one in active)
    if sums or any(mark.node.events != marks[0].node.events for mark in marks):
        for one, mark in zip(active, marks, strict=True):
            views[one] = view = one.view_as(one)
            watch.tape.marks[view] = mark
            watch.tape.made_of.sources[view] = one
    return views


def note_part(watch: Context, part: Tensor, source: Tensor, mark: Mark) -> Mark:
    """The provenance of a part of a joined tensor: that of the activations it has anything of."""
    joined = watch.tape.made_of.joined.get(source)
    if joined is None:
        return mark
    if part.numel() < source.numel():
        ones = torch.ones_like(part)
        with watch.tape.walking(NoPhase()):
            found = torch.autograd.grad(part, joined, ones, retain_graph=True, allow_unused=True)
        pairs = zip(joined, found, strict=True)
        joined = [one for one, value in pairs if value is not None and bool(value.any())]
        known = [of_one for one in joined if (of_one := watch.mark(one))]
        if known:
            mark = watch.tape.made(Kind.JOIN, known, mark.examples)
        if len(joined) == 1:
            watch.tape.made_of.sources[part] = joined[0]
    if len(joined) > 1:
        watch.tape.made_of.joined[part] = joined
    return mark


def sum_of_joined(
    watch: Context, function: Function, source: Tensor, dim: Any, kwargs: Kwargs
) -> Tensor | None:
    """A sum or mean over an axis along which tensors were joined, as additions of them.

    None if it is anything else, such as a pooling of tokens.
    """
    name = function.__name__
    if name not in ("sum", "mean") or watch.tape.made_of.joined.get(source) is None:
        return None
    dims = [dim] if isinstance(dim, int) else list(dim or ())
    if len(dims) != 1 or source.shape[dims[0]] > _MOST_PARTS or kwargs.get("dtype") is not None:
        return None
    with watch:
        parts = source.unbind(dims[0])
        known = [watch.mark(part) for part in parts]
        passed = [None if one is None else (one.node.events, one.node.attentions) for one in known]
        alike = len(set(passed)) == 1
        if alike and not _are_sums_of_slices(watch, parts):
            return None
        marks = [mark for mark in known if mark is not None]
        if name == "mean" and not alike and not _has_skip(marks):
            return None  # the answers of branches are pooled
        total = reduce(add, parts)
        if kwargs.get("keepdim"):
            total = total.unsqueeze(dims[0])
        return total / len(parts) if name == "mean" else total


def _are_sums_of_slices(watch: Context, parts: Sequence[Tensor]) -> bool:
    """Whether all of several tensors are sums of slices of one."""
    found = [_slices(watch, part) for part in parts]
    first = found[0]
    return first is not None and all(
        one is not None and one[0] is first[0] and one[1][0][1] is not None for one in found
    )


def _has_skip(marks: Sequence[Mark]) -> bool:
    """Whether one of several tensors is what skips another."""
    return any(skipped(one.node, other.node) == 0 for one in marks for other in marks)


def note_move(
    watch: Context, parts: Sequence[Tensor], source: Tensor, function: Function, args: Args,
    kwargs: Kwargs,
) -> None:  # fmt: skip
    """Note how parts of a tensor were taken out of it, so that it can be done to another."""
    for place, part in enumerate(parts):
        if part is not source:
            watch.tape.made_of.moved[part] = (source, function, place, args, kwargs)


def _way(source: Tensor, function: Function, place: int, args: Args, kwargs: Kwargs) -> Any:
    """How a part was taken out of a tensor, to be compared."""
    change = lambda one: None if one is source else id(one)  # noqa: E731
    return function, place, replace_tensors((args, kwargs), change)


def added_before_moving(watch: Context, u: Tensor, v: Tensor) -> Tensor | None:
    """The sum of the same part of two tensors as that part of their sum, which eq. 9–10 are about.

    None if they are not the same part of two tensors of one shape, or if the part of the sum is not
    the sum of the parts, as where elements are sorted or padding is not 0.
    """
    tape = watch.tape
    of_u, of_v = tape.made_of.moved.get(u), tape.made_of.moved.get(v)
    if of_u is None or of_v is None or of_u[0].shape != of_v[0].shape or _way(*of_u) != _way(*of_v):
        return None
    (whole_u, function, place, args, kwargs), whole_v = of_u, of_v[0]
    if whole_u is whole_v or tape.mark(whole_u) is None or tape.mark(whole_v) is None:
        return None
    known = tape.made_of.sums.get(whole_u)
    with watch:
        if known is None or known[0] is not whole_v:
            known = tape.made_of.sums[whole_u] = (whole_v, whole_u + whole_v)
        total = known[1]
        change = lambda one: total if one is whole_u else one  # noqa: E731
        moved = function(*replace_tensors(args, change), **replace_tensors(kwargs, change))
        found: Tensor = moved[place] if isinstance(moved, (tuple, list)) else moved
    return found if torch.equal(found, u + v) else None


def sum_of_slices(watch: Context, u: Tensor, v: Tensor) -> Tensor | None:
    """The sum of slices of one tensor, token by token, as the sum over their axis.

    None if they are anything else, or pixels, whose places a sum over an axis would not keep.
    """
    of_u = _slices(watch, u)
    of_v = None if of_u is None else _slices(watch, v)
    if of_u is None or of_v is None or of_u[0] is not of_v[0] or u.shape != v.shape:
        return None
    marks = [mark for one in (u, v) if (mark := watch.mark(one))]
    if marks[0].pixels.stem or marks[0].node.events != marks[1].node.events:
        return None
    call = watch.call
    slices = [  # copies stay what they are if the model changes its slices in place
        (call(torch.clone, (one,), {}), dim) if one is u or one is v else (one, dim)
        for one, dim in of_u[1] + of_v[1]
    ]
    of_each = [(one,) if dim is None else call(torch.unbind, (one, dim), {}) for one, dim in slices]
    parts = [part for some in of_each for part in some]
    if any(part.shape != u.shape for part in parts):
        parts = [call(torch.reshape, (part, u.shape), {}) for part in parts]
    total: Tensor = call(torch.sum, (call(torch.stack, (parts,), {}), 0), {})
    if not torch.allclose(total, u + v):
        return None
    watch.tape.made_of.slices[total] = (of_u[0], slices)
    return total


def begins_a_sum(watch: Context, constant: Tensor, x: Tensor) -> bool:
    """Whether a constant is the zeros that slices of a tensor are added up into."""
    alike = constant.shape == x.shape and constant.dtype == x.dtype
    return alike and _slices(watch, x) is not None and not bool(constant.any())


def note_sum_of_slice(watch: Context, total: Tensor, one: Tensor, dim: Any) -> None:
    """Note that a sum over one axis of a slice is a sum of slices."""
    dims = [dim] if isinstance(dim, int) else list(dim or ())
    known = _slices(watch, one) if len(dims) == 1 else None
    if known is not None:
        watch.tape.made_of.slices[total] = (known[0], [(one, dims[0])])


def _slices(watch: Context, tensor: Tensor) -> tuple[Tensor, list[Slice]] | None:
    """The tensor that another is a slice of, a multiple of one, or a sum of some; and these."""
    made_of = watch.tape.made_of
    whole: Tensor | None = None
    below: Tensor | None = tensor
    while below is not None:
        if (known := made_of.slices.get(below)) is not None:
            return known if torch.equal(below, tensor) else None
        source = made_of.sources.get(below)
        moved = made_of.moved.get(below)
        if moved is not None:
            joined = made_of.joined.get(moved[0])
            if joined is None:
                whole = moved[0] if moved[0].numel() > below.numel() else whole
                source = moved[0]
        below = source
    return None if whole is None else (whole, [(tensor, None)])
