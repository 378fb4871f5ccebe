"""Other rules of the LRP family for operations with a weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from captum_transformer_lrp.rules.base import Rule
from captum_transformer_lrp.rules.call import Call
from captum_transformer_lrp.rules.rows import only_rows_with_relevance


class PositiveRule(Rule):
    r"""LRP as the paper states it for its baseline (eq. 4): positive inputs, positive weights.

    .. math:: R_j = \sum_i \frac{x_j^+ w_{ji}^+}{\sum_{j'} x_{j'}^+ w_{j'i}^+} R_i
    """

    @only_rows_with_relevance
    def relevance(self, call: Call, relevance: Tensor) -> Tensor:
        """See :class:`Rule`."""
        assert call.weight is not None
        x, weight = call.inputs[0].clamp(min=0), call.weight.clamp(min=0)
        total = call.forward(x, weight=weight)
        call.absorb(lambda: call.examples.sum(relevance * (total == 0)))
        share = call.divide(relevance, total)
        (product,) = call.vjp(share, inputs=(x,), weight=weight)
        return x * product


class EpsilonRule(Rule):
    r"""LRP-ε: :math:`R_j = \sum_i x_j w_{ji} R_i / (y_i + \epsilon\,\mathrm{sign}\,y_i)`.

    The bias, part of :math:`y`, takes its share, which is absorbed.

    Args:
        epsilon: ε; 0 leaves the denominator to the stabiliser.
    """

    shares_with_bias: ClassVar[bool] = True

    def __init__(self, epsilon: float = 1e-6) -> None:
        self.epsilon = epsilon

    @only_rows_with_relevance
    def relevance(self, call: Call, relevance: Tensor) -> Tensor:
        """See :class:`Rule`."""
        share = call.divide_by(relevance, call.output, self.epsilon)
        bias = 0 if call.bias is None else call.bias
        _absorb_rest(call, relevance, lambda: share * (call.output - bias))
        (x,) = call.inputs
        (product,) = call.vjp(share)
        return x * product


class GammaRule(Rule):
    r"""LRP-γ: the share of each product, of which those that speak for the output count 1 + γ.

    With :math:`z_{ij} = x_j w_{ji}`, and :math:`z_{ij}^\star` for those of them that have the sign
    of their sum,

    .. math:: R_j = \sum_i \frac{z_{ij} + \gamma z_{ij}^\star}
                                 {\sum_{j'} z_{ij'} + \gamma z_{ij'}^\star} R_i

    After ReLU, where inputs and sums are not negative, these are the weights
    :math:`w + \gamma w^+` of Captum's rule (Montavon et al. 2019).  Where a sum is negative, as
    most are in a Transformer, :math:`w + \gamma w^+` has denominators near zero, and over a
    few dozen layers relevance grows out of all bounds; favouring the sum's own sign keeps them
    away from it (the generalised LRP-γ of Andéol et al. 2021).  The bias takes no relevance.

    Args:
        gamma: γ.

    Source:
        Montavon et al. 2019 (the rule for ReLU), Andéol et al. 2021 (the generalisation).
    """

    def __init__(self, gamma: float = 0.25) -> None:
        self.gamma = gamma

    @only_rows_with_relevance
    def relevance(self, call: Call, relevance: Tensor) -> Tensor:
        """See :class:`Rule`."""
        assert call.weight is not None
        (x,) = call.inputs
        size, magnitude = x.abs(), call.weight.abs()
        total = call.forward(size, weight=magnitude)
        product = call.output if call.bias is None else call.output - call.bias
        sign = torch.copysign(product.new_ones(()), product)
        # The products of the sum's sign sum to half of product + sign · total.
        half = self.gamma / 2
        denominator = product * (1 + half) + sign * total * half
        share = call.divide(relevance, denominator)
        _absorb_rest(call, relevance, lambda: share * denominator)
        (signed,) = call.vjp(share)
        (unsigned,) = call.vjp(share * sign, inputs=(size,), weight=magnitude)
        return x * signed * (1 + half) + size * unsigned * half


class AlphaBetaRule(Rule):
    r"""LRP-αβ: α times the share of the positive products, less β times that of the negative ones.

    Args:
        alpha: α, with α − β = 1.
        beta: β.

    Raises:
        ValueError: unless α − β = 1.
    """

    def __init__(self, alpha: float = 2.0, beta: float = 1.0) -> None:
        if abs(alpha - beta - 1) > 1e-9:
            raise ValueError(f"alpha - beta must be 1 to conserve relevance; {alpha} and {beta}")
        self.alpha = alpha
        self.beta = beta

    def relevance(self, call: Call, relevance: Tensor) -> Tensor:
        """See :class:`Rule`."""
        assert call.weight is not None
        (x,) = call.inputs
        size, magnitude = x.abs(), call.weight.abs()
        total = call.forward(size, weight=magnitude)
        product = call.forward(x)
        positive, negative = (total + product) / 2, (total - product) / 2
        # Up to here a sum without summands is the rounding error of the larger sums.
        noise = total * (8 * torch.finfo(total.dtype).eps)
        for_it = call.divide(relevance, positive, total).masked_fill(positive <= noise, 0)
        against_it = call.divide(relevance, negative, total).masked_fill(negative <= noise, 0)
        for_it, against_it = for_it * self.alpha, against_it * self.beta
        (signed,) = call.vjp((for_it + against_it) / 2)
        (unsigned,) = call.vjp((for_it - against_it) / 2, inputs=(size,), weight=magnitude)
        _absorb_rest(call, relevance, lambda: for_it * positive - against_it * negative)
        return x * signed + size * unsigned


class BoundedRule(Rule):
    r"""z\ :sup:`B`, for the first layer, whose inputs are pixels between two bounds.

    .. math:: R_j = \sum_i \frac{x_j w_{ji} - l_j w_{ji}^+ - h_j w_{ji}^-}
                   {\sum_{j'} x_{j'} w_{j'i} - l_{j'} w_{j'i}^+ - h_{j'} w_{j'i}^-} R_i

    Args:
        low: l, the lowest value that an input can have: a number, or a tensor that broadcasts to
            the inputs, such as ``(0 - mean) / std`` of shape (3, 1, 1).  None takes each example's
            smallest value, as the paper's published code does.
        high: h, likewise.

    Source:
        Montavon et al. 2017 (deep Taylor decomposition).
    """

    def __init__(
        self, low: float | Tensor | None = None, high: float | Tensor | None = None
    ) -> None:
        self.low = low
        self.high = high

    def relevance(self, call: Call, relevance: Tensor) -> Tensor:
        """See :class:`Rule`."""
        assert call.weight is not None
        (x,) = call.inputs
        axes = tuple(range(1, x.dim()))
        low = _bound(x, self.low, x.amin(axes, keepdim=True))
        high = _bound(x, self.high, x.amax(axes, keepdim=True))
        positive, negative = call.weight.clamp(min=0), call.weight.clamp(max=0)
        total = (
            call.forward(x)
            - call.forward(low, weight=positive)
            - call.forward(high, weight=negative)
        )
        share = call.divide(relevance, total)
        (by_all,) = call.vjp(share)
        (by_positive,) = call.vjp(share, weight=positive)
        (by_negative,) = call.vjp(share, weight=negative)
        return x * by_all - low * by_positive - high * by_negative


def _bound(x: Tensor, bound: float | Tensor | None, default: Tensor) -> Tensor:
    if bound is None:
        return default.expand_as(x).contiguous()
    return torch.as_tensor(bound, dtype=x.dtype, device=x.device).expand_as(x).contiguous()


def _absorb_rest(call: Call, relevance: Tensor, passed: Callable[[], Tensor]) -> None:
    """What a rule does not pass on, output by output, the bias and ε have taken."""
    call.absorb(lambda: call.examples.sum(relevance - passed()))
