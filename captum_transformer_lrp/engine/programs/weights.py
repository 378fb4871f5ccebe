"""What the program of an explanation was made for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn


class Weights:
    """The tensors of a model and of a graph, as they are now.

    Args:
        model: a module, or any function.
        tensors: those that the graph has of its own, or shares with the model.
    """

    def __init__(self, model: Any, tensors: Sequence[Tensor]) -> None:
        # Not parameters(): its generators take milliseconds for a model of some hundred modules.
        modules = model.modules() if isinstance(model, nn.Module) else ()
        self._parts: list[dict[str, Any]] = [
            part for one in modules for part in (one._modules, one._parameters, one._buffers)
        ]
        self._members = self._held()
        held = (one for one in (*self._members, *tensors) if isinstance(one, Tensor))
        self._tensors = [*dict.fromkeys(held)]
        self._written = [one for one in self._tensors if not one.is_inference()]
        self._state = self._now()

    def changed(self) -> bool:
        """Whether something was written into or replaced since."""
        held = self._held()
        same = len(held) == len(self._members) and all(map(is_, held, self._members))
        return not same or self._now() != self._state

    def _held(self) -> list[Any]:
        return [*chain.from_iterable(map(dict.values, self._parts))]

    def _now(self) -> tuple[list[int], list[int]]:
        return (
            [*map(Tensor.data_ptr, self._tensors)],
            [*map(attrgetter("_version"), self._written)],
        )
