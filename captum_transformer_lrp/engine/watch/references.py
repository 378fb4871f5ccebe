"""What an object refers to: the models that a function leads to, attributes, entries."""

from __future__ import annotations

import functools
import sys
from collections import OrderedDict, deque
from collections.abc import Iterator
from operator import is_
from types import CodeType, FunctionType, MemberDescriptorType, MethodType
from typing import Any

import numpy as np
from torch import nn

BUILT_IN = frozenset({*sys.stdlib_module_names, "builtins", "torch", "numpy"})
"""What objects are made of that are no data of the user's."""

ABSENT = object()
"""Stands for what a slot holds that holds nothing."""

FUNCTIONS = frozenset({FunctionType, MethodType, functools.partial})
"""How a function is given that is not a model."""


def models_of(function: Any) -> Iterator[Any]:
    """The models that a function leads to: what it is bound to, holds, or names."""
    pending, seen = [function], dict[int, Any]()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, nn.Module):
            yield value
        elif isinstance(value, functools.partial):
            pending += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, MethodType):
            pending += [value.__self__, value.__func__]
        elif isinstance(value, FunctionType):
            pending += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
            pending += [_content(cell) for cell in value.__closure__ or ()]
            if value.__module__ == _module(function):
                names = _names(value.__code__)
                pending += [value.__globals__[one] for one in names if one in value.__globals__]
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, (list, tuple)):
            pending += value
        elif type(value).__module__.partition(".")[0] not in BUILT_IN:
            pending += getattr(value, "__dict__", {}).values()


def _module(function: Any) -> str | None:
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


def slots(kind: type[Any]) -> tuple[MemberDescriptorType, ...]:
    """The attributes of a class that are no entries of a dictionary."""
    kinds = [one for one in kind.__mro__ if one.__module__.partition(".")[0] not in BUILT_IN]
    held = [value for one in kinds for value in vars(one).values()]
    return tuple(value for value in held if isinstance(value, MemberDescriptorType))


def held_by(slot: MemberDescriptorType, owner: Any) -> Any:
    """What is in a slot of an object."""
    try:
        return slot.__get__(owner)
    except AttributeError:
        return ABSENT


def put_back_mapping(
    mapping: dict[Any, Any], keys: tuple[Any, ...], values: tuple[Any, ...]
) -> None:
    """The same entries in the same order; those that have not changed are never missing."""
    kind = OrderedDict if isinstance(mapping, OrderedDict) else dict
    before = dict(zip(keys, values, strict=True))
    for key, value in before.items():
        if kind.get(mapping, key, ABSENT) is not value:
            kind.__setitem__(mapping, key, value)
    for key in [key for key in mapping if key not in before]:
        kind.__delitem__(mapping, key)
    if not all(map(is_, mapping, keys)):
        for key, value in before.items():
            kind.__delitem__(mapping, key)
            kind.__setitem__(mapping, key, value)


def put_back_container(value: Any, before: Any) -> None:
    """The same contents in a list, deque, set, array or the like, if they have changed."""
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


def put_back_class(kind: type, attributes: dict[str, Any]) -> None:
    """The same attributes of a class."""
    now = vars(kind)
    if len(now) == len(attributes) and all(map(is_, now.values(), attributes.values())):
        return
    for name in [name for name in now if name not in attributes]:
        delattr(kind, name)
    for name, value in attributes.items():
        if now.get(name, ABSENT) is not value:
            setattr(kind, name, value)
