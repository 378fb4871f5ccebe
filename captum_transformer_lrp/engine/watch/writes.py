"""Calls that write into a tensor of the user's: they get a copy, which stands for it afterwards."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode

from captum_transformer_lrp.engine.graph.arguments import (
    Args,
    Function,
    Kwargs,
    replace_tensors,
    tensors_in,
    title,
)
from captum_transformer_lrp.engine.watch.context import Context
from captum_transformer_lrp.engine.watch.snapshot import Snapshot
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.rules.decisions import decisions

_GIVES_MEMORY = frozenset(
    {"numpy", "__array__", "__dlpack__", "untyped_storage", "storage", "data_ptr"}
)
"""Methods after which anybody may write into a tensor without a word."""

_ONLY_WITH = {
    "embedding": ("max_norm", 3),
    "embedding_bag": ("max_norm", 3),
    "batch_norm": ("training", 5),
    "instance_norm": ("use_input_stats", 5),
}
"""Functions that write only if an argument says so, by its name and place."""

_FLAGS = frozenset({"requires_grad_", "retain_grad", "__set__"})


def may_write(function: Function, args: Args, kwargs: Kwargs) -> bool:
    """Whether a call may write into its arguments, now or later."""
    name = _writer(function)
    if not name:
        return "out" in kwargs and kwargs["out"] is not None
    if name not in _ONLY_WITH:
        return True
    keyword, place = _ONLY_WITH[name]
    return bool(kwargs.get(keyword, args[place] if len(args) > place else None))


@functools.lru_cache(maxsize=4096)
def _writer(function: Function) -> str:
    """The name of a function that may write; empty for one that does not."""
    name = str(getattr(function, "__name__", ""))
    if isinstance(function, OpOverload):
        return name if function._schema.is_mutable else ""
    if isinstance(function, OpOverloadPacket):
        overloads = [getattr(function, one) for one in function.overloads()]
        return name if any(one._schema.is_mutable for one in overloads) else ""
    if name == "__set__":
        return name if getattr(function.__self__, "__name__", "") == "data" else ""  # type: ignore[attr-defined]
    in_place = name.endswith("_") and not name.startswith("__") and name not in _FLAGS
    operator = name.startswith("__i") and name not in ("__index__", "__int__", "__invert__")
    known = name in _GIVES_MEMORY or name in _ONLY_WITH or name == "__setitem__"
    return name if in_place or operator or known else ""


def diverted(watch: Context, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """The arguments of a call that may write, with copies in the place of the user's tensors."""
    owners = watch.writes.snapshot.memory.owners

    def change(tensor: Tensor) -> Tensor:
        known = watch.writes.replaced.get(tensor)
        if known is not None:
            return known
        if watch.mark(tensor) is not None or torch._C._functorch.is_functorch_wrapped_tensor(
            tensor
        ):
            return tensor
        address = tensor.untyped_storage()._cdata
        if address not in owners or tensor.layout is not torch.strided:
            return tensor
        _copy_all(watch, tensor, address)
        return watch.writes.replaced[tensor]

    return replace_tensors(args, change), replace_tensors(kwargs, change)


def _copy_all(watch: Context, tensor: Tensor, address: int) -> None:
    """Copy what a tensor shares its memory with; each of them has a stand-in from now on."""
    together = [*watch.writes.snapshot.memory.owners[address], tensor]
    together = list({id(one): one for one in together}.values())
    made = decisions()
    if made is None:
        _copy_together(watch, tensor, together)
    else:
        made.aside(lambda: _copy_together(watch, tensor, together))
        for one in together:
            made.stand_for(watch.writes.replaced[one], one)
    watch.writes.memory.add(address)


def _copy_together(watch: Context, tensor: Tensor, together: Sequence[Tensor]) -> None:
    """The stand-ins share the memory of the copy as those that they stand for share theirs."""
    ranges = [_range(one) for one in together]
    begin, end = min(one for one, _ in ranges), max(one for _, one in ranges)
    storage = tensor.untyped_storage()
    with torch.no_grad():
        copy = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        copy.set_(storage, begin, (end - begin,), (1,))
        memory = copy.clone().untyped_storage()
        for one in together:
            size = one.element_size()
            offset, rest = divmod(int(one.storage_offset()) * size - begin, size)
            if rest:
                raise ExplanationError(
                    f"{watch.names.caller()} writes into a tensor that shares memory with another "
                    "of another dtype; an explanation must leave both as they are: copy one first"
                )
            stand_in = torch.empty(0, dtype=one.dtype, device=one.device)
            stand_in.set_(memory, offset, one.size(), one.stride())
            watch.names.inherit(stand_in, one)
            ids = watch.look_ups.ids.get(one)
            if ids is not None:
                watch.look_ups.ids[stand_in] = ids.become(stand_in, ids.places)
            watch.writes.replaced[one] = stand_in
            watch.writes.snapshot.memory.owners.setdefault(memory._cdata, []).append(stand_in)


def _range(tensor: Tensor) -> tuple[int, int]:
    """Where in its memory a tensor begins and ends, in bytes."""
    size, begin = tensor.element_size(), int(tensor.storage_offset()) * tensor.element_size()
    if tensor.numel() == 0:
        return begin, begin
    steps: int = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (steps + 1) * size


def unknown(watch: Context, function: Function) -> ExplanationError:
    """The error for a call that writes, and of which no counterpart is known that does not."""
    return ExplanationError(
        f"{watch.names.caller()} calls {title(function)}, which may write into activations, or "
        "them into a tensor of the model, and has no counterpart that is known to return its "
        "result instead: write x = f(x), or use an in-place method of one tensor"
    )


class Copying(TorchFunctionMode):
    """Copies the memory of the user's tensors before calls that may write into it.

    Args:
        snapshot: what is the user's, and where copies are kept.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self._snapshot = snapshot

    def __torch_function__(
        self,
        func: Function,
        types: Sequence[type],
        args: Args = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Make the call."""
        kwargs = dict(kwargs or {})
        if may_write(func, args, kwargs):
            self._snapshot.memory.keep(tensors_in((args, kwargs)))
        return func(*args, **kwargs)


@contextmanager
def unchanged(*objects: Any) -> Iterator[None]:
    """Put back what models and arguments are, values that calls of theirs change included."""
    snapshot = Snapshot(*objects, keeps_memory=True)
    with snapshot, snapshot, Copying(snapshot):
        yield
