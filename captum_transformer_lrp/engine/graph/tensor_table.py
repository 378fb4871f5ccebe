"""What is known of tensors: for as long as they live, or for as long as the table does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar, overload
from weakref import ref

from torch import Tensor

Value = TypeVar("Value")


class _Reference(ref[Tensor]):
    """A weak reference that knows the identity of what it refers to (``KeyedRef``, made faster)."""

    __slots__ = ("key",)
    key: int


class TensorTable(Generic[Value]):
    """A dictionary from tensors to anything, which keeps no tensor alive.

    It is what ``torch.utils.weak.WeakIdKeyDictionary`` is, but that builds and compares two
    weak references at each look-up, and every PyTorch call of a model is followed by a dozen.

    Example:
        >>> import torch
        >>> table, tensor = TensorTable(), torch.zeros(2)
        >>> table[tensor] = "zeros"
        >>> table.get(tensor), table.get(torch.zeros(2)), tensor in table
        ('zeros', None, True)
        >>> del tensor
        >>> len(table)
        0
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[_Reference, Value]] = {}
        # Python would lose a Ctrl-C that interrupts a callback, which one in C is not.
        self._dead: list[_Reference] = []
        self._forget = self._dead.append

    def get(self, tensor: object) -> Value | None:
        """What is known of a tensor; None for anything else."""
        entry = self._found.get(id(tensor))
        return None if entry is None or entry[0]() is not tensor else entry[1]

    def __getitem__(self, tensor: Tensor) -> Value:
        reference, value = self._found[id(tensor)]
        if reference() is not tensor:
            raise KeyError(id(tensor))
        return value

    def __setitem__(self, tensor: Tensor, value: Value) -> None:
        if self._dead:
            self._let_go()
        key = id(tensor)
        entry = self._found.get(key)
        if entry is None:
            reference = _Reference(tensor, self._forget)
            reference.key = key
        else:
            reference = entry[0]
        self._found[key] = reference, value

    def __contains__(self, tensor: Tensor) -> bool:
        entry = self._found.get(id(tensor))
        return entry is not None and entry[0]() is tensor

    def __len__(self) -> int:
        self._let_go()
        return len(self._found)

    def _let_go(self) -> None:
        """Forget the tensors that are no more; another may have the id of one of them."""
        while self._dead:
            reference = self._dead.pop()
            entry = self._found.get(reference.key)
            if entry is not None and entry[0] is reference:
                del self._found[reference.key]

    def items(self) -> Iterator[tuple[Tensor, Value]]:
        """The tensors that are alive, each with what is known of it."""
        for reference, value in list(self._found.values()):
            tensor = reference()
            if tensor is not None:
                yield tensor, value

    def clear(self) -> None:
        """Forget everything."""
        self._found.clear()


class HeldTable(Generic[Value]):
    """A dictionary by identity, from tensors or modules to anything, which keeps them alive.

    Args:
        pairs: such objects, each with what is known of it.

    Example:
        >>> import torch
        >>> tensor = torch.zeros(2)
        >>> table = HeldTable([(tensor, "zeros")])
        >>> table.get(tensor), table.get(torch.zeros(2), "unknown"), tensor in table
        ('zeros', 'unknown', True)
    """

    def __init__(self, pairs: Iterable[tuple[object, Value]] = ()) -> None:
        self._found = {id(one): (one, value) for one, value in pairs}

    @overload
    def get(self, one: object) -> Value | None: ...
    @overload
    def get(self, one: object, default: Value) -> Value: ...
    def get(self, one: object, default: Value | None = None) -> Value | None:
        """What is known of an object."""
        entry = self._found.get(id(one))
        return default if entry is None else entry[1]

    def __getitem__(self, one: object) -> Value:
        return self._found[id(one)][1]

    def __setitem__(self, one: object, value: Value) -> None:
        self._found[id(one)] = one, value

    def __contains__(self, one: object) -> bool:
        return id(one) in self._found

    def __len__(self) -> int:
        return len(self._found)

    def pop(self, one: object) -> Value:
        """What was known of an object, which is forgotten."""
        return self._found.pop(id(one))[1]

    def values(self) -> list[Value]:
        """What is known of each."""
        return [value for _, value in self._found.values()]

    def clear(self) -> None:
        """Forget everything."""
        self._found.clear()
