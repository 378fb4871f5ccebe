"""Calls on constants alone: parameters, buffers, masks, and token ids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.ancestors import is_on_tape
from captum_transformer_lrp.engine.graph.arguments import (
    Args,
    Function,
    Kwargs,
    node_name,
    replace_tensors,
    tensors_in,
)
from captum_transformer_lrp.engine.graph.structure import DETACHING, STATISTICS, UPDATES
from captum_transformer_lrp.engine.watch.context import Context
from captum_transformer_lrp.engine.watch.statistics import (
    note_detached,
    reduced_axes,
    reduced_examples,
)
from captum_transformer_lrp.engine.watch.token_calls import with_token_ids
from captum_transformer_lrp.errors import UnsupportedOperationError
from captum_transformer_lrp.rules.spellings import spelled


def of_no_call(watch: Context, tensor: Tensor) -> str:
    """The message about a tensor that depends on activations, but on no call that was seen.

    What a model keeps from an earlier call, with the graph of its parameters, is a constant.
    """
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        _refuse_transformed(watch, tensor)
        return ""
    unknown = tensor.requires_grad and not tensor.is_leaf and tensor not in watch.names.constants
    if not (unknown and is_on_tape(watch.tape, tensor)):
        return ""
    return (
        f"{watch.names.caller()} uses a result of {node_name(tensor)}, a custom operation "
        "that PyTorch does not announce to anybody: write it with PyTorch functions"
    )


def _refuse_transformed(watch: Context, tensor: Tensor) -> None:
    """Raise for an activation inside of torch.vmap or another transform of functions."""
    inside = tensor
    while torch._C._functorch.is_functorch_wrapped_tensor(inside):
        inside = torch._C._functorch.get_unwrapped(inside)
    if watch.mark(inside) is not None or is_on_tape(watch.tape, inside):
        raise UnsupportedOperationError(
            f"{watch.names.caller()} computes with activations inside of torch.vmap or another "
            "transform of torch.func, where calls are not what they seem: write it with batched "
            "operations"
        )


def ignored(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """A call whose result is no activation; what has been detached is known for what it was."""
    result = function(*args, **kwargs)
    if function in DETACHING and (mark := watch.mark(args[0])) is not None:
        watch.tape.made_of.detached[result] = mark
    return result


def without_activation(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """A call on constants or token ids alone."""
    for tensor in tensors_in((args, kwargs)):
        if tensor in watch.look_ups.ids:
            return with_token_ids(watch, function, args, kwargs)
    for tensor in tensors_in((args, kwargs)):
        if message := of_no_call(watch, tensor):
            raise UnsupportedOperationError(message)
    if function not in UPDATES and _is_mixed(args, kwargs):
        args, kwargs = replace_tensors((args, kwargs), watch.precision.raised_constant)
    with torch.no_grad():
        result = function(*args, **kwargs)
    _note_statistic(watch, function, args, kwargs, result)
    name = next((n for n in map(watch.names.of_constant, tensors_in((args, kwargs))) if n), "")
    if name:
        for tensor in tensors_in(result):
            if tensor.is_floating_point() and tensor not in watch.names.state:
                watch.names.note(tensor, name, is_repeated=function in _REPEATS)
    return result


def _note_statistic(
    watch: Context, function: Function, args: Args, kwargs: Kwargs, result: Any
) -> None:
    """Note a mean or an extremum of a detached activation."""
    mark = watch.tape.made_of.detached.get(args[0]) if args and function in STATISTICS else None
    if mark is not None:
        value = result if isinstance(result, Tensor) else result[0]
        dim = reduced_axes(function, args, kwargs)
        mark = mark.but(examples=reduced_examples(mark.examples, dim, args[0], value))
        note_detached(watch, value, mark, is_statistic=True)


def _is_mixed(args: Args, kwargs: Kwargs) -> bool:
    """Whether constants made like activations, in the tape's precision, meet the model's own.

    The smallest number of the tape's precision, which masks are multiplied by, is one too.
    """
    kinds = {one.dtype for one in tensors_in((args, kwargs)) if one.is_floating_point()}
    extreme = any(isinstance(one, float) and abs(one) > _LARGEST_FLOAT32 for one in args)
    return len(kinds) > 1 or extreme


_LARGEST_FLOAT32 = torch.finfo(torch.float32).max

_REPEATS = frozenset(spelled("expand", "expand_as", "broadcast_to", "repeat", "tile"))
