"""The user's objects: what they are before a forward pass, and that they are the same afterwards.

A model may make tables on its first call, count its calls, or keep averages; a cache of keys and
values that the caller passes grows.  An explanation is no call of the user's, so each object that
the model or its arguments lead to is put back.  Tensors are not copied for it:

* What an object refers to (attributes, entries of lists and dictionaries) is noted and put back.
* A tensor that the model writes is copied first, and the copy stands for it until the explanation
  is over (:mod:`captum_transformer_lrp.engine.watch.writes`).
* For writes that PyTorch announces to nobody, version counters are compared, and the bytes of
  small tensors.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from operator import is_
from types import (
    CodeType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    SimpleNamespace,
)
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from captum_transformer_lrp.errors import ExplanationError

SMALL = 1 << 16
"""Memory of at most so many bytes is kept, so that it can be compared and put back."""

_Keys = tuple[Any, ...]
_ABSENT = object()
_LEAVES = frozenset(
    {int, float, complex, bool, str, bytes, type(None), type, FunctionType, MethodType}
    | {torch.dtype, torch.device, torch.Size, torch.layout, CodeType, range, slice}
)
_PLAIN = frozenset({dict, OrderedDict, list, set, deque})
_CachedFunction = type(functools.lru_cache(len))
_BUILT_IN = frozenset({*sys.stdlib_module_names, "builtins", "torch", "numpy"})

_set_version = torch._C._autograd._unsafe_set_version_counter

_lock = threading.RLock()
_under_way: WeakSet[Snapshot] = WeakSet()


class _State(Enum):
    NEW = 0
    TAKEN = 1
    PUT_BACK = 2


class _TensorState(NamedTuple):
    """What a tensor is, but for its values."""

    tensor: Tensor
    version: int
    address: int
    requires_grad: bool
    grad: Tensor | None
    hooks: dict[int, Any] | None


class Snapshot:
    """What some objects, and all that they lead to, refer to; put back as the ``with`` block ends.

    Followed are modules, the classes that they have from others than PyTorch, containers, and
    objects that are no part of Python, PyTorch or NumPy themselves.

    Enter it twice, ``with snapshot, snapshot:``.  Ctrl-C may interrupt the first instruction of
    leaving a block.  Then leaving the other one puts everything back.

    Args:
        roots: models, functions that call them (of which only the models count), arguments.
        keeps_memory: whether :class:`~captum_transformer_lrp.engine.watch.writes.Copying` copies
            what is written, so that values are put back, too.

    Raises:
        ExplanationError: as the block ends, for tensors whose values were changed by what PyTorch
            did not announce.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> with Snapshot(model):
        ...     model.table, model.bias = torch.ones(2), None
        >>> hasattr(model, "table"), model.bias.shape
        (False, torch.Size([2]))
    """

    def __init__(self, *roots: Any, keeps_memory: bool = False) -> None:
        self._roots = roots
        self._keeps_memory = keeps_memory
        self._thread = threading.get_ident()
        self._notes: dict[type, _Note] = {}
        self._state = _State.NEW
        self._forget()

    def _forget(self) -> None:
        self._seen: dict[int, Any] = {}
        self._empty: list[Any] = []
        self._objects: set[int] = set()
        self._mappings: list[tuple[dict[Any, Any], _Keys, tuple[Any, ...]]] = []
        self._others: list[tuple[Any, Any]] = []
        self._slots: list[tuple[MemberDescriptorType, Any, Any]] = []
        self._classes: list[tuple[type, dict[str, Any]]] = []
        self._caches: list[tuple[Any, int]] = []
        self._tensors: list[_TensorState] = []
        self._bytes: dict[int, tuple[Any, bytes]] = {}
        self._copies: dict[int, tuple[Any, Any]] = {}
        self._aliases: dict[int, tuple[Tensor, Tensor]] = {}
        self.owners: dict[int, list[Tensor]] = {}

    def __enter__(self) -> Snapshot:
        if self._state is _State.NEW:
            self._take_turn()
            self._state = _State.TAKEN
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._state is _State.PUT_BACK:
            return
        changed = self.restore()
        with _lock:
            _under_way.discard(self)
        self._state = _State.PUT_BACK
        if self._keeps_memory:
            changed = [one for one in changed if not self._is_kept(one)]
        if changed and error is None:
            names = ", ".join(dict.fromkeys(map(self._title, changed)))
            kept = all(map(self._is_kept, changed))
            raise ExplanationError(
                f"the forward pass changes {names} by what PyTorch announces to nobody, such as "
                "code in C++ or NumPy; "
                + ("it was put back" if kept else "it could not be put back")
                + ": write it with PyTorch functions, or explain copy.deepcopy(model)"
            )

    def _title(self, tensor: Tensor) -> str:
        """What a tensor is called in a message."""
        for root in self._roots:
            for model in _models_of(root):
                for name, one in (*model.named_parameters(), *model.named_buffers()):
                    if one is tensor:
                        return name
        return f"a tensor of shape {tuple(tensor.shape)} that the model or an argument holds"

    # -- taking it -------------------------------------------------------------------------------

    def _take_turn(self) -> None:
        """Wait until no other thread explains a model of this one, and note everything.

        A model that another thread runs may hold something that will be put back.
        """
        while True:
            with _lock:
                self.note()
                if not any(
                    other._thread != self._thread and not self._objects.isdisjoint(other._objects)
                    for other in _under_way
                ):
                    _under_way.add(self)
                    return
            time.sleep(0.001)

    def note(self) -> Snapshot:
        """Note everything as it is now."""
        self._forget()
        self.add(*self._roots)
        return self

    def add(self, *roots: Any) -> None:
        """Note further objects as they are now."""
        pending: list[Any] = [parametrize._cache]
        for root in roots:
            pending += [root] if type(root) not in _FUNCTIONS else _models_of(root)
        with torch._C.DisableTorchFunction():
            while pending:
                value = pending.pop()
                kind = type(value)
                if kind in _LEAVES:
                    continue
                if kind in _PLAIN and not value:
                    self._empty.append(value)
                    continue
                if id(value) in self._seen:
                    continue
                self._seen[id(value)] = value
                note = self._notes.get(kind)
                if note is None:
                    note = self._notes[kind] = _how(kind)
                note(self, value, pending)

    def _note_mapping(self, value: dict[Any, Any], pending: list[Any]) -> None:
        values = tuple(value.values())
        self._mappings.append((value, tuple(value), values))
        pending += [one for one in values if type(one) not in _LEAVES]

    def _note_set(self, value: Any, pending: list[Any]) -> None:
        self._others.append((value, set(value)))

    def _note_bytes(self, value: Any, pending: list[Any]) -> None:
        self._others.append((value, bytes(value)))

    def _note_tuple(self, value: Any, pending: list[Any]) -> None:
        pending += value

    def _note_sequence(self, value: Any, pending: list[Any]) -> None:
        self._others.append((value, tuple(value)))
        pending += [one for one in value if type(one) not in _LEAVES]

    def _note_array(self, value: Any, pending: list[Any]) -> None:
        if value.flags.writeable and value.nbytes <= SMALL:
            self._others.append((value, value.copy()))

    def _note_object(self, value: Any, pending: list[Any]) -> None:
        self._objects.add(id(value))
        try:
            attributes = object.__getattribute__(value, "__dict__")
        except (AttributeError, TypeError):
            attributes = {}
        for slot in _slots(type(value)):
            held = _get(slot, value)
            self._slots.append((slot, value, held))
            pending.append(held)
        pending.append(attributes)
        for base, note in _CONTAINERS:
            if isinstance(value, base):
                note(self, value, pending)

    def _note_module(self, module: nn.Module, pending: list[Any]) -> None:
        self._objects.add(id(module))
        pending.append(vars(module))
        for kind in type(module).__mro__:
            if id(kind) in self._seen:
                break  # and so are those that it is made from
            self._seen[id(kind)] = kind
            if kind.__module__.partition(".")[0] not in _BUILT_IN:
                self._note_class(kind, pending)

    def _note_class(self, kind: type, pending: list[Any]) -> None:
        attributes = dict(vars(kind))
        self._classes.append((kind, attributes))
        pending += [one for one in attributes.values() if isinstance(one, (dict, list, set, deque))]
        home = vars(sys.modules[kind.__module__]) if kind.__module__ in sys.modules else {}
        for one in (*attributes.values(), *home.values()):
            if type(one) is _CachedFunction and one.__module__ == kind.__module__:
                pending.append(one)

    def _note_cached_function(self, value: Any, pending: list[Any]) -> None:
        self._caches.append((value, value.cache_info().misses))

    def _note_tensor(self, tensor: Tensor, pending: list[Any]) -> None:
        grad = tensor.grad if tensor.is_leaf else None
        version = 0 if tensor.is_inference() else tensor._version
        storage = _storage(tensor)
        address = 0 if storage is None else storage._cdata
        hooks, flag = tensor._backward_hooks, tensor.requires_grad
        self._tensors.append(_TensorState(tensor, version, address, flag, grad, hooks))
        pending += [grad, vars(tensor), hooks]
        if storage is not None:
            if address not in self.owners:
                self.owners[address] = []
                if tensor.device.type == "cpu" and 0 < storage.nbytes() <= SMALL:
                    kept = ctypes.string_at(storage.data_ptr(), storage.nbytes())
                    self._bytes[address] = storage, kept
            self.owners[address].append(tensor)

    def keep_memory(self, tensors: Sequence[Tensor]) -> None:
        """Copy the memory of those tensors that belong to the user, before it is written."""
        for tensor in tensors:
            storage = _storage(tensor)
            address = 0 if storage is None else storage._cdata
            if storage is None or address not in self.owners:
                continue
            for one in self.owners[address]:
                self._aliases.setdefault(id(one), (one, one.data))
            if address not in self._bytes and address not in self._copies:
                self._copies[address] = storage, storage.clone()

    # -- putting it back -------------------------------------------------------------------------

    def restore(self) -> list[Tensor]:
        """Put everything back, and return the tensors that were written into.

        It may be called again.
        """
        with torch._C.DisableTorchFunction():
            changed = self._restore_tensors()
            if any(self._empty):
                for one in self._empty:
                    one.clear()
            for mapping, keys, values in self._mappings:
                if not (
                    len(mapping) == len(keys)
                    and all(map(is_, mapping, keys))
                    and all(map(is_, mapping.values(), values))
                ):
                    _put_back(mapping, keys, values)
            for value, before in self._others:
                _put_back_other(value, before)
            for slot, owner, held in self._slots:
                if _get(slot, owner) is not held:
                    slot.__delete__(owner) if held is _ABSENT else slot.__set__(owner, held)
            for kind, attributes in self._classes:
                _put_back_class(kind, attributes)
            for function, misses in self._caches:
                if function.cache_info().misses > misses:
                    function.cache_clear()
            return changed

    def _restore_tensors(self) -> list[Tensor]:
        changed = []
        for tensor, alias in self._aliases.values():
            if _address(tensor) != _address(alias):
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
            if moved or (address and _address(tensor) != address):
                changed.append(tensor)
            if moved and self._keeps_memory and self._is_kept(tensor):
                _set_version((tensor,), (version,))
        for address, (storage, before) in self._bytes.items():
            if ctypes.string_at(storage.data_ptr(), storage.nbytes()) != before:
                ctypes.memmove(storage.data_ptr(), before, len(before))
                changed += self.owners[address]
        for storage, copy in self._copies.values():
            storage.copy_(copy)
        return list({id(one): one for one in changed}.values())

    def _is_kept(self, tensor: Tensor) -> bool:
        """Whether the memory of a tensor is put back."""
        address = _address(tensor)
        return address in self._bytes or address in self._copies

    def _skip(self, value: Any, pending: list[Any]) -> None:
        """An object that is not followed."""


_Note = Callable[[Snapshot, Any, list[Any]], None]

_CONTAINERS: tuple[tuple[Any, _Note], ...] = (
    (dict, Snapshot._note_mapping),
    ((list, deque), Snapshot._note_sequence),
    ((tuple, frozenset), Snapshot._note_tuple),
    (set, Snapshot._note_set),
    (bytearray, Snapshot._note_bytes),
    (np.ndarray, Snapshot._note_array),
)


def _how(kind: type) -> _Note:
    """How objects of a type are noted."""
    for base, note in (
        (Tensor, Snapshot._note_tensor),
        (nn.Module, Snapshot._note_module),
        (_CachedFunction, Snapshot._note_cached_function),
    ):
        if issubclass(kind, base):
            return note
    if _is_own(kind) and kind not in _PLAIN:
        return Snapshot._note_object
    found = (note for base, note in _CONTAINERS if issubclass(kind, base))
    return next(found, Snapshot._skip)


def _is_own(kind: type) -> bool:
    """Whether a type is no part of Python, PyTorch or NumPy, or one that only holds attributes."""
    home = kind.__module__.partition(".")[0]
    is_data = kind is SimpleNamespace or kind.__name__ == "Namespace" or home == "collections"
    return not issubclass(kind, type) and (home not in _BUILT_IN or is_data)


_FUNCTIONS = frozenset({FunctionType, MethodType, functools.partial})


def _models_of(function: Any) -> Iterator[Any]:
    """The models that a function leads to: what it is bound to, holds, or names."""
    pending, seen = [function], set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            yield value
        elif isinstance(value, functools.partial):
            pending += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, MethodType):
            pending += [value.__self__, value.__func__]
        elif isinstance(value, FunctionType):
            pending += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
            pending += [_content(cell) for cell in value.__closure__ or ()]
            if value.__module__ == function_module(function):
                names = _names(value.__code__)
                pending += [value.__globals__[one] for one in names if one in value.__globals__]
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, (list, tuple)):
            pending += value
        elif type(value).__module__.partition(".")[0] not in _BUILT_IN:
            pending += getattr(value, "__dict__", {}).values()


def function_module(function: Any) -> str | None:
    """The file in which a function, or what is under it, was written."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__module__", None)


