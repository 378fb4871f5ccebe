"""One PyTorch call of a model, as a propagation rule sees it.

A rule never meets a module, a hook or an autograd graph.  It is given a :class:`Call` — the
operation's inputs, its output, its weight and the operation itself as a function that can be
evaluated again on other values — and divides the output's relevance among the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from captum_transformer_lrp.errors import ExplanationError

_MIXED = (
    "the examples of the batch cannot be told apart in one of the model's tensors, so relevance "
    "cannot be summed for each: explain one example at a time"
)


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


class Stabilizer(Protocol):
    """Moves a denominator away from zero (see :mod:`captum_transformer_lrp.rules.stabilizers`)."""

    def __call__(self, numerator: Tensor, denominator: Tensor, scale: Tensor | None) -> Tensor:
        """``numerator / denominator``, kept finite."""
        ...


@dataclass(frozen=True)
class Examples:
    """Which example of the batch each element of a tensor belongs to.

    Relevance is normalised per example, and the examples need not lie along dimension 0: windowed
    attention folds them into ``batch · windows``, sequence-first code keeps them in dimension 1.

    Args:
        count: number of examples.
        axis: the dimension that the examples lie along, or None where that is not known.
        index: for each position of that dimension, its example, or -1 for padding that belongs to
            none; None if position = example.
    """

    count: int
    axis: int | None = 0
    index: tuple[int, ...] | None = None

    @property
    def known(self) -> bool:
        """Whether per-example sums can be taken."""
        return self.count == 1 or self.axis is not None

    def sum(self, values: Tensor) -> Tensor:
        """Sum of ``values`` (shape as the call's output) for each example, shape ``(count,)``."""
        if self.count == 1:
            return values.sum().reshape(1)
        if self.axis is None:
            raise ExplanationError(_MIXED)
        rows = values.movedim(self.axis, 0).flatten(1).sum(1) if values.dim() > 1 else values
        if self.index is None:
            return rows
        index = torch.tensor(self.index, dtype=torch.long, device=values.device)
        sums = rows.new_zeros(self.count + 1).index_add(0, index % (self.count + 1), rows)
        return sums[: self.count]

    def spread(self, per_example: Tensor, dim: int) -> Tensor:
        """``per_example`` of shape ``(count,)``, shaped to multiply a tensor of ``dim`` axes."""
        if self.count == 1:
            return per_example.reshape([1] * dim)
        if self.axis is None:
            raise ExplanationError(_MIXED)
        rows = per_example
        if self.index is not None:
            with_nobody = torch.cat([per_example, per_example.new_zeros(1)])
            index = torch.tensor(self.index, dtype=torch.long, device=per_example.device)
            rows = with_nobody[index]
        shape = [1] * dim
        shape[self.axis] = -1
        return rows.reshape(shape)


@dataclass(frozen=True)
class Call:
    """One call, as a rule sees it.

    Args:
        function: the PyTorch function that the model called, e.g. ``torch.matmul``.
        kernel: the operation without its bias, to be evaluated on other values.
        inputs: the activations that take part, each of which receives relevance.
        output: the call's result, bias included.
        weight: the parameter (or other constant) of a linear operation.
        bias: its bias.
        constant: the other operand where an activation meets a constant or a parameter, e.g. the
            position embedding in ``x + position_embedding``.
        gate: of a product of two inputs, the place of the one that weighs the other: the attention
            map A, or the one that an activation function has been applied to; None if that is said
            of neither or of both.
        examples: where the examples of the batch lie in ``output``.
        stabilizer: divides safely; use :meth:`divide`.
        epsilon: ε of eq. 2; use :meth:`share`.
        keeps_books: whether somebody adds up absorbed relevance.
        absorb: reports relevance that goes no further (to a parameter, or 0/0), as a function that
            returns its sum for each example, shape ``(count,)``; it is called only if somebody
            keeps the books.
    """

    function: Callable[..., Any]
    kernel: Kernel
    inputs: tuple[Tensor, ...]
    output: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    constant: Tensor | None = None
    gate: int | None = None
    examples: Examples = field(default_factory=lambda: Examples(1))
    stabilizer: Stabilizer | None = None
    epsilon: float = 0.0
    keeps_books: bool = False
    absorb: Callable[[Callable[[], Tensor]], None] = lambda amount: None

    def forward(self, *inputs: Tensor, weight: Tensor | None = None) -> Tensor:
        """The operation, without bias, at other inputs and (if given) with another weight."""
        return self.kernel.forward(inputs, self.weight if weight is None else weight)

    def vjp(
        self,
        seed: Tensor,
        inputs: Sequence[Tensor] | None = None,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """``seedᵀ · ∂forward/∂input`` for every input, at ``inputs`` (default: the call's own)."""
        return self.kernel.vjp(
            seed,
            self.inputs if inputs is None else inputs,
            self.weight if weight is None else weight,
        )

    def divide(self, numerator: Tensor, denominator: Tensor, scale: Tensor | None = None) -> Tensor:
        """``numerator / denominator``, stabilised.

        ``scale`` is the size of what cancelled to make the denominator, where the rule knows it.
        """
        if self.stabilizer is None:
            return numerator / denominator
        return self.stabilizer(numerator, denominator, scale)

    def share(
        self,
        relevance: Tensor,
        total: Tensor,
        size: Callable[[], Tensor],
        *,
        scale: Tensor | None = None,
        operands: int = 1,
    ) -> Tensor:
        r"""What eq. 2 multiplies each summand by, kept away from division by zero.

        Args:
            relevance: R of the sum.
            total: :math:`y = \sum_i z_i`, of the same shape.
            size: returns :math:`s = \sum_i |z_i|` as a new tensor; it is called where ε is not 0.
            scale: as in :meth:`divide`, for ε = 0.
            operands: how many operands divide the relevance in equal parts (eq. 9, 10).

        Returns:
            :math:`R / (y + \varepsilon\,s\,\mathrm{sign}\,y)`, divided by ``operands``.  The
            denominator is no smaller than :math:`\varepsilon s`, so that no summand gets more than
            :math:`1/\varepsilon` of R.

        Example:
            >>> call = Call(torch.add, AutogradKernel(torch.add), (), torch.zeros(1), epsilon=0.5)
            >>> call.share(torch.tensor([11.0]), torch.tensor([1.0]), lambda: torch.tensor([9.0]))
            tensor([2.])
        """
        if not self.epsilon:
            return self.divide(relevance / operands if operands > 1 else relevance, total, scale)
        floor = size().mul_(self.epsilon * operands).add_(torch.finfo(total.dtype).eps ** 2)
        return relevance / floor.copysign_(total).add_(total, alpha=operands)

    def undivided(self, relevance: Tensor, share: Tensor) -> Tensor:
        """Relevance of outputs so close to 0 that ``share`` = relevance / output is stabilised.

        In eq. 2 it is 0/0: nobody gets it.  Per example, shape ``(count,)``.
        """
        rest = relevance - share * self.output
        rounding = max(1e-9, 16 * torch.finfo(rest.dtype).eps)
        return self.examples.sum(rest * (rest.abs() > rounding * relevance.abs()))


def with_sign(denominator: Tensor, epsilon: float) -> Tensor:
    """The denominator of LRP-ε, y + ε sign(y), with an absolute ε."""
    if not epsilon:
        return denominator
    return denominator + torch.copysign(denominator.new_full((), epsilon), denominator)


def sum_to_shape(values: Tensor, shape: torch.Size) -> Tensor:
    """Undo broadcasting: add up ``values`` over the axes that ``shape`` was broadcast along."""
    return values if values.shape == shape else values.sum_to_size(shape)


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
        product = seed @ v.mT if place == 0 else u.mT @ seed
        return sum_to_shape(product, inputs[place].shape)


class LinearKernel:
    """``x · Wᵀ`` of :func:`torch.nn.functional.linear`."""

    by_row = True

    def forward(self, inputs: Sequence[Tensor], weight: Tensor | None) -> Tensor:
        """See :class:`Kernel`."""
        assert weight is not None
        return torch.nn.functional.linear(inputs[0], weight)

    def vjp(
        self, seed: Tensor, inputs: Sequence[Tensor], weight: Tensor | None
    ) -> tuple[Tensor, ...]:
        """See :class:`Kernel`."""
        assert weight is not None
        return (seed @ weight if weight.dim() == 2 else seed.unsqueeze(-1) * weight,)


class ProductKernel:
    """``x · W`` of :func:`torch.matmul`, with a matrix W."""

    by_row = True

    def forward(self, inputs: Sequence[Tensor], weight: Tensor | None) -> Tensor:
        """See :class:`Kernel`."""
        assert weight is not None
        return torch.matmul(inputs[0], weight)

    def vjp(
        self, seed: Tensor, inputs: Sequence[Tensor], weight: Tensor | None
    ) -> tuple[Tensor, ...]:
        """See :class:`Kernel`."""
        assert weight is not None
        return (seed @ weight.mT,)
