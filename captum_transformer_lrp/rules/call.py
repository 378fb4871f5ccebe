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

from captum_transformer_lrp.rules.examples import Examples
from captum_transformer_lrp.rules.kernels import Kernel
from captum_transformer_lrp.rules.stabilizers import quotient


class Stabilizer(Protocol):
    """Moves a denominator away from zero (see :mod:`captum_transformer_lrp.rules.stabilizers`)."""

    def __call__(self, numerator: Tensor, denominator: Tensor, scale: Tensor | None) -> Tensor:
        """``numerator / denominator``, kept finite."""
        ...


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

    def divide_by(self, numerator: Tensor, total: Tensor, epsilon: float) -> Tensor:
        """``numerator / (total + ε sign(total))``, stabilised where rounding loses ε."""
        if epsilon <= torch.finfo(total.dtype).eps ** 2:
            return self.divide(numerator, with_sign(total, epsilon))
        return quotient(numerator, with_sign(total, epsilon))

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
            >>> from captum_transformer_lrp.rules.kernels import AutogradKernel
            >>> call = Call(torch.add, AutogradKernel(torch.add), (), torch.zeros(1), epsilon=0.5)
            >>> call.share(torch.tensor([11.0]), torch.tensor([1.0]), lambda: torch.tensor([9.0]))
            tensor([2.])
        """
        if not self.epsilon:
            return self.divide(relevance / operands if operands > 1 else relevance, total, scale)
        floor = size().mul_(self.epsilon * operands).add_(torch.finfo(total.dtype).eps ** 2)
        return quotient(relevance, floor.copysign_(total).add_(total, alpha=operands))

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
    return torch.copysign(denominator.new_full((), epsilon), denominator).add_(denominator)
