"""Token ids on their way to an embedding: which token of the input each of them is.

Models pad ids, shift them for their decoder, join them with special ids, transpose or hash them
before they look them up.  For each tensor of ids the engine keeps *places*, a tensor of the same
shape: the place of each element in the flattened input, counted from 1, and 0 for an id that the
model has put there itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.tensor_table import HeldTable
from captum_transformer_lrp.rules.examples import Examples, read_examples
from captum_transformer_lrp.rules.spellings import spelled

ELEMENTWISE: frozenset[Callable[..., Any]] = frozenset(
    spelled(
        "add", "__add__", "__radd__", "sub", "subtract", "__sub__", "mul", "multiply", "__mul__",
        "__rmul__", "remainder", "__mod__", "fmod", "floor_divide", "__floordiv__", "clamp",
        "clip", "clamp_min", "clamp_max", "abs", "bitwise_and", "__and__", "bitwise_xor",
        "__xor__",
    )
)  # fmt: skip
"""Functions of an id and a number: hashes, offsets, clipping."""


@dataclass(frozen=True, eq=False)
class TokenIds:
    """Integers that stand for tokens of an explained input.

    Args:
        ids: the integers.
        index: which input.
        places: the place of each in that input, counted from 1; 0 for ids of the model's own.
        length: number of tokens of each example of the input.
        count: number of examples.
    """

    ids: Tensor
    index: int
    places: Tensor
    length: int
    count: int

    @classmethod
    def given(cls, ids: Tensor, index: int) -> TokenIds:
        """An input as it comes in, (N, S) or (N,)."""
        places = torch.arange(1, ids.numel() + 1, device=ids.device).reshape(ids.shape)
        return cls(ids, index, places, max(ids.numel() // ids.shape[0], 1), ids.shape[0])

    def become(self, ids: Tensor, places: Tensor) -> TokenIds:
        """The same tokens elsewhere."""
        return TokenIds(ids, self.index, places, self.length, self.count)

    @property
    def examples(self) -> Examples:
        """Which example each id belongs to."""
        if self.count == 1:
            return Examples(1)
        numbers = (self.places + self.length - 1) // self.length
        return read_examples(numbers.float(), self.count)


def moved(
    run: Callable[[Callable[[Tensor], Tensor]], Any], known: HeldTable[TokenIds]
) -> list[Tensor]:
    """The places of each id in the result of an operation that moves ids.

    The operation is run twice on places instead of ids, the second time with places that are
    larger by a constant: what has not grown by that constant is no id that was moved.

    Args:
        run: the operation, given what to replace each tensor by.
        known: of its tensors those that are ids.
    """
    beyond = 1 + max(int(one.ids.numel()) + int(one.places.max()) for one in known.values())

    def result(offset: int) -> list[Tensor]:
        def replaced(tensor: Tensor) -> Tensor:
            found = known.get(tensor)
            if found is None:
                return tensor
            return torch.where(found.places > 0, found.places + offset, found.places)

        value = run(replaced)
        return list(value) if isinstance(value, (tuple, list)) else [value]

    return [
        torch.where(after - before == beyond, before, 0)
        for before, after in zip(result(0), result(beyond), strict=True)
    ]


def at_tokens(values: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
    """Values of embeddings (…, D), added up for the tokens that they were looked up for.

    Args:
        values: for each id of a look-up, (…, D).
        places: the place of each of these ids, (…).
        shape: that of the input, (N, S).

    Returns:
        (N, S, D).

    Example:
        >>> values = torch.tensor([[[1.0], [2.0], [4.0]]])
        >>> at_tokens(values, torch.tensor([[0, 2, 1]]), torch.Size([1, 2])).squeeze(-1)
        tensor([[4., 2.]])
    """
    features = values.shape[-1]
    rows = values.new_zeros(shape.numel() + 1, features)
    rows = rows.index_add(0, places.flatten(), values.reshape(-1, features))
    return rows[1:].reshape(*shape, features)
