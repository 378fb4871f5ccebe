"""Explaining a batch a few examples at a time, so that memory is bounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from captum._utils.common import _format_tensor_into_tuples
from torch import Tensor

from captum_transformer_lrp.attr.targets import misfit
from captum_transformer_lrp.engine.graph.arguments import replace_tensors


def in_chunks(
    inputs: Any, additional_forward_args: Any, size: int | None
) -> Iterator[tuple[Any, Any, tuple[int, int, int]]]:
    """Cut a batch into pieces of at most ``size`` examples.

    Tensors in ``additional_forward_args`` whose first dimension is that of the batch are cut, too.
    Without a size there is one piece.

    Yields:
        The piece of the inputs, that of the arguments, and the first example, the one after the
        last, and the number of all.

    Raises:
        ValueError: unless ``size`` is at least 1.
    """
    if size is not None and size < 1:
        raise ValueError(f"internal_batch_size must be at least 1, found {size}")
    tensors = _format_tensor_into_tuples(inputs)
    first = tensors[0]
    count = first.shape[0] if isinstance(first, Tensor) and first.dim() else 0
    if size is None or count <= size:
        yield inputs, additional_forward_args, (0, count, count)
        return
    for start in range(0, count, size):
        end = min(start + size, count)

        def piece(value: Tensor, start: int = start, end: int = end) -> Tensor:
            whole = value.dim() == 0 or value.shape[0] != count
            return value if whole else value[start:end]

        yield (
            replace_tensors(inputs, piece),
            replace_tensors(additional_forward_args, piece),
            (start, end, count),
        )


def chunk_of_target(target: Any, start: int, end: int, count: int) -> Any:
    """The piece of a target that belongs to examples ``start`` to ``end`` of ``count``.

    Example:
        >>> chunk_of_target([5, 6, 7], 1, 3, 3), chunk_of_target(5, 1, 3, 3)
        ([6, 7], 5)
    """
    if (start, end) == (0, count):
        return target
    if isinstance(target, list):
        if len(target) != count:
            raise misfit(f"{len(target)} entries", count)
        return target[start:end]
    if isinstance(target, Tensor) and target.shape == (count,) and count > 1:
        return target[start:end]
    return target


def joined(parts: Sequence[Any]) -> Any:
    """The results for all pieces of a batch, put together again.

    Example:
        >>> joined([(torch.zeros(2, 3),), (torch.zeros(1, 3),)])[0].shape
        torch.Size([3, 3])
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    return type(first)(joined(of_place) for of_place in zip(*parts, strict=True))
