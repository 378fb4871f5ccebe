"""What copies, parts, sums and products of activations are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.graph.tensor_table import TensorTable

Slice: TypeAlias = tuple[Tensor, int | None]


@dataclass
class MadeOf:
    """What is known of tensors beside their provenance, for as long as they live.

    Args:
        sources: for copies, moves and multiples of a tensor that tensor.
        joined: for tensors that are put together the tensors that they are put together from.
        moved: for parts of a tensor that tensor, and the call that they are results of.
        products: for products element by element of two activations these.
        sums: for a tensor another that it has been added to, and their sum.
        slices: for sums of slices of one tensor that tensor, and the slices, each with the axis
            that it is summed over, or None.
        detached: for activations without derivative what they are of.
    """

    sources: TensorTable[Tensor] = field(default_factory=TensorTable)
    joined: TensorTable[list[Tensor]] = field(default_factory=TensorTable)
    moved: TensorTable[tuple[Tensor, Any, int, Any, Any]] = field(default_factory=TensorTable)
    products: TensorTable[tuple[Tensor, Tensor]] = field(default_factory=TensorTable)
    sums: TensorTable[tuple[Tensor, Tensor]] = field(default_factory=TensorTable)
    slices: TensorTable[tuple[Tensor, list[Slice]]] = field(default_factory=TensorTable)
    detached: TensorTable[Mark] = field(default_factory=TensorTable)

    def clear(self) -> None:
        """Forget everything."""
        for table in vars(self).values():
            table.clear()
