"""Linear layers and convolutions: one activation and a weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs
from captum_transformer_lrp.engine.graph.flow import Flow
from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.watch.context import Context, Handlers
from captum_transformer_lrp.rules import registry
from captum_transformer_lrp.rules.examples import Examples, broadcast_examples
from captum_transformer_lrp.rules.kernels import Kernel, LinearKernel, ProductKernel
from captum_transformer_lrp.rules.spellings import spelled

HANDLERS = Handlers()


@HANDLERS.handles(F.linear)
def _linear(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        return input, weight, bias

    x, weight, bias = bind(*args, **kwargs)
    if watch.mark(x) is None or watch.mark(weight) or (bias is not None and watch.mark(bias)):
        with watch:
            product = torch.matmul(x, weight.t())
            return product if bias is None else product + bias
    return weighted(
        watch, function, LinearKernel(), x, weight, bias, watch.computed(F.linear, x, weight, bias)
    )


def weighted(
    watch: Context,
    function: Function,
    kernel: Kernel,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    flow: Flow = Flow.SPREAD_OVER_FEATURES,
    examples: Examples | None = None,
) -> Tensor:
    """Record an operation that is linear in one activation."""
    mark = watch.mark(x)
    assert mark is not None
    if mark.source is not None and flow is Flow.SPREAD_OVER_FEATURES:
        watch.tape.patch_features = x.shape[-1]
    return watch.record(
        function,
        kernel,
        (x,),
        output,
        rule=watch.rules.of(
            F.linear if function in registry.PRODUCTS else function,
            reads_pixels=watch.rules.reads_pixels(mark, function),
        ),
        flow=flow,
        mark=mark.but(
            events=mark.events | watch.tape.new_event(linear=True),
            examples=examples or broadcast_examples(mark.examples, x.shape, output.shape),
            stem=mark.stem and function in registry.CONVOLUTIONS,
            source=None,
            base=object(),
            statistic=False,
            channels=_channels(function, x, weight, output) if bias is None else 0,
            activated=False,
            features=_features(function, weight, flow),
        ),
        weight=weight,
        bias=bias,
    )


def _features(function: Function, weight: Tensor, flow: Flow) -> int | None:
    """The axis, counted from the end, that a layer's outputs lie along."""
    if function in registry.CONVOLUTIONS:
        return 1 - weight.dim()
    return -1 if flow is Flow.SPREAD_OVER_FEATURES else None


def _channels(function: Function, x: Tensor, weight: Tensor, output: Tensor) -> int:
    """How many outputs a layer has for each position, which is the size of its bias."""
    if function in registry.CONVOLUTIONS:
        return weight.shape["transpose" in function.__name__]
    # rows · outputs values are made from rows · inputs values by inputs · outputs weights.
    return math.isqrt(output.numel() * weight.numel() // max(x.numel(), 1))


class ConvolutionKernel:
    """A convolution without bias."""

    by_row = False

    def __init__(self, function: Callable[..., Tensor], options: Kwargs) -> None:
        self._function = function
        self._options = options

    def forward(self, inputs: Any, weight: Tensor | None) -> Tensor:
        """See :class:`~captum_transformer_lrp.rules.kernels.Kernel`."""
        return self._function(inputs[0], weight, **self._options)

    def vjp(self, seed: Tensor, inputs: Any, weight: Tensor | None) -> tuple[Tensor, ...]:
        """See :class:`~captum_transformer_lrp.rules.kernels.Kernel`."""
        with torch.enable_grad():
            x = torch.empty_like(inputs[0], requires_grad=True)
            return torch.autograd.grad(self.forward((x,), weight), x, seed)


@HANDLERS.handles(*registry.CONVOLUTIONS)
def _convolution(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    names = (
        ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
        if "transpose" in function.__name__
        else ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    )
    options = dict(zip(names, args, strict=False)) | kwargs
    x, weight = options.pop("input"), options.pop("weight")
    bias = options.pop("bias", None)
    mark = watch.mark(x)
    if mark is None or watch.mark(weight):
        raise watch.unsupported(function, "a kernel that is an activation")
    output = watch.computed(function, x, weight, bias, **options)
    if bias is not None:
        bias = bias.reshape(-1, *[1] * (weight.dim() - 2))
    return weighted(
        watch,
        function,
        ConvolutionKernel(function, options),
        x,
        weight,
        bias,
        output,
        _convolution_flow(mark, x, weight),
        mark.examples,
    )


def _convolution_flow(mark: Mark, x: Tensor, weight: Tensor) -> Flow:
    """Below the first attention a convolution makes the tokens; later ones move their mass."""
    pointwise = all(size == 1 for size in weight.shape[2:])
    if mark.attentions or pointwise:
        return Flow.SPREAD_EVENLY
    if mark.stem:
        return Flow.CAPTURE_GRID
    are_pixels = mark.source is not None and x.dim() == weight.dim() >= 4
    return Flow.UPSAMPLED if are_pixels else Flow.SPREAD_EVENLY


@HANDLERS.handles(*spelled("addmm"))
def _addmm(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(
        input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> Any:
        return input, mat1, mat2, beta, alpha

    bias, x, weight, beta, alpha = bind(*args, **kwargs)
    plain = watch.mark(x) and not watch.mark(weight) and not watch.mark(bias)
    if plain and beta == 1 and alpha == 1:
        output = watch.computed(torch.addmm, bias, x, weight)
        return weighted(watch, function, ProductKernel(), x, weight, bias, output)
    with watch:
        return beta * bias + alpha * torch.mm(x, weight)
