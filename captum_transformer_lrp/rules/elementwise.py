"""Rules for operations with one activation: activations, softmax, normalisation and pooling."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from captum_transformer_lrp.rules.base import Rule
from captum_transformer_lrp.rules.call import Call
from captum_transformer_lrp.rules.kernels import sum_to_shape
from captum_transformer_lrp.rules.spellings import spelled


class PassRule(Rule):
    """Relevance passes unchanged: eq. 2 for an operation that maps each element to itself.

    ``y = f(x)`` element by element has one summand per output, which takes all of its relevance.
    The same holds for scaling by a constant, and it is the paper's choice for softmax and
    LayerNorm.
    """

    reads_values: ClassVar[bool] = False

    def relevance(self, call: Call, relevance: Tensor) -> Tensor:
        """See :class:`Rule`."""
        return sum_to_shape(relevance, call.inputs[0].shape)


class GELURule(PassRule):
    """GELU, and every other activation function: relevance passes unchanged, by eq. 2."""


class SoftmaxRule(PassRule):
    """Softmax: the relevance of each attention weight passes to its score, unchanged.

    Each score is taken as an input to its own weight alone, so that eq. 3 holds.
    """


class NormalizationRule(PassRule):
    """LayerNorm, RMSNorm, GroupNorm and eval-mode BatchNorm: relevance passes unchanged.

    Mean and variance are taken as constants, so that each element has one input (eq. 2, 3).
    """


class ScaleRule(PassRule):
    """Scaling by a constant or a parameter, masking and inactive dropout: unchanged, by eq. 2."""


class TaylorRule(Rule):
    r"""Eq. 2, the generic Deep Taylor rule, for any differentiable operation.

    .. math:: R_j = \sum_i x_j \frac{\partial y_i}{\partial x_j} \frac{R_i}{y_i}

    Used for pooling and interpolation, and, with ``strict=False``, for operations without a rule
    of their own.  With several inputs each gets an equal part of the whole.
    """

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Rule`."""
        share = self.share(call, relevance)
        call.absorb(lambda: call.undivided(relevance, share * len(call.inputs)))
        return tuple(value * part for value, part in zip(call.inputs, call.vjp(share), strict=True))

    def share(self, call: Call, relevance: Tensor) -> Tensor:
        """What each summand is multiplied by, of the shape of the output."""
        return call.divide(relevance / len(call.inputs), call.output)


class PoolingRule(TaylorRule):
    r"""Mean, sum, average and max pooling, interpolation: eq. 2.

    A mean or a sum divides by :math:`y + \varepsilon\,s\,\mathrm{sign}\,y`, with s what cancelled:
    the same mean or sum of the absolute inputs, less :math:`|y|`.  So inputs of one sign share all
    of the relevance.  What ε takes else is absorbed and reported.
    """

    def share(self, call: Call, relevance: Tensor) -> Tensor:
        """See :class:`TaylorRule`."""
        if call.function not in _SUMS:
            return super().share(call, relevance)
        return call.share(relevance, call.output, lambda: cancelled(call))


def cancelled(call: Call) -> Tensor:
    """What cancelled in an operation that only adds up its inputs, Σ|z| − |Σz|."""
    size = call.forward(*[value.abs() for value in call.inputs])
    return (size - call.output.abs()).clamp_(min=0)


_SUMS = frozenset(
    spelled(
        "mean", "sum", "nanmean", "nansum", "cumsum", "avg_pool1d", "avg_pool2d", "avg_pool3d",
        "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "interpolate",
        "upsample", "grid_sample", "fold", "col2im",
    )
)  # fmt: skip
"""Poolings that are sums of their inputs with constant weights."""


class AccumulationRule(Rule):
    """Elements added up at given places (``index_add``): eq. 2, for all that is added alike.

    Unlike :class:`TaylorRule` the operation is linear in all inputs together, so that they share
    the whole.  The denominator is kept away from zero by ε, as in :class:`PoolingRule`.  What ε
    takes and the relevance of a sum that is 0, which is 0/0 in eq. 2, are absorbed and reported.
    """

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Rule`."""
        share = call.share(relevance, call.output, lambda: cancelled(call))
        call.absorb(lambda: call.undivided(relevance, share))
        return tuple(value * part for value, part in zip(call.inputs, call.vjp(share), strict=True))
