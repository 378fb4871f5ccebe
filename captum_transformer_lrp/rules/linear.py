"""Rules for operations with a weight: linear layers and convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

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
        # Twice the sum of the positive products, so that the shares come out as halves.
        positive = call.forward(size, weight=magnitude).add_(call.output)
        # Up to 16 roundings of the larger sums, |x||W| and the bias, it is rounding error.
        finfo = torch.finfo(positive.dtype)
        rounding = 16 * finfo.eps / (1 - 16 * finfo.eps)
        floor: Any = finfo.tiny
        if call.bias is not None:
            positive.sub_(call.bias)
            floor = (call.bias.abs() + call.bias) * rounding + finfo.tiny
        limit = torch.sub(floor, call.output, alpha=rounding)
        half = _shares(call, relevance, positive, limit)
        (signed,) = call.vjp(half)
        (unsigned,) = call.vjp(half, inputs=(size,), weight=magnitude)
        # Not addcmul: several targets go down together by vmap, which has no rule for it.
        return signed.mul_(x).add_(unsigned.mul_(size))


def _shares(call: Call, relevance: Tensor, positive: Tensor, limit: Tensor) -> Tensor:
    """Relevance over sums, 0 where a sum is no larger than its limit; both may be written into.

    New memory costs several times what the operations do, so they work in place.
    """
    denominator = positive if call.epsilon else torch.maximum(positive, limit)
    # 1 or 0 in the dtype of the values: a mask of booleans takes several times as long.
    something = limit.lt_(positive)
    call.absorb(lambda: call.examples.sum(relevance * (1 - something)))
    if not call.epsilon:
        return call.divide(relevance, denominator).mul_(something)
    share = something.div_(denominator.clamp_(min=torch.finfo(positive.dtype).tiny))
    # Several targets go down together by vmap: what they share has no room for each of them.
    return relevance * share if is_batchedtensor(relevance) else share.mul_(relevance)
