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

import functools
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from enum import Enum
from operator import is_
from types import (
    CodeType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    SimpleNamespace,
)
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from captum_transformer_lrp.engine.watch.memory import SMALL, Memory
from captum_transformer_lrp.engine.watch.references import (
    ABSENT,
    BUILT_IN,
    FUNCTIONS,
    held_by,
    models_of,
    put_back_class,
    put_back_container,
    put_back_mapping,
    slots,
)
from captum_transformer_lrp.errors import ExplanationError

_LEAVES = frozenset(
    {int, float, complex, bool, str, bytes, type(None), type, FunctionType, MethodType}
    | {torch.dtype, torch.device, torch.Size, torch.layout, CodeType, range, slice}
)
_PLAIN = frozenset({dict, OrderedDict, list, set, deque})
_CachedFunction = type(functools.lru_cache(len))

_lock = threading.RLock()
_under_way: WeakSet[Snapshot] = WeakSet()


class _State(Enum):
    NEW = 0
    TAKEN = 1
    PUT_BACK = 2


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
        self._mappings: list[tuple[dict[Any, Any], tuple[Any, ...], tuple[Any, ...]]] = []
        self._others: list[tuple[Any, Any]] = []
        self._slots: list[tuple[MemberDescriptorType, Any, Any]] = []
        self._classes: list[tuple[type, dict[str, Any]]] = []
        self._caches: list[tuple[Any, int]] = []
        self.memory = Memory(self._keeps_memory)

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
            changed = [one for one in changed if not self.memory.is_kept(one)]
        if changed and error is None:
            names = ", ".join(dict.fromkeys(map(self._title, changed)))
            kept = all(map(self.memory.is_kept, changed))
            raise ExplanationError(
                f"the forward pass changes {names} by what PyTorch announces to nobody, such as "
                "code in C++ or NumPy; "
                + ("it was put back" if kept else "it could not be put back")
                + ": write it with PyTorch functions, or explain copy.deepcopy(model)"
            )

    def _title(self, tensor: Tensor) -> str:
        """What a tensor is called in a message."""
        for root in self._roots:
            for model in models_of(root):
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
            pending += [root] if type(root) not in FUNCTIONS else models_of(root)
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
        for one in values:  # a module has a dozen empty dictionaries
            kind = type(one)
            if kind in _PLAIN and not one:
                self._empty.append(one)
            elif kind not in _LEAVES:
                pending.append(one)

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
        for slot in slots(type(value)):
            held = held_by(slot, value)
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
            if kind.__module__.partition(".")[0] not in BUILT_IN:
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
        pending += self.memory.note(tensor)

    # -- putting it back -------------------------------------------------------------------------

    def restore(self) -> list[Tensor]:
        """Put everything back, and return the tensors that were written into.

        It may be called again.
        """
        with torch._C.DisableTorchFunction():
            changed = self.memory.restore()
            if any(self._empty):
                for one in self._empty:
                    one.clear()
            for mapping, keys, values in self._mappings:
                if not (
                    len(mapping) == len(keys)
                    and all(map(is_, mapping, keys))
                    and all(map(is_, mapping.values(), values))
                ):
                    put_back_mapping(mapping, keys, values)
            for value, before in self._others:
                put_back_container(value, before)
            for slot, owner, held in self._slots:
                if held_by(slot, owner) is not held:
                    slot.__delete__(owner) if held is ABSENT else slot.__set__(owner, held)
            for kind, attributes in self._classes:
                put_back_class(kind, attributes)
            for function, misses in self._caches:
                if function.cache_info().misses > misses:
                    function.cache_clear()
            return changed

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
    return not issubclass(kind, type) and (home not in BUILT_IN or is_data)
