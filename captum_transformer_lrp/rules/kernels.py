"""What a call computes, as a function that can be evaluated again on other values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from captum_transformer_lrp.rules.products import product


class Kernel(Protocol):
    """The operation of a call without its bias: a function and its vector-Jacobian product.

    Attributes:
        by_row: whether each row of the output (along its last dimension) depends on the same row
            of the one input, and in the same way.
    """

    by_row: bool

    def forward(self, inputs: Sequence[Tensor], weight: Tensor | None) -> Tensor:
        """The operation's value at ``inputs``, with ``weight`` in the place of its weight."""
        ...

    def vjp(
        self, seed: Tensor, inputs: Sequence[Tensor], weight: Tensor | None
    ) -> tuple[Tensor, ...]:
        """``seedᵀ · ∂forward/∂input`` for every input."""
        ...


class AutogradKernel:
    """Any differentiable function as a kernel; its vector-Jacobian product is autograd's.

    Args:
        function: called as ``function(*inputs)``, or ``function(*inputs, weight)`` if the call
            has a weight.

    Example:
        >>> kernel = AutogradKernel(torch.mul)
        >>> u, v = torch.tensor([2.0]), torch.tensor([5.0])
        >>> kernel.vjp(torch.ones(1), (u, v), None)
        (tensor([5.]), tensor([2.]))
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.by_row = False

    def forward(self, inputs: Sequence[Tensor], weight: Tensor | None) -> Tensor:
        """See :class:`Kernel`."""
        return self.function(*inputs) if weight is None else self.function(*inputs, weight)

    def vjp(
        self, seed: Tensor, inputs: Sequence[Tensor], weight: Tensor | None
    ) -> tuple[Tensor, ...]:
        """See :class:`Kernel`."""
        with torch.enable_grad():
            values = [_differentiable(value) for value in inputs]
            output = self.forward(values, None if weight is None else weight.detach())
            return torch.autograd.grad(output, values, seed)


class SoftmaxKernel(AutogradKernel):
    """A softmax, whose derivative follows from its output: its input need not be kept.

    Args:
        function: called as ``function(input)``.
        dim: the axis that sums to 1.
    """

    def __init__(self, function: Callable[..., Tensor], dim: int) -> None:
        super().__init__(function)
        self.dim = dim

    def vjp_at(self, output: Tensor, seed: Tensor) -> Tensor:
        """``seedᵀ · ∂output/∂input``."""
        # PyTorch's own, which passes over the map once.
        return torch._softmax_backward_data(seed, output, self.dim, output.dtype)


def _differentiable(value: Tensor) -> Tensor:
    """The same values, where a new autograd graph begins."""
    if torch._C._are_functorch_transforms_active():  # vmap lets no tensor be made a leaf
        start = torch.zeros((), dtype=value.dtype, device=value.device, requires_grad=True)
        return start + value.detach()
    return value.detach().requires_grad_()


class MatmulKernel:
    """``u @ v`` with its vector-Jacobian product ``(seed @ vᵀ, uᵀ @ seed)``."""

    by_row = False

    def forward(self, inputs: Sequence[Tensor], weight: Tensor | None) -> Tensor:
        """See :class:`Kernel`."""
        u, v = inputs
        return torch.matmul(u, v)

    def vjp(
        self, seed: Tensor, inputs: Sequence[Tensor], weight: Tensor | None
    ) -> tuple[Tensor, ...]:
        """See :class:`Kernel`."""
        return self.vjp_of(0, seed, inputs), self.vjp_of(1, seed, inputs)

    def vjp_of(self, place: int, seed: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """The vector-Jacobian product for one operand."""
        u, v = inputs
        if u.dim() < 2 or v.dim() < 2:
            return AutogradKernel(torch.matmul).vjp(seed, inputs, None)[place]
        if place == 0:
            found = seed @ v.mT
        elif seed.shape[-1] == 1:  # of a transposed matrix BLAS makes this several times as fast
            found = (seed.mT @ u).mT
        else:
            found = u.mT @ seed
        return sum_to_shape(found, inputs[place].shape)


class LinearKernel:
    """``x · Wᵀ`` of :func:`torch.nn.functional.linear`."""

    by_row = True

    def forward(self, inputs: Sequence[Tensor], weight: Tensor | None) -> Tensor:
        """See :class:`Kernel`."""
        assert weight is not None
        return product(inputs[0], weight.t())

    def vjp(
        self, seed: Tensor, inputs: Sequence[Tensor], weight: Tensor | None
    ) -> tuple[Tensor, ...]:
        """See :class:`Kernel`."""
        assert weight is not None
        return (product(seed, weight),)


class ProductKernel:
    """``x · W`` of :func:`torch.matmul`, with a matrix W."""

    by_row = True

    def forward(self, inputs: Sequence[Tensor], weight: Tensor | None) -> Tensor:
        """See :class:`Kernel`."""
        assert weight is not None
        return product(inputs[0], weight)

    def vjp(
        self, seed: Tensor, inputs: Sequence[Tensor], weight: Tensor | None
    ) -> tuple[Tensor, ...]:
        """See :class:`Kernel`."""
        assert weight is not None
        return (product(seed, weight.mT),)


def sum_to_shape(values: Tensor, shape: torch.Size) -> Tensor:
    """Undo broadcasting: add up ``values`` over the axes that ``shape`` was broadcast along."""
    return values if values.shape == shape else values.sum_to_size(shape)