def _names(code: CodeType) -> Iterator[str]:
    """The names that a function uses, and the functions in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing is assigned to it yet
        return None


def _slots(kind: type[Any]) -> tuple[MemberDescriptorType, ...]:
    kinds = [one for one in kind.__mro__ if one.__module__.partition(".")[0] not in _BUILT_IN]
    held = [value for one in kinds for value in vars(one).values()]
    return tuple(value for value in held if isinstance(value, MemberDescriptorType))


def _get(slot: MemberDescriptorType, owner: Any) -> Any:
    try:
        return slot.__get__(owner)
    except AttributeError:
        return _ABSENT


def _storage(tensor: Tensor) -> Any:
    """A tensor's memory; None if it has none of its own, as one that is sparse."""
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def _address(tensor: Tensor) -> int:
    storage = _storage(tensor)
    return 0 if storage is None else storage._cdata


def _put_back(mapping: dict[Any, Any], keys: _Keys, values: tuple[Any, ...]) -> None:
    """The same entries in the same order; those that have not changed are never missing."""
    kind = OrderedDict if isinstance(mapping, OrderedDict) else dict
    before = dict(zip(keys, values, strict=True))
    for key, value in before.items():
        if kind.get(mapping, key, _ABSENT) is not value:
            kind.__setitem__(mapping, key, value)
    for key in [key for key in mapping if key not in before]:
        kind.__delitem__(mapping, key)
    if not all(map(is_, mapping, keys)):
        for key, value in before.items():
            kind.__delitem__(mapping, key)
            kind.__setitem__(mapping, key, value)


def _put_back_other(value: Any, before: Any) -> None:
    if isinstance(value, np.ndarray):
        if value.tobytes() != before.tobytes():
            value[...] = before
    elif isinstance(value, (list, deque)):
        if len(value) != len(before) or not all(map(is_, value, before)):
            if isinstance(value, list):
                value[:] = before
            else:
                value.clear()
                value.extend(before)
    elif isinstance(value, bytearray):
        if value != before:
            value[:] = before
    elif value != before:
        value.clear()
        value.update(before)


def _put_back_class(kind: type, attributes: dict[str, Any]) -> None:
    now = vars(kind)
    if len(now) == len(attributes) and all(map(is_, now.values(), attributes.values())):
        return
    for name in [name for name in now if name not in attributes]:
        delattr(kind, name)
    for name, value in attributes.items():
        if now.get(name, _ABSENT) is not value:
            setattr(kind, name, value)
