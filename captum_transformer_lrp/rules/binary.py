"""Rules for operations that mix two activations: skip-add, matmul and products (section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_transformer_lrp.rules.base import Rule
from captum_transformer_lrp.rules.call import Call
from captum_transformer_lrp.rules.kernels import sum_to_shape

MASKED = -1e4
"""Constants up to here, added to attention scores, switch positions off."""

MOST_GIVEN_BACK = 4.0
"""Eq. 9–10 multiplies what ε has left by at most this; the rest is absorbed."""


class SkipAddRule(Rule):
    r"""``u + v``: eq. 2 for each operand, then the normalisation of eq. 9–10, per example.

    .. math::
        R^u = \frac{u}{u+v} R, \qquad
        \bar R^u = R^u \,
            \frac{|\Sigma R^u|}{|\Sigma R^u| + |\Sigma R^v|} \cdot
            \frac{\Sigma R}{\Sigma R^u}

    Relevance is conserved, and each operand's sum lies between 0 and ΣR (Lemma 2).  The
    denominator is kept away from zero by ε (:meth:`Call.share`); eq. 9–10 gives back
    what ε takes.  Where ``v`` is a constant or a parameter (a position embedding), its share is
    absorbed and reported.
    Entries that switch attention scores off (-inf, or less than -1e4) are masking, not evidence,
    and take nothing.
    """

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Rule`."""
        u, v = call.inputs if call.constant is None else (call.inputs[0], call.constant)
        output = call.output  # u + v, as exact as the forward pass
        if call.constant is not None:
            output = torch.where(v <= MASKED, u, torch.where(u == -torch.inf, v, output))
            u, v = u.masked_fill(u == -torch.inf, 0), v.masked_fill(v <= MASKED, 0)
            output = output.masked_fill(output == -torch.inf, 0)
        u, v = u.expand_as(relevance), v.expand_as(relevance)
        size = u.abs().add_(v.abs())
        share = call.share(relevance, output, lambda: size, scale=size)
        parts = (u * share, v * share)
        total = call.examples.sum(relevance)
        sums = torch.stack([call.examples.sum(part) for part in parts])
        left = sums.abs().sum(0)
        # Without ε this is at least |ΣR|.  With it both sums may vanish where ΣR does not.
        scale = torch.maximum(left, total.abs() / MOST_GIVEN_BACK)
        factors = call.divide(total * sums.sign(), scale, scale)
        if call.constant is not None:
            call.absorb(lambda: factors[1] * sums[1])
        if call.epsilon:
            call.absorb(lambda: (total * (1 - left / scale)).masked_fill(left >= scale, 0))
        return tuple(
            sum_to_shape(part.mul_(call.examples.spread(factor, part.dim())), value.shape)
            for part, factor, value in zip(parts, factors, call.inputs, strict=False)
        )


class SideBySideRule(Rule):
    """``u + v`` of operands that are nowhere both other than 0, as ``cat`` would join them."""

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Rule`."""
        v = call.inputs[1] if call.constant is None else call.constant
        is_of_v = (v != 0).expand_as(relevance)
        parts = relevance.masked_fill(is_of_v, 0), relevance.masked_fill(~is_of_v, 0)
        if call.constant is not None:
            call.absorb(lambda: call.examples.sum(parts[1]))
        pairs = zip(parts, call.inputs, strict=False)
        return tuple(sum_to_shape(part, value.shape) for part, value in pairs)


class MatmulRule(Rule):
    r"""A matrix product of two activations, ``u @ v``: eq. 2 for each, then eq. 9–10.

    .. math::
        R^u_{ij} = \frac 12 \sum_k \frac{u_{ij} v_{jk}}
                   {y_{ik} + \varepsilon\,s_{ik}\,\mathrm{sign}\,y_{ik}} R_{ik}, \qquad
        s_{ik} = \sum_j |u_{ij} v_{jk}|

    By eq. 2 the two operands' relevances have the same sum, so by eq. 9–10 each ends up with half
    of its value.  What ε takes is absorbed and reported: scores of both signs may have a sum near
    zero, which nothing could be given back by.  So is the relevance of an output that is 0, which
    is 0/0 in eq. 2.
    """

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Rule`."""
        share = call.share(relevance, call.output, lambda: _sizes(call), operands=2)
        call.absorb(lambda: call.undivided(relevance, 2 * share))
        return tuple(value * part for value, part in zip(call.inputs, call.vjp(share), strict=True))


def _sizes(call: Call) -> Tensor:
    """Σ|u||v| of a product of two activations."""
    return call.forward(*[value.abs() for value in call.inputs])


class ProductRule(Rule):
    """A product of two activations element by element, ``u * v``: half of R for each.

    Each output has one summand, so that eq. 2 divides it by itself and eq. 9–10 halves it.  The
    relevance of an output that is 0 is 0/0 in eq. 2: it is absorbed and reported.
    """

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Rule`."""
        half = (relevance / 2).masked_fill_(call.output == 0, 0)
        call.absorb(lambda: call.examples.sum(relevance - 2 * half))
        return tuple(sum_to_shape(half, value.shape) for value in call.inputs)


