"""What is known of tensors, for as long as they live."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar
from weakref import KeyedRef

from torch import Tensor

Value = TypeVar("Value")


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
        # An entry goes before its tensor does, so no other tensor can have that tensor's id.
        found: dict[int, tuple[KeyedRef[int, Tensor], Value]] = {}

        def forget(reference: KeyedRef[int, Tensor]) -> None:
            found.pop(reference.key, None)

        self._found = found
        self._forget = forget

    def get(self, tensor: object) -> Value | None:
        """What is known of a tensor; None for anything else."""
        entry = self._found.get(id(tensor))
        return None if entry is None else entry[1]

    def __getitem__(self, tensor: Tensor) -> Value:
        return self._found[id(tensor)][1]

    def __setitem__(self, tensor: Tensor, value: Value) -> None:
        key = id(tensor)
        entry = self._found.get(key)
        reference = KeyedRef(tensor, self._forget, key) if entry is None else entry[0]
        self._found[key] = reference, value

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._found

    def __len__(self) -> int:
        return len(self._found)

    def items(self) -> Iterator[tuple[Tensor, Value]]:
        """The tensors that are alive, each with what is known of it."""
        for reference, value in list(self._found.values()):
            tensor = reference()
            if tensor is not None:
                yield tensor, value

    def clear(self) -> None:
        """Forget everything."""
        self._found.clear()
