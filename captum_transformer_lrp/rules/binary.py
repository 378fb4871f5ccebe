"""Rules for operations that mix two activations: skip-add, matmul and products (section 3.2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from captum_transformer_lrp.rules.base import Rule
from captum_transformer_lrp.rules.call import Call, sum_to_shape

MASKED = -1e4
"""Constants up to here, added to attention scores, switch positions off."""


class SkipAddRule(Rule):
    r"""``u + v``: eq. 2 for each operand, then the normalisation of eq. 9–10, per example.

    .. math::
        R^u = \frac{u}{u+v} R, \qquad
        \bar R^u = R^u \,
            \frac{|\Sigma R^u|}{|\Sigma R^u| + |\Sigma R^v|} \cdot
            \frac{\Sigma R}{\Sigma R^u}

    Relevance is conserved, and each operand's sum lies between 0 and ΣR (Lemma 2).  Where ``v``
    is a constant or a parameter (a position embedding), its share is absorbed and reported.
    Entries that switch attention scores off (-inf, or less than -1e4) are masking, not evidence,
    and take nothing.
    """

    is_well_conditioned: ClassVar[bool] = True

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Rule`."""
        u, v = call.inputs if call.constant is None else (call.inputs[0], call.constant)
        output = call.output  # u + v, as exact as the forward pass
        if call.constant is not None:
            output = torch.where(v <= MASKED, u, torch.where(u == -torch.inf, v, output))
            u, v = u.masked_fill(u == -torch.inf, 0), v.masked_fill(v <= MASKED, 0)
            output = output.masked_fill(output == -torch.inf, 0)
        u, v = u.expand_as(relevance), v.expand_as(relevance)
        share = call.divide(relevance, output, u.abs().add_(v.abs()))
        parts = (u * share, v * share)
        total = call.examples.sum(relevance)
        sums = [call.examples.sum(part) for part in parts]
        scale = sums[0].abs() + sums[1].abs()
        factors = [call.divide(total * one.sign(), scale, scale) for one in sums]
        if call.constant is not None:
            call.absorb(lambda: factors[1] * sums[1])
        return tuple(
            sum_to_shape(part * call.examples.spread(factor, part.dim()), value.shape)
            for part, factor, value in zip(parts, factors, call.inputs, strict=False)
        )


class MatmulRule(Rule):
    r"""A product of two activations, ``u @ v`` or ``u * v``: eq. 2 for each, then eq. 9–10.

    By eq. 2 the two operands' relevances have the same sum, :math:`\sum_i R_i\,y_i/y_i`, so by
    eq. 9–10 each ends up with half of its value.  The relevance of an output that is 0, or so close
    to it that the division is stabilised, is 0/0 in eq. 2: it is absorbed and reported.
    """

    is_well_conditioned: ClassVar[bool] = True

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Rule`."""
        share = call.divide(relevance / 2, call.output)
        call.absorb(lambda: call.undivided(relevance, 2 * share))
        return tuple(value * part for value, part in zip(call.inputs, call.vjp(share), strict=True))


class SolveRule(Rule):
    r"""``Y`` with ``A Y = B`` for activations A and B: eq. 2 for each, then eq. 9–10, per example.

    By eq. 2 B's relevance has the sum of the output's, and A's the sum that its inverse gives it,
    which has another sign and, if its diagonal is not read, another size.
    """

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Rule`."""
        share = call.divide(relevance, call.output)
        parts = [value * one for value, one in zip(call.inputs, call.vjp(share), strict=True)]
        sums = [call.examples.sum(part) for part in parts]
        scale = torch.stack([one.abs() for one in sums]).sum(0)
        nothing = call.output == 0
        total = call.examples.sum(relevance * ~nothing)
        call.absorb(lambda: call.examples.sum(relevance * nothing))
        return tuple(
            part * call.examples.spread(call.divide(total * one.sign(), scale, scale), part.dim())
            for part, one in zip(parts, sums, strict=True)
        )


class UnnormalizedAddRule(Rule):
    """``u + v`` by eq. 2 alone, without eq. 9–10.

    Args:
        epsilon: ε of LRP-ε, added to the denominator with its sign.
    """

    is_well_conditioned: ClassVar[bool] = True

    def __init__(self, epsilon: float = 0.0) -> None:
        self.epsilon = epsilon

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Rule`."""
        denominator = call.output + self.epsilon * torch.where(call.output < 0, -1.0, 1.0)
        share = call.divide(relevance, denominator)
        parts = [value.expand_as(relevance) * share for value in call.inputs]
        call.absorb(lambda: call.examples.sum(relevance - torch.stack(parts).sum(0)))
        return tuple(
            sum_to_shape(part, value.shape) for part, value in zip(parts, call.inputs, strict=True)
        )


class UnnormalizedMatmulRule(Rule):
    """A product of two activations by eq. 2 alone: each operand gets all of the relevance.

    Relevance doubles (Lemma 1 of the paper); this is the rule of the paper's baseline.
    """

    is_well_conditioned: ClassVar[bool] = True

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Rule`."""
        share = call.divide(relevance, call.output)
        # Negative: relevance that comes from nowhere.
        call.absorb(lambda: call.examples.sum(relevance - 2 * share * call.output))
        return tuple(value * part for value, part in zip(call.inputs, call.vjp(share), strict=True))
