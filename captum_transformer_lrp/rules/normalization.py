"""Normalisation layers, and their rule with the deviation held constant."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.rules.base import Rule
from captum_transformer_lrp.rules.call import Call
from captum_transformer_lrp.rules.kernels import AutogradKernel


class _LaidOutGradient(torch.autograd.Function):
    """The identity; its gradient lies in memory as the tensor itself does."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        by_stride = sorted(range(1, output.dim()), key=lambda axis: -output.stride()[axis])
        ctx.order = [0, *by_stride]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        back = [ctx.order.index(axis) for axis in range(len(ctx.order))]
        return grads[0].permute(ctx.order).contiguous().permute(back)


def with_gradient_laid_out(function: Callable[..., Any]) -> Callable[..., Any]:
    """A normalising function of PyTorch, with a gradient that its derivative can read.

    The derivatives of PyTorch's batch norm and instance norm take a gradient that is laid out in
    another order than their result for one in the same order (seen in 2.14, CPU): for a batch of
    one the gradient at their input is then some other example's, more than 100 % away from finite
    differences.  So it is put in order first.  Other functions are returned as they are.

    Example:
        >>> x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
        >>> y = with_gradient_laid_out(torch.nn.functional.batch_norm)(
        ...     x, torch.zeros(2).double(), torch.ones(2).double(), eps=0.0
        ... )
        >>> gradient = torch.randn(1, 9, 2, dtype=torch.float64).mT.view(1, 2, 3, 3)
        >>> torch.equal(torch.autograd.grad(y, x, gradient)[0], gradient)
        True
    """
    if getattr(function, "__name__", "") not in ("batch_norm", "instance_norm"):
        return function

    @functools.wraps(function)
    def laid_out(*args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = _LaidOutGradient.apply(function(*args, **kwargs))
        return result

    return laid_out


class NormalizationKernel(AutogradKernel):
    """LayerNorm, RMSNorm, GroupNorm and the like, as a function of their one activation.

    Args:
        function: a normalising function of PyTorch.
        args: its positional arguments after the first.
        kwargs: its keyword arguments; an ``input`` among them is left out.

    Example:
        >>> kernel = NormalizationKernel(torch.layer_norm, ((2,),), {})
        >>> held = kernel.with_deviation_of(torch.tensor([1.0, 3.0]))
        >>> held(torch.tensor([10.0, 30.0])).round(decimals=2)  # (x - mean) / 1
        tensor([-10.,  10.])
    """

    def __init__(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> None:
        rest = tuple(args)
        function = with_gradient_laid_out(function)
        keywords = {name: value for name, value in kwargs.items() if name != "input"}
        super().__init__(lambda value: function(value, *rest, **keywords))
        self._args, self._kwargs = rest, keywords
        self._name = getattr(function, "__name__", "")

    def with_deviation_of(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        r"""The affine map that the layer is at ``x`` if its deviation is a constant.

        For LayerNorm :math:`z \mapsto (z - \mathrm{mean}\,z) / \sigma(x) \cdot \gamma + \beta`; for
        RMSNorm without the mean; for BatchNorm in eval mode the layer itself.
        """
        name = self._name.removeprefix("native_")
        if name in ("layer_norm", "rms_norm"):
            return self._over_last_axes(x)
        if name in ("group_norm", "instance_norm"):
            return self._over_groups(x, name)
        if name == "batch_norm":
            return self.function
        divisor = (x / self.function(x)).detach()  # x / statistic(x): normalize, LRN
        return lambda z: z / torch.where(divisor.isfinite(), divisor, 1.0)

    def _bound(self, *names: str) -> dict[str, Any]:
        return dict(zip(names, self._args, strict=False)) | self._kwargs

    def last_axes_of(self, x: Tensor) -> tuple[tuple[int, ...], bool, Tensor] | None:
        """What LayerNorm and RMSNorm do at ``x``; None for other functions.

        Returns:
            The axes that it normalises over, whether it subtracts their mean, and what it then
            multiplies by, γ/σ(x), which broadcasts to ``x``.
        """
        name = self._name.removeprefix("native_")
        if name not in ("layer_norm", "rms_norm"):
            return None
        centred = name == "layer_norm"
        names = ("normalized_shape", "weight", "bias", "eps")
        bound = self._bound(*(names if centred else ("normalized_shape", "weight", "eps")))
        shape = bound["normalized_shape"]
        axes = tuple(range(-(1 if isinstance(shape, int) else len(shape)), 0))
        eps = bound.get("eps")
        if eps is None:
            eps = 1e-5 if centred else torch.finfo(x.dtype).eps
        offset = x.mean(axes, keepdim=True) if centred else torch.zeros_like(x)
        scale = ((x - offset).square().mean(axes, keepdim=True) + eps).rsqrt().detach()
        weight = bound.get("weight")
        return axes, centred, scale if weight is None else scale * weight.detach()

    def _over_last_axes(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        found = self.last_axes_of(x)
        assert found is not None
        axes, centred, scale = found
        bias = self._bound("normalized_shape", "weight", "bias").get("bias") if centred else None

        def held(z: Tensor) -> Tensor:
            scaled = (z - z.mean(axes, keepdim=True) if centred else z) * scale
            return scaled if bias is None else scaled + bias.detach()

        return held

    def _over_groups(self, x: Tensor, name: str) -> Callable[[Tensor], Tensor]:
        if name == "group_norm":
            bound = self._bound("num_groups", "weight", "bias", "eps")
            groups = int(bound["num_groups"])
        else:
            bound = self._bound(
                "running_mean",
                "running_var",
                "weight",
                "bias",
                "use_input_stats",
                "momentum",
                "eps",
            )
            if bound.get("use_input_stats") is False:
                return self.function
            groups = x.shape[1]
        eps = bound.get("eps", 1e-5)

        def grouped(z: Tensor) -> Tensor:
            return z.reshape(z.shape[0], groups, -1)

        centred = grouped(x) - grouped(x).mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt().detach()
        parameters = [
            None
            if bound.get(key) is None
            else bound[key].detach().reshape(-1, *[1] * (x.dim() - 2))
            for key in ("weight", "bias")
        ]

        def held(z: Tensor) -> Tensor:
            split = grouped(z)
            scaled = ((split - split.mean(-1, keepdim=True)) * scale).reshape(z.shape)
            weight, bias = parameters
            scaled = scaled if weight is None else scaled * weight
            return scaled if bias is None else scaled + bias

        return held


class ConstantDeviationRule(Rule):
    r"""Normalisation with its deviation σ held constant, by LRP-ε.

    .. math:: R_j = \sum_i x_j \,\frac{\gamma_i}{\sigma} \Big(\delta_{ij} - \frac 1 D\Big)
                    \frac{R_i}{y_i + \epsilon\,\mathrm{sign}\,y_i}

    The LN-rule of Ali et al. 2022, Proposition 3.4 of Achtibat et al. 2024, and Libra-LayerNorm of
    Mehri et al. 2025 (section 3.5).  The mean is linear and takes part; the bias takes its share,
    which is absorbed.

    Args:
        epsilon: ε; 0 leaves the denominator to the stabiliser.
    """

    def __init__(self, epsilon: float = 0.0) -> None:
        self.epsilon = epsilon

    def relevance(self, call: Call, relevance: Tensor) -> Tensor:
        """See :class:`Rule`."""
        assert isinstance(call.kernel, NormalizationKernel)
        (x,) = call.inputs
        share = call.divide_by(relevance, call.output, self.epsilon)
        held = AutogradKernel(call.kernel.with_deviation_of(x))
        (product,) = held.vjp(share, (x,), None)
        part = x * product
        call.absorb(lambda: call.examples.sum(relevance) - call.examples.sum(part))
        return part
