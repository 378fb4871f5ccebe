"""Inputs and additional arguments as a recorded graph takes them: a list of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from captum_transformer_lrp.engine.watch.checks import tensors_of


class Given(NamedTuple):
    """Inputs and additional arguments, taken apart.

    Attributes:
        leaves: whatever they hold.
        structure: how they hold it.
        tensors: those among the leaves, as a graph takes them.
        inputs: how many of these are inputs; they come first.
    """

    leaves: Sequence[Any]
    structure: pytree.TreeSpec
    tensors: Sequence[Tensor]
    inputs: int

    @classmethod
    def of(cls, inputs: Any, additional: Any) -> Given:
        """Take arguments apart."""
        count = len(tensors_of(inputs))
        leaves, structure = pytree.tree_flatten((inputs, additional))
        tensors = [one.detach().contiguous() for one in leaves if isinstance(one, Tensor)]
        return cls(leaves, structure, tensors, count)

    def axes(self, batch: bool, tokens: bool) -> list[dict[int, int]]:
        """For each tensor the dimensions that may have any size, and the size's number."""
        sizes = [(dim, self.tensors[0].shape[dim]) for dim in [0] * batch + [1] * tokens]
        return [
            {
                dim: number
                for number, (dim, size) in enumerate(sizes)
                if one.dim() > dim and one.shape[dim] == size
            }
            for one in self.tensors
        ]

    def with_sizes(self, axes: Sequence[Mapping[int, int]], sizes: Sequence[int]) -> Given:
        """The same with other sizes: fewer tokens between first and last, or examples again."""
        tensors = []
        for one, numbers in zip(self.tensors, axes, strict=True):
            for dim, number in numbers.items():
                places = torch.arange(sizes[number], device=one.device) % one.shape[dim]
                if dim == 1 and sizes[number] < one.shape[dim]:
                    places[-1] = one.shape[dim] - 1
                one = one.index_select(dim, places)
            tensors.append(one.contiguous())
        return self._replace(tensors=tensors)

    def flipped(self) -> Given:
        """The same with other values, where inputs are floating-point numbers."""
        return self._replace(tensors=[
            one.flip(-1) if place < self.inputs and one.is_floating_point() else one
            for place, one in enumerate(self.tensors)
        ])  # fmt: skip

    @property
    def key(self) -> str:
        """What is the same for arguments that one graph serves."""
        shapes = [(one.shape, one.dtype, one.device) for one in self.tensors]
        return repr((shapes, self.structure, [one for one in self.leaves if not _is_tensor(one)]))

    def holding(self, tensors: Sequence[Tensor]) -> Any:
        """Inputs and additional arguments with other tensors."""
        rest = iter(tensors)
        filled = [next(rest) if _is_tensor(one) else one for one in self.leaves]
        return pytree.tree_unflatten(filled, self.structure)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
