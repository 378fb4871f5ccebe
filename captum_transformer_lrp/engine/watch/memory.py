"""The memory of the user's tensors: whether it has been written to, and what was there before."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from captum_transformer_lrp.engine.graph.values import PLAIN

SMALL = 1 << 16
"""Memory of at most so many bytes is kept, so that it can be compared and put back."""

_set_version = torch._C._autograd._unsafe_set_version_counter


class _TensorState(NamedTuple):
    """What a tensor is, but for its values."""

    tensor: Tensor
    version: int
    address: int
    requires_grad: bool
    grad: Tensor | None
    hooks: dict[int, Any] | None


class Memory:
    """The memory of some tensors.

    Args:
        keeps: whether :meth:`keep` is called before each announced write, so that all of it can be
            put back.

    Attributes:
        owners: by the address of their memory, the tensors.
    """

    def __init__(self, keeps: bool) -> None:
        self._keeps = keeps
        self._tensors: list[_TensorState] = []
        self._bytes: dict[int, tuple[Any, bytes]] = {}
        self._copies: dict[int, tuple[Any, Any]] = {}
        self._aliases: dict[int, tuple[Tensor, Tensor]] = {}
        self.owners: dict[int, list[Tensor]] = {}

    def note(self, tensor: Tensor) -> list[Any]:
        """Note a tensor as it is now; returns what it refers to."""
        grad = tensor.grad if tensor.is_leaf else None
        version = 0 if tensor.is_inference() else tensor._version
        storage = storage_of(tensor)
        address = 0 if storage is None else storage._cdata
        hooks, flag = tensor._backward_hooks, tensor.requires_grad
        self._tensors.append(_TensorState(tensor, version, address, flag, grad, hooks))
        if storage is not None:
            if address not in self.owners:
                self.owners[address] = []
                if tensor.device.type == "cpu" and 0 < storage.nbytes() <= SMALL:
                    kept = ctypes.string_at(storage.data_ptr(), storage.nbytes())
                    self._bytes[address] = storage, kept
            self.owners[address].append(tensor)
        return [grad, vars(tensor), hooks]

    def keep(self, tensors: Sequence[Tensor]) -> None:
        """Copy the memory of those tensors that belong to the user, before it is written."""
        for tensor in tensors:
            storage = storage_of(tensor)
            address = 0 if storage is None else storage._cdata
            if storage is None or address not in self.owners:
                continue
            for one in self.owners[address]:
                self._aliases.setdefault(id(one), (one, one.data))
            if address not in self._bytes and address not in self._copies:
                self._copies[address] = storage, storage.clone()

    def restore(self) -> list[Tensor]:
        """Put back what can be, and return the tensors that were written to."""
        changed = []
        for tensor, alias in self._aliases.values():
            if address_of(tensor) != address_of(alias):
                tensor.data = alias
        for tensor, version, address, requires_grad, grad, hooks in self._tensors:
            if tensor._backward_hooks is not hooks:
                tensor._backward_hooks = hooks
            if tensor.is_leaf:
                if tensor.requires_grad != requires_grad:
                    tensor.requires_grad_(requires_grad)
                if tensor.grad is not grad:
                    tensor.grad = grad
            moved = not tensor.is_inference() and tensor._version != version
            if moved or (address and address_of(tensor) != address):
                changed.append(tensor)
            if moved and self._keeps and self.is_kept(tensor):
                _set_version((tensor,), (version,))
        for address, (storage, before) in self._bytes.items():
            if ctypes.string_at(storage.data_ptr(), storage.nbytes()) != before:
                ctypes.memmove(storage.data_ptr(), before, len(before))
                changed += self.owners[address]
        for storage, copy in self._copies.values():
            storage.copy_(copy)
        return list({id(one): one for one in changed}.values())

    def is_kept(self, tensor: Tensor) -> bool:
        """Whether the memory of a tensor is put back."""
        address = address_of(tensor)
        return address in self._bytes or address in self._copies


def storage_of(tensor: Tensor) -> Any:
    """A tensor's memory; None if it has none of its own, as one that is sparse or wraps others."""
    if type(tensor) not in PLAIN and is_traceable_wrapper_subclass(tensor):
        return None
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def address_of(tensor: Tensor) -> int:
    """What names a tensor's memory; 0 for none."""
    storage = storage_of(tensor)
    return 0 if storage is None else storage._cdata
