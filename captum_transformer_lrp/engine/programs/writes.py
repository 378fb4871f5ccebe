"""Operations that write into tensors, as operations that do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.utils.weak import WeakTensorKeyDictionary

from captum_transformer_lrp.errors import ExplanationError

_aten = torch.ops.aten

Write = Callable[[Any, Sequence[Any], Mapping[str, Any], Any], None]
"""Writes down an operation, its arguments and what it returned."""


class Sources:
    """The node of a graph that computes each tensor, as long as there is the tensor.

    Attributes:
        fixed: the memory of tensors that the graph holds and that others hold, too.
    """

    def __init__(self) -> None:
        self._nodes = WeakTensorKeyDictionary()
        self._sharing: dict[int, WeakTensorKeyDictionary] = {}
        self.fixed: set[int] = set()

    def get(self, tensor: Tensor) -> fx.Node | None:
        """The node that computes a tensor, if one does."""
        node: fx.Node | None = self._nodes.get(tensor)
        return node

    def __setitem__(self, tensor: Tensor, node: fx.Node) -> None:
        self._nodes[tensor] = node
        self._sharing.setdefault(memory(tensor), WeakTensorKeyDictionary())[tensor] = True

    def sharing(self, tensor: Tensor) -> list[Tensor]:
        """All tensors in the memory of one."""
        return [*self._sharing[memory(tensor)]]


def memory(tensor: Tensor) -> int:
    """What is the same for tensors that share memory."""
    strided = tensor.layout is torch.strided
    return tensor.untyped_storage()._cdata if strided else id(tensor)


def without_writing(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], write: Write, sources: Sources
) -> Any:
    """Compute an operation that writes into tensors, and write down one that does not.

    What shares the memory of these tensors gets the new values, too.

    Raises:
        ExplanationError: for a tensor that outlives the call, such as a weight, and for an
            operation that PyTorch has in this form only.
    """
    pure = _without_effect(func)
    outs = [one.name for one in func._schema.arguments if one.is_out]
    into = [kwargs[name] for name in outs] if outs else [args[0]]
    if any(sources.get(one) is None or memory(one) in sources.fixed for one in into):
        raise ExplanationError(
            f"the model writes into a tensor that outlives the call ({func}), such as a buffer, "
            "and a graph cannot: call attribute() of the method itself"
        )
    kept = {name: value for name, value in kwargs.items() if name not in outs}
    if torch.Tag.inplace_view in func.tags:
        write(pure, args, kept, func(*args, **kept))
        return args[0]
    found = pure(*args, **kept)
    write(pure, args, kept, found)
    for tensor, values in zip(into, found if len(into) > 1 else [found], strict=True):
        _overwrite(tensor, values, write, sources)
    return tuple(into) if len(into) > 1 else into[0]


def _without_effect(func: Any) -> Any:
    """The operation that returns what another one writes."""
    schema, tags = func._schema, {torch.Tag.inplace, torch.Tag.out}
    namespace, name = schema.name.split("::")
    name = f"__{name[3:]}" if name.startswith("__i") else name.removesuffix("_")
    wanted = [(one.name, str(one.type)) for one in schema.arguments if not one.is_out]
    packet = getattr(getattr(torch.ops, namespace), name, None)
    if packet is not None and tags.intersection(func.tags) and name not in _LAYOUTS:
        for overload in packet.overloads():
            pure = getattr(packet, overload)
            arguments = [(one.name, str(one.type)) for one in pure._schema.arguments]
            if arguments == wanted and not pure._schema.is_mutable:
                return pure
    raise ExplanationError(
        f"a graph cannot write into tensors, which {func} does: call attribute() of the method "
        "itself"
    )


_LAYOUTS: Final = ("set", "resize", "resize_as")


def _overwrite(tensor: Tensor, values: Tensor, write: Write, sources: Sources) -> None:
    if values.dtype != tensor.dtype:
        wider, values = values, values.to(tensor.dtype)
        write(_aten._to_copy.default, [wider], {"dtype": tensor.dtype}, values)
    if tensor.shape != values.shape:
        tensor.resize_(values.shape)  # as operations do with their argument "out"
    for other in sources.sharing(tensor):
        if _place(other) == _place(tensor):
            write(_aten.alias.default, [values], {}, other)
        else:
            _overlay(other, tensor, values, write)
    tensor.copy_(values)


def _place(tensor: Tensor) -> Any:
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()


def _overlay(other: Tensor, tensor: Tensor, values: Tensor, write: Write) -> None:
    """Write down how another tensor changes where it shares elements with one that gets values."""
    if other.dtype != tensor.dtype:
        raise ExplanationError(
            "a graph cannot write into a tensor whose memory is read as another type, too: call "
            "attribute() of the method itself"
        )
    elements = tensor.untyped_storage().nbytes() // tensor.element_size()
    places = torch.full((elements,), -1, device=tensor.device)
    numbers = torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape)
    _like(places, tensor).copy_(numbers)
    places = _like(places, other).clone()
    if not bool((places >= 0).any()):
        return
    flat = values.reshape(-1)
    write(_aten.reshape.default, [values, [-1]], {}, flat)
    there = places.clamp_min(0)
    taken = flat[there]
    write(_aten.index.Tensor, [flat, [there]], {}, taken)
    write(_aten.where.self, [places >= 0, taken, other], {}, other)


def _like(memory: Tensor, tensor: Tensor) -> Tensor:
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
