"""The many names of one PyTorch operation.

``torch.matmul``, ``Tensor.matmul`` and ``a @ b`` are one operation, and so are ``F.gelu`` and
``torch._C._nn.gelu``.  Everything that is filed by operation is filed under each of its spellings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

_NAMESPACES: tuple[Any, ...] = (
    torch,
    torch.Tensor,
    F,
    torch._C._nn,
    torch._C._VariableFunctions,
    torch.special,
    torch.linalg,
)


def spelled(*names: str) -> tuple[Callable[..., Any], ...]:
    """Every PyTorch function with one of ``names``, wherever it is exported.

    Example:
        >>> torch.Tensor.matmul in spelled("matmul", "__matmul__")
        True
    """
    found = []
    for name in names:
        for namespace in _NAMESPACES:
            function = getattr(namespace, name, None)
            if callable(function) and function not in found:
                found.append(function)
    return tuple(found)


_SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("matmul", "__matmul__", "bmm", "mm"),
    ("add", "__add__", "__radd__"),
    ("sub", "subtract", "__sub__"),
    ("mul", "multiply", "__mul__", "__rmul__"),
    ("div", "divide", "true_divide", "__truediv__", "__div__"),
    ("softmax", "_safe_softmax"),
    ("gelu",),
    ("linear",),
)


def synonyms(function: Callable[..., Any]) -> tuple[Callable[..., Any], ...]:
    """All spellings of the operation that ``function`` names, itself first."""
    name = getattr(function, "__name__", "")
    if function not in spelled(name):  # a function of somebody else, whatever its name
        return (function,)
    group = next((names for names in _SYNONYMS if name in names), (name,))
    return tuple(dict.fromkeys((function, *spelled(*group))))


def in_place_spellings() -> Iterator[tuple[Callable[..., Any], Callable[..., Any]]]:
    """Pairs (in-place function, its out-of-place counterpart), such as (``add_``, ``add``)."""
    operators = {
        "__iadd__": "add",
        "__isub__": "sub",
        "__imul__": "mul",
        "__idiv__": "div",
        "__itruediv__": "div",
    }
    for namespace in _NAMESPACES:
        for name in dir(namespace):
            if name in operators:
                plain = operators[name]
            elif name.endswith("_") and not name.startswith("_"):
                plain = name[:-1]
            else:
                continue
            function = getattr(namespace, name, None)
            counterpart = getattr(namespace, plain, None) or getattr(torch.Tensor, plain, None)
            if callable(function) and callable(counterpart):
                yield function, counterpart
