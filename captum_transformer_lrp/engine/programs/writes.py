"""Operations that write into tensors, as operations that do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor, fx
from torch.utils.weak import WeakTensorKeyDictionary

from captum_transformer_lrp.errors import ExplanationError


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

    def __getitem__(self, tensor: Tensor) -> fx.Node:
        node: fx.Node = self._nodes[tensor]
        return node

    def __setitem__(self, tensor: Tensor, node: fx.Node) -> None:
        self._nodes[tensor] = node
        self._sharing.setdefault(memory(tensor), WeakTensorKeyDictionary())[tensor] = True

    def sharing(self, tensor: Tensor) -> list[Tensor]:
        """All tensors in the memory of one; a tensor whose data are set moves to another."""
        place = memory(tensor)
        return [one for one in self._sharing[place] if memory(one) == place]


class Recorder(Protocol):
    """Writes down the operations of a block.

    Attributes:
        sources: the nodes that it has written.
    """

    sources: Sources

    def __enter__(self) -> Any:
        """Begin a block."""

    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> Any:
        """End a block."""

    def write(self, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        """Write down an operation, its arguments and what it returned."""

    def hold(self, tensor: Tensor, value: Tensor) -> Any:
        """Keep the value of a tensor that no operation has computed."""


def memory(tensor: Tensor) -> int:
    """What is the same for tensors that share memory."""
    strided = tensor.layout is torch.strided
    return tensor.untyped_storage()._cdata if strided else id(tensor)


def without_writing(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], recorder: Recorder
) -> Any:
    """Compute an operation that writes into tensors, and write down one that does not.

    What shares the memory of these tensors gets the new values, too.

    Raises:
        ExplanationError: for a tensor that the graph has read and that others hold, such as a
            weight, and for an operation that PyTorch has in this form only.
    """
    pure = _without_effect(func)
    outs = [one.name for one in func._schema.arguments if one.is_out]
    into = [kwargs[name] for name in outs] if outs else [args[0]]
    for one in into:
        if recorder.sources.get(one) is None:
            recorder.hold(one, one.clone())
        elif memory(one) in recorder.sources.fixed:
            raise ExplanationError(
                f"the model writes into a tensor that it had before the call ({func}), and a graph "
                "cannot: call attribute() of the method itself"
            )
    kept = {name: value for name, value in kwargs.items() if name not in outs}
    if torch.Tag.inplace_view in func.tags:
        recorder.write(pure, args, kept, func(*args, **kept))
        return args[0]
    found = pure(*args, **kept)
    recorder.write(pure, args, kept, found)
    for tensor, values in zip(into, found if len(into) > 1 else [found], strict=True):
        _overwrite(tensor, values, recorder)
    return tuple(into) if len(into) > 1 else into[0]


def _without_effect(func: Any) -> Any:
    """The operation that returns what another one writes."""
    schema = func._schema
    namespace, name = schema.name.split("::")
    pure_name = f"__{name[3:]}" if name.startswith("__i") else name.removesuffix("_")
    wanted = [(one.name, str(one.type)) for one in schema.arguments if not one.is_out]
    writes_only = name != pure_name or len(wanted) < len(schema.arguments)
    packet = getattr(getattr(torch.ops, namespace), pure_name, None)
    if packet is not None and writes_only and pure_name not in _LAYOUTS:
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


def _overwrite(tensor: Tensor, values: Tensor, recorder: Recorder) -> None:
    with recorder:
        values = values.to(tensor.dtype)
    if tensor.shape != values.shape:
        tensor.resize_(values.shape)  # as operations do with their argument "out"
    sources = recorder.sources
    for other in sources.sharing(tensor) if tensor.numel() else ():
        if _place(other) == _place(tensor):
            sources[other] = sources[values]
        elif other.dtype == tensor.dtype:
            with recorder:
                changed = _overlaid(other, tensor, values)
            sources[other] = sources[changed]
        else:
            raise ExplanationError(
                "a graph cannot write into a tensor whose memory is read as another type, too: "
                "call attribute() of the method itself"
            )
    tensor.copy_(values)


def _place(tensor: Tensor) -> Any:
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()


def _overlaid(other: Tensor, tensor: Tensor, values: Tensor) -> Tensor:
    """Another tensor, changed where it shares elements with one that gets values."""
    elements = tensor.untyped_storage().nbytes() // tensor.element_size()
    numbers = torch.arange(elements, device=tensor.device)
    places = numbers.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    from_ = torch.full_like(numbers, -1)
    from_ = from_.index_put((places.reshape(-1),), numbers[: tensor.numel()])
    from_ = from_.as_strided(other.shape, other.stride(), other.storage_offset())
    return torch.where(from_ < 0, other, values.reshape(-1)[from_.clamp_min(0)])
