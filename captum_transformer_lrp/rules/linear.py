"""Rules for operations with a weight: linear layers and convolutions."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_transformer_lrp.rules.base import Rule
from captum_transformer_lrp.rules.call import Call
from captum_transformer_lrp.rules.rows import only_rows_with_relevance


class LinearRule(Rule):
    r"""Only the products that speak for the output take part (eq. 5 of the paper).

    .. math::
        R_j = \sum_{i : x_j w_{ji} \ge 0}
              \frac{x_j w_{ji}}{\sum_{j' : x_{j'} w_{j'i} \ge 0} x_{j'} w_{j'i}} R_i

    The bias takes no relevance.  The sum of the non-negative products is
    :math:`(|x|\,|W| + x W)/2`, and :math:`x W` is the output that the model has computed anyway,
    so the rule costs three matrix products instead of the four that clamping takes.

    Where an output has no positive product at all, the equation is 0/0: that output's relevance
    is absorbed and reported.

    Example:
        >>> from captum_transformer_lrp.rules.kernels import LinearKernel
        >>> x, w = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, -1.0, 1.0]])
        >>> call = Call(torch.nn.functional.linear, LinearKernel(), (x,), x @ w.T, weight=w)
        >>> LinearRule().relevance(call, torch.ones(1, 1))
        tensor([[0.2500, 0.0000, 0.7500]])
    """

    @only_rows_with_relevance
    def relevance(self, call: Call, relevance: Tensor) -> Tensor:
        """See :class:`Rule`."""
        (x,) = call.inputs
        assert call.weight is not None
        size, magnitude = x.abs(), call.weight.abs()
        total = call.forward(size, weight=magnitude)
        # Twice the sum of the positive products, so that the shares come out as halves.
        positive = total + call.output
        # Up to here that sum is rounding error of the larger sums.
        rounding = 16 * torch.finfo(total.dtype).eps
        noise = total.mul_(rounding)
        if call.bias is not None:
            positive -= call.bias
            noise += call.bias.abs() * rounding
        nothing = positive <= noise
        # A denominator that is zero or near it is among ``nothing``.
        share = relevance / positive if call.epsilon else call.divide(relevance, positive)
        half = share.masked_fill_(nothing, 0)
        call.absorb(lambda: call.examples.sum(relevance * nothing))
        (signed,) = call.vjp(half)
        (unsigned,) = call.vjp(half, inputs=(size,), weight=magnitude)
        # Not addcmul: several targets go down together by vmap, which has no rule for it.
        return signed.mul_(x).add_(unsigned.mul_(size))
