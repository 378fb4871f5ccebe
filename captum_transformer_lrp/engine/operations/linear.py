"""Linear layers and convolutions: one activation and a weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs
from captum_transformer_lrp.engine.graph.grids import EVERYWHERE, Grid, Patches
from captum_transformer_lrp.engine.graph.marks import NO_PIXELS, Kind, Mark, Pixels
from captum_transformer_lrp.engine.graph.patches import averaged_grid, patches_below
from captum_transformer_lrp.engine.graph.role import Flow, Role, Scattered
from captum_transformer_lrp.engine.watch.apart import require_apart
from captum_transformer_lrp.engine.watch.context import Context, Handlers
from captum_transformer_lrp.rules import registry
from captum_transformer_lrp.rules.examples import Examples, broadcast_examples
from captum_transformer_lrp.rules.kernels import Kernel, LinearKernel, ProductKernel
from captum_transformer_lrp.rules.spellings import spelled

HANDLERS = Handlers()


@HANDLERS.binds(F.linear)
def _linear(
    watch: Context, function: Function, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Any:
    x = input
    if weight.dim() == 1:  # one output for each row, which has no axis of its own
        with watch:
            return F.linear(x, weight.unsqueeze(0), bias).squeeze(-1)
    if watch.mark(x) is None or watch.mark(weight) or (bias is not None and watch.mark(bias)):
        with watch:
            product = torch.matmul(x, weight.t())
            return product if bias is None else product + bias
    output = watch.computed(F.linear, x, weight, bias)
    if bias is None and not isinstance(weight, nn.Parameter) and only_averages(weight):
        return weighted(watch, torch.mean, LinearKernel(), x, weight, None, output, Flow.AVERAGED)
    return weighted(watch, function, LinearKernel(), x, weight, bias, output)


def weighted(
    watch: Context,
    function: Function,
    kernel: Kernel,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    role: Role = Flow.SPREAD_OVER_FEATURES,
    examples: Examples | None = None,
    grid: Grid | None = None,
    kind: Kind = Kind.LINEAR,
) -> Tensor:
    """Record an operation that is linear in one activation."""
    mark = watch.mark(x)
    assert mark is not None
    if mark.node.weighed:
        raise watch.unsupported(function, "values times attention weights that are not summed")
    if examples is None:
        require_apart(watch, mark.examples, [-1], x.dim())
    planes = mark.pixels.planes
    if planes and not mark.node.attentions and role is Flow.SPREAD_OVER_FEATURES:
        patches = patches_below(watch.tape, x, planes)
        grid = None if patches is None else patches.grid
        role = patches or Scattered(planes[0].shape[1])
    stem = function in registry.CONVOLUTIONS and _are_pixels(mark, x)
    is_of_pixels = role is Flow.TO_PIXELS or isinstance(role, Patches)
    plane = grid.plane if grid is not None and is_of_pixels else None
    rule = watch.rules.of(
        F.linear if function in registry.PRODUCTS else function,
        reads_pixels=watch.rules.reads_pixels(mark, function),
    )
    mark = watch.tape.made(
        kind, (mark,), examples or broadcast_examples(mark.examples, x.shape, output.shape),
        Pixels(stem, grid) if stem or grid is not None else NO_PIXELS,
        channels=_channels(function, x, weight, output) if bias is None else 0,
        features=_features(function, weight, role),
    )  # fmt: skip
    return watch.record(
        function, kernel, (x,), output, rule=rule, role=role, mark=mark, weight=weight, bias=bias,
        pixels=plane,
    )  # fmt: skip


def _features(function: Function, weight: Tensor, role: Role) -> int | None:
    """The axis, counted from the end, that a layer's outputs lie along."""
    if function in registry.CONVOLUTIONS:
        return 1 - weight.dim()
    return -1 if role is Flow.SPREAD_OVER_FEATURES else None


