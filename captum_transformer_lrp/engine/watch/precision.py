"""What an explanation is computed in: the model's own precision, and float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.values import raised


class Precision:
    """The precision of one forward pass.

    Args:
        dtype: what to compute in, unless the model's own is more precise.
        device_type: where the model runs, such as ``"cuda"``; ``"mps"`` has float32 alone.

    Attributes:
        given: the precision of what came in, float32 or float64.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, device_type: str = "cpu") -> None:
        self.given = torch.float32
        self._dtype = torch.float32 if device_type == "mps" else dtype
        self._device_type = device_type

    def raised(self, given: Tensor) -> Tensor:
        """What comes in from outside, in the precision of the tape."""
        if given.dtype == torch.float64:
            self.given = torch.float64
        return given.to(self._dtype) if given.element_size() < self._dtype.itemsize else given

    def raised_constant(self, tensor: Tensor) -> Tensor:
        """A constant of the model, in the precision of the tape."""
        return raised(tensor, self._dtype)

    def loses(self, source: Tensor, result: Tensor) -> bool:
        """Whether a cast is to less than what is computed in.

        Where that is half precision, the model's own casts to it are made as they are.
        """
        smaller = result.is_floating_point() and result.element_size() < source.element_size()
        return smaller and (self._dtype.itemsize > 2 or result.element_size() < 2)

    def autocasts(self) -> bool:
        """Whether PyTorch would compute in less."""
        return torch.is_autocast_enabled(self._device_type)

    def kept(self) -> torch.autocast:
        """A block in which PyTorch computes in what it is given."""
        return torch.autocast(self._device_type, enabled=False)