class SolveRule(Rule):
    r"""``Y`` with ``A Y = B`` for activations A and B: eq. 2 for each, then eq. 9–10, per example.

    By eq. 2 B's relevance has the sum of the output's, and A's the sum that its inverse gives it,
    which has another sign and, if its diagonal is not read, another size.  The denominator
    :math:`Y = A^{-1} B` is kept away from zero by ε with :math:`s = |A^{-1}|\,|B|`.
    """

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Rule`."""
        share = call.share(relevance, call.output, lambda: _solved_size(call))
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


def _solved_size(call: Call) -> Tensor:
    matrix, right = call.inputs
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return call.forward(matrix, identity.expand_as(matrix)).abs() @ right.abs()


class UnnormalizedAddRule(Rule):
    """``u + v`` by eq. 2 alone, without eq. 9–10."""

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Rule`."""
        u, v = call.inputs if call.constant is None else (call.inputs[0], call.constant)
        share = call.share(relevance, call.output, lambda: u.abs() + v.abs())
        return _shared(call, relevance, share)


class EpsilonAddRule(Rule):
    """``u + v`` by LRP-ε.

    Args:
        epsilon: ε, added to the denominator with its sign; 0 leaves that to the stabiliser.
    """

    def __init__(self, epsilon: float = 0.0) -> None:
        self.epsilon = epsilon

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Rule`."""
        share = call.divide_by(relevance, call.output, self.epsilon)
        return _shared(call, relevance, share)


def _shared(call: Call, relevance: Tensor, share: Tensor) -> tuple[Tensor, ...]:
    """Each input's part of a sum; ``share`` is what a summand is multiplied by."""
    parts = [value.expand_as(relevance) * share for value in call.inputs]
    call.absorb(lambda: call.examples.sum(relevance - torch.stack(parts).sum(0)))
    return tuple(
        sum_to_shape(part, value.shape) for part, value in zip(parts, call.inputs, strict=True)
    )


class UnnormalizedMatmulRule(Rule):
    """A matrix product of two activations by eq. 2 alone: each operand gets all of the relevance.

    Relevance doubles (Lemma 1 of the paper); this is the rule of the paper's baseline.
    """

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Rule`."""
        share = call.share(relevance, call.output, lambda: _sizes(call))
        # Negative: relevance that comes from nowhere.
        call.absorb(lambda: call.examples.sum(relevance - 2 * share * call.output))
        return tuple(value * part for value, part in zip(call.inputs, call.vjp(share), strict=True))


class UnnormalizedProductRule(Rule):
    """``u * v`` by eq. 2 alone: each operand gets all of the relevance."""

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Rule`."""
        whole = relevance.masked_fill(call.output == 0, 0)
        call.absorb(lambda: call.examples.sum(relevance - 2 * whole))
        return tuple(sum_to_shape(whole, value.shape) for value in call.inputs)