def _channels(function: Function, x: Tensor, weight: Tensor, output: Tensor) -> int:
    """How many outputs a layer has for each position, which is the size of its bias."""
    if function in registry.CONVOLUTIONS:
        return weight.shape["transpose" in function.__name__]
    # rows · outputs values are made from rows · inputs values by inputs · outputs weights, and each
    # example may have a copy of them.
    alone = math.prod(n for n, by in zip(weight.shape, weight.stride(), strict=True) if by)
    return math.isqrt(output.numel() * alone // max(x.numel(), 1))


def only_averages(weight: Tensor, axes: tuple[int, ...] = (-1,)) -> bool:
    """Whether weights, summed over along ``axes``, are those of means or sums over places.

    They are not negative, and each mean's sum to 1, or all of them are 0 or the same.  Weights that
    were learned hardly ever are.
    """
    few = weight.detach().flatten()[:64]
    if not axes or bool((few < 0).any()):  # most weights of layers are through here
        return False
    weight = weight.detach()
    axes = axes if weight.dim() > 1 else (0,)
    largest = weight.max()
    if bool((weight < 0).any()) or not bool(largest > 0):
        return False
    sums = weight.sum(axes)
    means = ((sums - 1).abs() < 1e-3).logical_or(sums == 0)
    return bool(means.all()) or bool((weight == 0).logical_or(weight == largest).all())


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
    require_apart(watch, mark.examples, range(1 - weight.dim(), 0), x.dim())
    output = watch.computed(function, x, weight, bias, **options)
    if bias is not None:
        bias = bias.reshape(-1, *[1] * (weight.dim() - 2))
    _, below, planes = mark.pixels
    if planes and below in (None, EVERYWHERE) and not mark.node.attentions:
        below = averaged_grid(watch.tape, x, planes[0])
        mark = mark if below is None else mark.but(pixels=Pixels(True, below, planes))
    grid = _grid_behind(mark, function, x, weight, options)
    return weighted(
        watch,
        function,
        ConvolutionKernel(function, options),
        x,
        weight,
        bias,
        output,
        _convolution_role(mark, x, weight, grid),
        mark.examples,
        grid,
    )


def _grid_behind(
    mark: Mark, function: Function, x: Tensor, weight: Tensor, options: Kwargs
) -> Grid | None:
    """How the places that a convolution makes lie on the pixels."""
    kernel = tuple(weight.shape[2:])
    if "transpose" in function.__name__:
        return None
    if mark.pixels.grid is EVERYWHERE:
        return EVERYWHERE if all(size == 1 for size in kernel) else None
    below = mark.pixels.grid or Grid.of(x, len(kernel))
    keys = {"stride": 1, "padding": 0, "dilation": 1}
    stride, padding, dilation = (options.get(key, value) for key, value in keys.items())
    return below.behind(kernel, stride, padding, dilation)


def _convolution_role(mark: Mark, x: Tensor, weight: Tensor, grid: Grid | None) -> Role:
    """Below the first attention a convolution makes the tokens; later ones move their mass."""
    pointwise = all(size == 1 for size in weight.shape[2:])
    if mark.node.attentions or pointwise or grid is None:
        return Flow.SPREAD_EVENLY
    return Flow.TO_PIXELS if _are_pixels(mark, x) else Flow.SPREAD_EVENLY


def _are_pixels(mark: Mark, x: Tensor) -> bool:
    return mark.pixels.stem or (mark.node.source is not None and x.dim() >= 4)


@HANDLERS.binds(*spelled("addmm"))
def _addmm(
    watch: Context, function: Function, input: Tensor, mat1: Tensor, mat2: Tensor, *,
    beta: float = 1, alpha: float = 1,
) -> Any:  # fmt: skip
    plain = watch.mark(mat1) and not watch.mark(mat2) and not watch.mark(input)
    if plain and beta == 1 and alpha == 1:
        output = watch.computed(torch.addmm, input, mat1, mat2)
        return weighted(watch, function, ProductKernel(), mat1, mat2, input, output)
    with watch:
        return beta * input + alpha * torch.mm(mat1, mat2)
