"""In-place updates: made out of place, so that the tape keeps what was there before.

The model goes on with its own tensors; from then on another stands for each that it has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import (
    Args,
    Function,
    Kwargs,
    first_tensor,
    tensors_in,
    title,
)
from captum_transformer_lrp.engine.graph.marks import Kind, Mark
from captum_transformer_lrp.engine.graph.structure import OUT_OF_PLACE
from captum_transformer_lrp.engine.graph.tensor_table import HeldTable
from captum_transformer_lrp.engine.graph.values import is_laid_out_plainly
from captum_transformer_lrp.engine.watch import moves
from captum_transformer_lrp.engine.watch.constant_calls import without_activation
from captum_transformer_lrp.engine.watch.context import Context
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.rules.examples import (
    Examples,
    numbered,
    read_examples,
    unknown_examples,
)


def updated(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """A call that changes its first argument: made out of place, and remembered."""
    target, _ = first_tensor(args, kwargs)
    active = any(watch.mark(tensor) for tensor in tensors_in((args, kwargs)))
    if not active:
        return without_activation(watch, function, args, kwargs)
    if function in OUT_OF_PLACE:
        result = watch.call(OUT_OF_PLACE[function], args, kwargs)
    else:
        index, value = (..., args[1]) if function is Tensor.copy_ else args[1:]
        result = _set_item(watch, target, index, value)
    replace(watch, target, result)
    return result


REPLACEMENTS = frozenset({Tensor.resize_, Tensor.resize_as_})
"""The calls that give a tensor another memory."""


def check_memory(watch: Context, function: Function, args: Args) -> None:
    """Raise for ``x.resize_(...)`` or ``x.data = ...`` of an activation: no record follows it."""
    target = watch.resolve(args[0])
    harmless = function not in REPLACEMENTS and getattr(function, "__self__", None) not in _VALUES
    if not harmless and watch.mark(target) is not None:
        raise ExplanationError(
            f"{watch.names.caller()} puts other memory in the place of an activation "
            f"({title(function)}), so that it is not known what was computed from what: make a new "
            "tensor instead"
        )


_VALUES = (Tensor.data, Tensor.real, Tensor.imag)


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _set_item(watch: Context, target: Tensor, index: Any, value: Any) -> Tensor:
    """``target[index] = value`` (and ``target.copy_(value)``), made out of place."""
    if not isinstance(value, Tensor):
        value = torch.full((), value, dtype=target.dtype, device=target.device)

    def written(onto: Tensor, what: Tensor) -> Tensor:
        changed = onto.to(torch.promote_types(onto.dtype, what.dtype), copy=True)
        changed[index] = what.to(changed.dtype)
        return changed

    def again(replaced: HeldTable[Tensor]) -> Tensor:
        return written(replaced[target], replaced[value])

    with torch.enable_grad():
        changed = written(target, value)
    of_target, of_value = watch.mark(target), watch.mark(value)
    examples = _written_examples(of_target, target, of_value, value, written)
    marks = [mark for mark in (of_target, of_value) if mark is not None]
    watch.tape.marks[changed] = watch.tape.made(Kind.JOIN, marks, examples)
    watch.report_constants(changed, [target, value], again)
    return changed


def _written_examples(
    of_target: Mark | None,
    target: Tensor,
    of_value: Mark | None,
    value: Tensor,
    written: Callable[[Tensor, Tensor], Tensor],
) -> Examples:
    """The examples of a tensor that another has been written into."""
    known = [mark.examples for mark in (of_target, of_value) if mark is not None]
    if known[0].count == 1 or of_value is None:
        return known[0]
    if not all(one.known for one in known):
        return unknown_examples(known[0])
    numbers = [
        torch.zeros(one.shape) if mark is None else numbered(mark.examples, one.shape)
        for mark, one in ((of_target, target), (of_value, value))
    ]
    with torch.no_grad():
        return read_examples(written(*numbers), known[0].count)


def replace(watch: Context, target: Tensor, result: Tensor) -> None:
    """From now on ``result`` stands for ``target``, which the model changed in place."""
    if result is target:
        return
    watch.writes.replaced[target] = result
    if _memory(result) == _memory(target):  # squeeze_() and the like change no value
        return
    base = target._base
    if base is not None and base.shape.numel() > 0:
        _write_through(watch, base, target, result)
    watch.writes.memory.add(_memory(target))


def _write_through(watch: Context, base: Tensor, view: Tensor, result: Tensor) -> None:
    """What was written into a view has been written into the tensor that it is a view of."""
    if not is_laid_out_plainly(base):
        return  # reading it is an error from now on
    place = view.shape, view.stride(), view.storage_offset()
    onto = base
    if base.dtype != result.dtype:
        onto = base.to(result.dtype)
        if (mark := watch.mark(base)) is not None:
            watch.tape.marks[onto] = mark
    changed = moves.join(watch, _written_at, (onto, result, *place), {})
    watch.writes.replaced[base] = changed


def view_made_again(watch: Context, tensor: Tensor) -> Tensor:
    """A view whose memory was changed since, read from what the memory should be now."""
    base = tensor._base
    found = None if base is None else watch.writes.replaced.get(base)
    if base is None or found is None or not is_laid_out_plainly(base):
        raise ExplanationError(
            f"{watch.names.caller()} reads a view of a tensor that was changed in place since; "
            "change the tensor itself, or copy it first"
        )
    now = watch.resolve(base)
    place = tensor.shape, tensor.stride(), tensor.storage_offset()
    return watch.call(torch.as_strided, (now.contiguous(), *place), {})


def _written_at(
    onto: Tensor, what: Tensor, size: torch.Size, stride: tuple[int, ...], offset: int
) -> Tensor:
    """``onto``, with ``what`` in the place of a view of its memory.

    The derivative of PyTorch's own ``as_strided_scatter`` is wrong where two such calls follow
    each other (seen in 2.14).
    """
    places = torch.arange(onto.numel(), device=onto.device).as_strided(size, stride, offset)
    return onto.flatten().index_copy(0, places.flatten(), what.flatten()).view(onto.shape)
