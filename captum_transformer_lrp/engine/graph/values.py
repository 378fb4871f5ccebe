"""Values of another precision, and stand-ins for values that are not kept."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

PLAIN = frozenset({Tensor, torch.nn.Parameter})
"""The types of tensors that are no wrapper of others."""

Shape: TypeAlias = tuple[torch.Size, torch.dtype, torch.device]


def is_dequantisable(tensor: Tensor) -> bool:
    """Whether a tensor in a form of its own, as torchao's are, says what its values are."""
    kind = type(tensor)
    own = is_traceable_wrapper_subclass(tensor) and kind.dequantize is not Tensor.dequantize
    return own and tensor.is_floating_point()


def raised(constant: Tensor, dtype: torch.dtype) -> Tensor:
    """A constant in a dtype, if that is more precise; dequantised, if it is in its own form."""
    if constant.dtype is dtype and type(constant) in PLAIN:
        return constant
    if is_dequantisable(constant):
        constant = constant.dequantize()
    lower = constant.is_floating_point() and constant.element_size() < dtype.itemsize
    return constant.to(dtype) if lower else constant


def is_finite(values: Tensor) -> bool:
    """Whether there is no NaN and no infinity; ``isfinite`` takes ten times as long on a CPU."""
    return bool((values * 0).sum() == 0)


def stand_in(shape: Shape) -> Tensor:
    """A tensor of a shape, dtype and device that takes no memory."""
    size, dtype, device = shape
    return torch.empty((), dtype=dtype, device=device).expand(size)


def stand_in_for(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, dtype and device that takes no memory."""
    return stand_in((tensor.shape, tensor.dtype, tensor.device))


def is_laid_out_plainly(base: Tensor) -> bool:
    """Whether places in its memory are places in whatever contiguous tensor replaces it."""
    return bool(base.is_contiguous() and base.storage_offset() == 0)
