"""Keeping the denominators of relevance propagation away from zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor


@dataclass(frozen=True)
class SignAwareStabilizer:
    """Adds a term with the denominator's own sign, sized to the dtype.

    The term is ``ε² + ε·scale`` with ε the dtype's machine epsilon: where the caller knows the
    size of the summands that cancelled, the quotient of a summand and the denominator stays below
    1/ε, and everything smaller than that is left as it is.

    Example:
        >>> divide = SignAwareStabilizer()
        >>> zero = torch.zeros(1)
        >>> bool(divide(torch.ones(1), zero, None).isfinite())
        True
        >>> divide(torch.ones(1), torch.tensor([-2.0]), None)
        tensor([-0.5000])
    """

    def __call__(self, numerator: Tensor, denominator: Tensor, scale: Tensor | None) -> Tensor:
        """``numerator / (denominator ± (ε² + ε·scale))``."""
        epsilon = torch.finfo(denominator.dtype).eps
        if scale is None:
            floor = torch.copysign(denominator.new_full((), epsilon**2), denominator)
        else:
            floor = (scale * epsilon).add_(epsilon**2).copysign_(denominator)
        return quotient(numerator, floor.add_(denominator))


@dataclass(frozen=True)
class AdditiveStabilizer:
    """Adds a constant to every denominator, whatever its sign.

    This is what the paper's published code does, with 1e-9; it is here to reproduce its numbers
    digit by digit.  It vanishes in half precision and explodes for denominators near minus the
    constant: prefer :class:`SignAwareStabilizer`, the default.

    Args:
        epsilon: the constant.

    Example:
        >>> AdditiveStabilizer(1.0)(torch.ones(2), torch.tensor([1.0, 0.0]), None)
        tensor([0.5000, 0.0000])
    """

    epsilon: float = 1e-9

    def __call__(self, numerator: Tensor, denominator: Tensor, scale: Tensor | None) -> Tensor:
        """``numerator / (denominator + epsilon)``, and 0 where the denominator is 0."""
        return numerator / (denominator + self.epsilon) * (denominator != 0)


def quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, in the denominator's memory where it fits.

    New memory costs several times what the division does.
    """
    fits = numerator.shape == denominator.shape and numerator.dtype == denominator.dtype
    if not fits or torch.is_grad_enabled():
        return numerator / denominator
    if is_batchedtensor(numerator) or is_batchedtensor(denominator):
        return numerator / denominator
    return torch.div(numerator, denominator, out=denominator)
