"""Calls that move elements: they are rearranged, joined, copied or cast, never computed with.

To learn where each example's elements go, the call is made again on a stand-in that holds their
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_transformer_lrp.engine.graph.arguments import (
    Args,
    Function,
    Kwargs,
    replace_tensors,
    tensors_in,
)
from captum_transformer_lrp.engine.graph.books import report_filling
from captum_transformer_lrp.engine.graph.marks import NO_PIXELS, Kind, Mark, Move, Pixels
from captum_transformer_lrp.engine.graph.patches import are_pixels, has_axes_of, planes_behind
from captum_transformer_lrp.engine.graph.structure import (
    CASTS,
    COPIES,
    JOINS,
    PERMUTATIONS,
    REARRANGEMENTS,
)
from captum_transformer_lrp.engine.graph.tensor_table import HeldTable
from captum_transformer_lrp.engine.watch import hooks, joins
from captum_transformer_lrp.engine.watch.context import Context, Handler, Handlers
from captum_transformer_lrp.engine.watch.statistics import note_statistic
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.rules.examples import (
    Examples,
    broadcast_examples,
    numbered,
    read_examples,
    rearranged_examples,
    unknown_examples,
)
from captum_transformer_lrp.rules.spellings import spelled


def get_property(watch: Context, function: Function, args: tuple[Any, ...]) -> Any:
    """Read a property of a tensor, such as ``.T`` or ``.real``."""
    if function == hooks.GRAPH:
        return function(*args)
    owner = watch.resolve(args[0]) if isinstance(args[0], Tensor) else args[0]
    mark = watch.mark(owner)
    if mark is None:
        with torch.no_grad():
            result = function(owner)
        if isinstance(result, Tensor) and (name := watch.names.of_constant(owner)):
            watch.names.constants[result] = name
        return result
    result = function(owner)
    if isinstance(result, Tensor) and result.requires_grad and result is not owner:
        _note_rearranged(watch, result, mark, owner, lambda value: function(value))
    return result


def rearrange(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """A call that puts the elements of one activation elsewhere, or copies them."""
    source = next(t for t in tensors_in((args, kwargs)) if watch.mark(t))
    mark = watch.mark(source)
    assert mark is not None
    result = function(*args, **kwargs)
    if hooks.is_hooked(function, args):
        watch.writes.replaced[result] = source
        return result
    if function in COPIES:
        watch.tape.marks[result] = mark
        _note_source(watch, result, mark, source)
        return result

    # The stand-in is laid out in memory in its own way, which view() would object to.
    anyhow = ANYHOW.get(function, function)

    def again(stand_in: Tensor) -> Any:
        if function in _AS_STRIDED:  # reads memory, so it must be laid out alike
            alike = torch.empty_strided(source.shape, source.stride())
            stand_in = alike.copy_(stand_in)
        elif function is torch.view_as_complex:  # needs pairs that lie side by side
            stand_in = stand_in.contiguous()
        if function in _BY_SIZE:  # the numbers are not ordered as what they stand for
            place = 2 if function.__name__ == "topk" else 1
            dim = kwargs.get("dim", args[place] if len(args) > place else -1)
            return stand_in.gather(dim if isinstance(dim, int) else -1, result.indices.cpu())
        change = lambda t: stand_in if t is source else t.cpu()  # noqa: E731
        return anyhow(*replace_tensors(args, change), **replace_tensors(kwargs, change))

    if function in PERMUTATIONS and source.dim() < 4:  # tokens and features, not pixels
        mark = mark.but(pixels=mark.pixels._replace(stem=False))
    _note_rearranged(watch, result, mark, source, again)
    if not mark.node.softmax:
        joins.note_move(watch, tensors_in(result), source, function, args, kwargs)
    return result


def _note_rearranged(
    watch: Context, result: Any, mark: Mark, source: Tensor, again: Callable[[Tensor], Any]
) -> None:
    parts = [tensor for tensor in tensors_in(result) if tensor.requires_grad]
    if not parts or all(part is source for part in parts):
        return
    found: Examples | list[Examples] = mark.examples
    if mark.examples.count > 1 and mark.examples.axis is not None:
        twice = (lambda one: again(torch.complex(one, one))) if source.is_complex() else again
        with torch.no_grad():
            found = rearranged_examples(mark.examples, source.shape, twice)
            if mark.columns is not None:
                columns = rearranged_examples(mark.columns, source.shape, twice)
                one = columns if isinstance(columns, Examples) else unknown_examples(mark.columns)
                mark = mark.but(columns=one if columns != found else None)
    if isinstance(found, Examples):
        found = [found] * len(parts)
    pixels = mark.pixels
    for part, examples in zip(parts, found, strict=False):
        if mark.pixels is not NO_PIXELS:
            stem = mark.pixels.stem and has_axes_of(part, source)
            pixels = Pixels(stem, None, planes_behind(watch.tape, mark, source))
        moved = Move(reduces=mark.is_statistic)
        known = mark.but(examples=examples, moved=moved, pixels=pixels)
        _note_source(watch, part, mark, source)
        watch.tape.marks[part] = joins.note_part(watch, part, source, known)


def _note_source(watch: Context, result: Tensor, mark: Mark, source: Tensor) -> None:
    """Note what a copy is of, unless it is a map, which is no tokens and large."""
    if result is not source and not (mark.node.scores or mark.node.softmax):
        watch.tape.made_of.sources[result] = source


def join(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """A call that puts the elements of several tensors side by side."""
    active = [t for t in tensors_in((args, kwargs)) if watch.mark(t)]
    marks = [mark for t in active if (mark := watch.mark(t))]
    if views := joins.to_be_joined(watch, active):
        args, kwargs, active = replace_tensors((args, kwargs, active), lambda t: views.get(t, t))
    result = function(*args, **kwargs)
    if isinstance(result, Tensor):
        if result.requires_grad:
            examples = _joined_examples(watch, function, args, kwargs, active, result)
            if not examples.known and (constants := _constants_among(watch, active)):
                change = lambda t: constants.get(t, t)  # noqa: E731
                return watch.call(
                    function, replace_tensors(args, change), replace_tensors(kwargs, change)
                )
            mark = watch.tape.made(Kind.JOIN, marks, examples)
            pixels = mark.pixels._replace(stem=are_pixels(mark, active, result))
            watch.tape.marks[result] = mark.but(pixels=pixels)
            if views:
                watch.tape.made_of.joined[result] = list(views.values())
            again = again_with(function, args, kwargs)
            watch.report_constants(result, tensors_in((args, kwargs)), again)
        return result
    for part in tensors_in(result):
        if part.requires_grad:
            examples = broadcast_examples(marks[0].examples, active[0].shape, part.shape)
            watch.tape.marks[part] = watch.tape.made(Kind.JOIN, marks, examples)
    return result


def _constants_among(watch: Context, active: Sequence[Tensor]) -> HeldTable[Tensor]:
    """Those parts of activations that hold constants alone, detached.

    Where class tokens have been joined to activations and are cut out again, they carry the
    examples of the rows that they happened to be cut from, but are made from none of them.
    """
    found: HeldTable[Tensor] = HeldTable()
    for part in active:
        mark = watch.mark(part)
        if mark is not None and not mark.node.attentions and not _depends_on_inputs(watch, part):
            found[part] = part.detach()
            watch.names.constants[found[part]] = f"{watch.names.caller()} (constant)"
    return found if len(found) < len(active) else HeldTable()


def _depends_on_inputs(watch: Context, part: Tensor) -> bool:
    """Whether anything of a part of an activation arrives at the inputs."""
    if not watch.tape.phases:  # nothing is kept that one could go through
        raise ExplanationError(
            f"in {watch.names.caller()} constants are cut out of activations that they were joined "
            "to, which takes the whole forward pass to find out: explain the model without "
            "checkpointing, or one example at a time"
        )
    given = [tensor for tensor, mark in watch.tape.marks.items() if mark.node.source is not None]
    leaves = [leaf for leaf in given if leaf.is_leaf]
    leaves += [leaf for _, leaf, _ in watch.look_ups.leaves]
    phase = watch.tape.phases[0]()
    arrived = watch.tape.backward(phase, part, torch.ones_like(part), leaves)
    return any(bool(one.any()) for one in arrived)


def _joined_examples(
    watch: Context,
    function: Function,
    args: Args,
    kwargs: Kwargs,
    active: Sequence[Tensor],
    result: Tensor,
) -> Examples:
    active = [tensor for tensor in active if tensor.numel()] or active
    known = [mark.examples for tensor in active if (mark := watch.mark(tensor))]
    if known[0].count == 1:
        return known[0]
    first = active[0]
    stacked = result.dim() == first.dim() + 1
    if (
        function not in _SCATTERS
        and not stacked
        and all(one.axis == known[0].axis for one in known)
    ):
        simple = broadcast_examples(known[0], first.shape, result.shape)
        if simple.known and all(one == known[0] for one in known):
            return simple
    if not all(one.known for one in known):
        return unknown_examples(known[0])
    with torch.no_grad():
        stand_ins = HeldTable(
            (value, numbered(mark.examples, value.shape))
            if (mark := watch.mark(value))
            else (value, torch.zeros(value.shape) if value.is_floating_point() else value.cpu())
            for value in tensors_in((args, kwargs))
        )
        return read_examples(again_with(function, args, kwargs)(stand_ins), known[0].count)


def cast(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """A call that changes an activation's dtype or device."""
    source = args[0]
    mark = watch.mark(source)
    if mark is None:
        with torch.no_grad():
            return function(*args, **kwargs)
    result = function(*args, **kwargs)
    if watch.precision.loses(source, result):
        # That the model does is a matter of its speed.
        result = source.to(result.device)
    if result.requires_grad and result is not source:
        watch.tape.marks[result] = mark
        _note_source(watch, result, mark, source)
    return result


