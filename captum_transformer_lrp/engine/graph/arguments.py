"""Arguments of watched calls: finding tensors in them, and putting others in their place."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverloadPacket

Function = Callable[..., Any]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and dictionaries."""
    kind = type(value)
    if kind is Tensor:
        return [value]
    found: list[Tensor] = []
    if kind is tuple or kind is list:
        _collect(value, found)
    elif kind is not dict or value:
        _collect((value,), found)
    return found


_ATOMS = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, slice})


def _collect(values: Iterable[Any], found: list[Tensor]) -> None:
    for value in values:
        kind = type(value)
        if kind in _ATOMS:
            continue  # as most arguments are
        if kind is Tensor or isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            _collect(value, found)
        elif isinstance(value, dict) and value:
            _collect(value.values(), found)


def replace_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """A copy of nested tuples, lists and dictionaries with every tensor changed."""
    if type(value) in _ATOMS:
        return value
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        items = [replace_tensors(item, change) for item in value]
        if hasattr(value, "n_sequence_fields"):  # of torch.return_types
            return type(value)(items)
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [replace_tensors(item, change) for item in value]
    if isinstance(value, dict):
        return {key: replace_tensors(item, change) for key, item in value.items()}
    return value


def first_tensor(args: Args, kwargs: Kwargs) -> tuple[Tensor, dict[str, Any]]:
    """The first tensor argument, and the keyword arguments without it."""
    if args:
        return args[0], kwargs
    name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
    return kwargs[name], {key: value for key, value in kwargs.items() if key != name}


def expand(function: Function) -> Function:
    """A Python function of :mod:`torch.nn.functional`, to be watched from the inside.

    PyTorch announces such a function as one call.  The returned function runs the same body but
    does not announce itself, so that the calls in its body are announced instead.
    """
    silent = {
        name: (lambda *args: False)
        for name in (
            "has_torch_function",
            "has_torch_function_unary",
            "has_torch_function_variadic",
        )
    }
    return types.FunctionType(
        function.__code__,
        {**function.__globals__, **silent},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


def title(function: Function) -> str:
    """A function's name for a message, e.g. ``Tensor.mul``."""
    if isinstance(function, OpOverloadPacket):
        return str(function)
    name = str(getattr(function, "__qualname__", None) or getattr(function, "__name__", function))
    return name.replace("_VariableFunctionsClass", "torch").replace("TensorBase", "Tensor")


def node_name(tensor: Tensor) -> str:
    """The name of the autograd node that made a tensor."""
    node = tensor.grad_fn
    return "a custom operation" if node is None else node.name()
