"""Rules for softmax and for products of activations, of the methods after 2021."""

from __future__ import annotations

from torch import Tensor

from captum_transformer_lrp.rules.base import Rule
from captum_transformer_lrp.rules.call import Call
from captum_transformer_lrp.rules.kernels import sum_to_shape


class TaylorSoftmaxRule(Rule):
    r"""Softmax by its Taylor expansion at its input (Achtibat et al. 2024, Proposition 3.1).

    .. math:: R_j = x_j \Big(R_j^{\mathrm{out}} - s_j \sum_i R_i^{\mathrm{out}}\Big)

    It does not conserve: the expansion has a bias, which absorbs the rest.  A masked score, whose
    s is exactly 0, has no relevance.
    """

    def relevance(self, call: Call, relevance: Tensor) -> Tensor:
        """See :class:`Rule`."""
        (x,) = call.inputs
        masked = call.output == 0
        # The Jacobian is diag(s) - s sᵀ, so it turns R / s into R - s ΣR.
        share = (relevance / call.output).masked_fill(masked, 0)
        (product,) = call.vjp(share)
        part = (x * product).masked_fill(masked, 0)
        call.absorb(lambda: call.examples.sum(relevance) - call.examples.sum(part))
        return part


class UniformRule(Rule):
    r"""A product of two activations: half of the relevance for each, divided by LRP-ε.

    For ``u @ v`` (Achtibat et al. 2024, Proposition 3.3)

    .. math::
        R^u_{ji} = \sum_p \frac{u_{ji} v_{ip}}{2 y_{jp} + \epsilon\,\mathrm{sign}\,y_{jp}} R_{jp}

    and for ``u * v`` half each (Proposition 3.2).

    Args:
        epsilon: ε; 0 leaves the denominator to the stabiliser.
    """

    def __init__(self, epsilon: float = 0.0) -> None:
        self.epsilon = epsilon

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Rule`."""
        share = call.divide_by(relevance, 2 * call.output, self.epsilon)
        call.absorb(lambda: call.examples.sum(relevance - 2 * share * call.output))
        return tuple(value * part for value, part in zip(call.inputs, call.vjp(share), strict=True))


class ConstantGateRule(Rule):
    r"""A product whose gate, the attention map A or an activated branch, is held constant.

    .. math::
        R^v_{ip} = \sum_j \frac{A_{ji} v_{ip}}{y_{jp} + \epsilon\,\mathrm{sign}\,y_{jp}} R_{jp}

    The AH-rule of Ali et al. 2022, and Libra-Attention of Mehri et al. 2025 (section 3.5).  The
    gate and all that it is computed from, queries and keys, get nothing.  Where neither operand
    is a gate, both get half.

    Args:
        epsilon: ε; 0 leaves the denominator to the stabiliser.
    """

    def __init__(self, epsilon: float = 0.0) -> None:
        self.epsilon = epsilon

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor | None, ...]:
        """See :class:`Rule`."""
        if call.gate is None:
            return UniformRule(self.epsilon).relevance(call, relevance)
        return _all_to(1 - call.gate, call, relevance, self.epsilon)


def _all_to(place: int, call: Call, relevance: Tensor, epsilon: float) -> tuple[Tensor | None, ...]:
    """All relevance to one operand, the other of which is its weight."""
    share = call.divide_by(relevance, call.output, epsilon)
    call.absorb(lambda: call.examples.sum(relevance - share * call.output))
    part = call.inputs[place] * call.vjp(share)[place]
    part = sum_to_shape(part, call.inputs[place].shape)
    return (part, None) if place == 0 else (None, part)