def called_with(
    function: Function, args: Args, kwargs: Kwargs, change: Callable[[Tensor], Any]
) -> Any:
    """The same call with every tensor changed."""
    return function(*replace_tensors(args, change), **replace_tensors(kwargs, change))


def again_with(
    function: Function, args: Args, kwargs: Kwargs
) -> Callable[[HeldTable[Tensor]], Tensor]:
    """The same call on other tensors, given for each of its own."""

    def call(replaced: HeldTable[Tensor]) -> Tensor:
        result: Tensor = called_with(function, args, kwargs, lambda tensor: replaced[tensor])
        return result

    return call


def _pad_with_nobody(input: Tensor, pad: Any, mode: Any = "constant", value: Any = None) -> Tensor:
    """Pad a stand-in: whatever the value is, it is none of an example's."""
    return nn.functional.pad(input, pad, mode if isinstance(mode, str) else "constant")


HANDLERS = Handlers()


@HANDLERS.binds(*spelled("pad", "constant_pad_nd"))
def _pad(
    watch: Context, function: Function, input: Tensor, pad: Any, mode: Any = "constant",
    value: Any = None,
) -> Any:  # fmt: skip
    """Padding takes relevance where something is made of it, such as a norm's bias or a sum."""
    if not isinstance(mode, str):  # of constant_pad_nd
        mode, value = "constant", mode
    result = rearrange(watch, nn.functional.pad, (input, pad, mode, value), {})
    of_x, mark = watch.mark(input), watch.mark(result)
    if mark is not None and of_x is not None and (grid := of_x.pixels.grid) is not None:
        pixels = mark.pixels._replace(grid=grid.padded(pad))
        watch.tape.marks[result] = mark.but(pixels=pixels)
    if watch.tape.keeps_books and mode == "constant" and math.isfinite(value or 0):
        inside = nn.functional.pad(torch.ones_like(input, dtype=torch.bool), pad)
        report_filling(watch.tape, result, inside, f"{watch.names.caller()} (padding)")
    return result


