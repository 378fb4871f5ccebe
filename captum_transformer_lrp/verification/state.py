"""What an explanation must leave as it was: the model, its attributes, inputs, random numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def state_of(model: object, inputs: Iterable[Tensor]) -> dict[str, Any]:
    """Everything that an explanation might change, by name: of a module, and of inputs."""
    found: dict[str, Any] = {f"input {n}": _of_tensor(one) for n, one in enumerate(inputs)}
    found["the random number generator"] = torch.get_rng_state().numpy().tobytes()
    for path, module in model.named_modules() if isinstance(model, nn.Module) else ():
        prefix = f"{path}." if path else ""
        found[f"the class of {path or 'the model'}"] = type(module)
        for name, value in vars(module).items():
            found[prefix + name] = _of_value(value)
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            found[prefix + name] = None if tensor is None else _of_tensor(tensor)
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of what differs."""
    nothing = object()
    return sorted(
        name
        for name in before.keys() | after.keys()
        if before.get(name, nothing) != after.get(name, nothing)
    )


class _Same:
    """An object that equals itself alone; kept, so that no other gets its place in memory."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._value is self._value

    __hash__ = object.__hash__


def _of_value(value: Any) -> Any:
    """An attribute: numbers and text by value, containers by what they hold, others by identity."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if isinstance(value, dict):
        return [(repr(key), _shallow(one)) for key, one in value.items()]
    if isinstance(value, (list, tuple)):
        return [_shallow(one) for one in value]
    return _Same(value)


def _shallow(value: Any) -> Any:
    return repr(value) if isinstance(value, _PLAIN) else _Same(value)


def _of_tensor(tensor: Tensor) -> Any:
    """Which tensor it is, how often it has been written to, and a sum of its bytes.

    Writes through ``tensor.data`` leave no other trace than in the bytes.
    """
    gradient = tensor.grad if tensor.is_leaf else None
    return (
        _Same(tensor),
        tensor.dtype,
        tensor.requires_grad,
        None if tensor.is_inference() else tensor._version,
        _sum_of_bytes(tensor),
        None if gradient is None else (_Same(gradient), _sum_of_bytes(gradient)),
    )


def _sum_of_bytes(tensor: Tensor) -> int | None:
    dense = tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized
    if not dense or type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        return None
    flat = tensor.detach().reshape(-1)
    flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
    return int(flat.view(torch.uint8).sum(dtype=torch.int64))