@HANDLERS.handles(*spelled("where"))
def _where(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """Numbers among the choices become tensors, so that their share is reported."""
    if function is Tensor.where:  # x.where(condition, other)
        args = (args[1] if len(args) > 1 else kwargs.pop("condition"), args[0], *args[2:])

    def bind(condition: Tensor, input: Any, other: Any) -> Any:
        return condition, input, other

    condition, *choices = bind(*args, **kwargs)
    like = next(choice for choice in choices if isinstance(choice, Tensor))
    choices = [
        choice
        if isinstance(choice, Tensor)
        else torch.full((), choice, dtype=like.dtype, device=like.device)
        for choice in choices
    ]
    return join(watch, torch.where, (condition, *choices), {})


@HANDLERS.binds(*spelled("topk"))
def _topk(
    watch: Context, function: Function, input: Tensor, k: int, *args: Any, **kwargs: Any
) -> Any:
    """The largest elements; the single largest is a maximum."""
    result = rearrange(watch, function, (input, k, *args), kwargs)
    if k == 1:
        note_statistic(watch, result.values, input)
    return result


ANYHOW: dict[Function, Function] = {
    Tensor.view: Tensor.reshape,
    Tensor.view_as: Tensor.reshape_as,
    nn.functional.pad: _pad_with_nobody,
    torch.constant_pad_nd: _pad_with_nobody,
}
"""What is done to a stand-in in the place of a call."""

_SCATTERS = frozenset(
    spelled(
        "index_put", "masked_scatter", "scatter", "index_copy", "slice_scatter", "select_scatter",
        "diagonal_scatter",
    )
)  # fmt: skip

_BY_SIZE, _AS_STRIDED = frozenset(spelled("sort", "topk")), frozenset(spelled("as_strided"))
MOVES: dict[Function, Handler] = {
    **dict.fromkeys(CASTS, cast),
    **dict.fromkeys(JOINS, join),
    **dict.fromkeys(REARRANGEMENTS, rearrange),
}
"""What is done with calls that only move elements, unless they have a rule."""
