"""Multiplication and division, element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs
from captum_transformer_lrp.engine.graph.marks import (
    Kind,
    Mark,
    attends_beyond,
    is_function_of_same,
    is_statistic_of,
    skipped,
)
from captum_transformer_lrp.engine.graph.role import Flow, Product, Shares
from captum_transformer_lrp.engine.watch.apart import common_examples, require_known
from captum_transformer_lrp.engine.watch.context import Context, Handlers
from captum_transformer_lrp.rules import GELURule, ScaleRule, registry
from captum_transformer_lrp.rules.examples import broadcast_examples
from captum_transformer_lrp.rules.kernels import AutogradKernel
from captum_transformer_lrp.rules.spellings import spelled

HANDLERS = Handlers()

_SCALE, _ACTIVATION = ScaleRule(), GELURule()


@HANDLERS.handles(*spelled("mul", "multiply", "__mul__", "__rmul__"))
def _mul(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    u, v = two_operands(args, kwargs)
    return _scaled(watch, function, torch.mul, u, v)


@HANDLERS.handles(*spelled("div", "divide", "true_divide", "__truediv__", "__div__"))
def _div(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    if kwargs.pop("rounding_mode", None) is not None:
        raise watch.unsupported(function, "rounding")
    u, v = two_operands(args, kwargs)
    return _divided(watch, function, u, v)


@HANDLERS.handles(*spelled("__rtruediv__", "__rdiv__"))
def _rdiv(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    v, u = two_operands(args, kwargs)
    return _divided(watch, function, u, v)


def _divided(watch: Context, function: Function, u: Any, v: Any) -> Any:
    divisor = watch.mark(v)
    if divisor is None:
        return _scaled(watch, function, torch.div, u, v)
    dividend = watch.mark(u)
    if dividend is not None and is_statistic_of(divisor, dividend):
        return _scaled(watch, function, torch.div, u, v)
    with watch:
        return torch.mul(u, torch.reciprocal(v))


def _scaled(watch: Context, function: Function, run: Callable[..., Tensor], u: Any, v: Any) -> Any:
    of_u = watch.mark(u)
    of_v = watch.mark(v)
    statistic = detached(watch, v)
    if of_u is not None and statistic is not None and is_statistic_of(statistic, of_u):
        return scaled_by_constant(watch, function, of_u, u, v, watch.made(run, u, v))
    output = watch.made(run, u, v)
    if not (output.is_floating_point() or output.is_complex()):
        return output
    if output.is_complex():
        return _complex_scaled(watch, function, u, v if run is torch.mul else 1 / v)
    if of_u is not None and of_v is not None:
        if is_statistic_of(of_v, of_u):  # a norm spelled out: x · statistic(x)
            return scaled_by_constant(watch, function, of_u, u, v, output)
        if is_statistic_of(of_u, of_v):
            return scaled_by_constant(watch, function, of_v, v, u, output)
        if is_function_of_same(of_u, of_v):
            return function_of_same(watch, function, run, u, v, output)
        operands = [(of_u, u), (of_v, v)]
        examples = common_examples(watch, operands, output.shape)
        # Weights that are broadcast are gates of what they multiply, which is not attention.
        whole = [one for one, value in ((of_u, u), (of_v, v)) if value.shape == output.shape]
        first, second = of_u.node.activated, of_v.node.activated
        rule = watch.rules.of(function if function in registry.SCALINGS else torch.mul)
        role = Product(_gate_shares(of_u, of_v), gate=None if first == second else int(second))
        mark = watch.tape.made(Kind.GATE, (of_u, of_v), examples, like=whole)
        kernel = AutogradKernel(run)
        product = watch.record(function, kernel, (u, v), output, rule=rule, role=role, mark=mark)
        if run is torch.mul:
            watch.tape.made_of.products[product] = u, v
        return product
    if of_u is not None:
        return scaled_by_constant(watch, function, of_u, u, v, output)
    assert of_v is not None
    return scaled_by_constant(watch, function, of_v, v, u, output)


def _complex_scaled(watch: Context, function: Function, u: Any, v: Any) -> Tensor:
    """A rotation written with complex numbers, by its real and imaginary parts."""
    if not all(isinstance(value, Tensor) and value.is_complex() for value in (u, v)):
        raise watch.unsupported(function, "a complex and a real operand")
    with watch:
        return torch.complex(u.real * v.real - u.imag * v.imag, u.real * v.imag + u.imag * v.real)


def _gate_shares(of_u: Mark, of_v: Mark) -> Shares:
    """Of two factors the one that has been attended to takes the mass, as a gate chooses among it.

    Else mass of ``x * gate(x)`` stays with x, and of two branches each takes half.
    """
    shares = shares_by_attention(of_u, of_v)
    stream = skipped(of_u.node, of_v.node) if shares[0] == shares[1] else None
    return shares if stream is None else ((1.0, 0.0), (0.0, 1.0))[stream]


def shares_by_attention(of_u: Mark, of_v: Mark) -> Shares:
    """Mass of a product goes to the factor that has been attended to; else half to each."""
    attended = attends_beyond(of_u, of_v), attends_beyond(of_v, of_u)
    if attended[0] != attended[1]:
        return (1.0, 0.0) if attended[0] else (0.0, 1.0)
    return 0.5, 0.5


def function_of_same(
    watch: Context, function: Function, run: Function, u: Tensor, v: Tensor, output: Tensor
) -> Tensor:
    """Record an activation function spelled out, such as ``x * (1 + tanh(x))``: all goes to x.

    Both operands are functions of the same elements, and the one that is so more directly takes
    the relevance and the mass of each, as it would take them from ``F.gelu``.
    """
    of_u, of_v = watch.tape.marks[u], watch.tape.marks[v]
    is_v = skipped(of_u.node, of_v.node) == 1
    direct, of_direct, of_other = (v, of_v, of_u) if is_v else (u, of_u, of_v)
    marks, examples = (of_direct, of_other), of_direct.examples
    mark = watch.tape.made(Kind.ACTIVATION, marks, examples, like=(of_direct,))
    kernel, rule = AutogradKernel(run), watch.rules.of_module() or _ACTIVATION
    return watch.record(function, kernel, (direct,), output, rule=rule, role=Flow.KEEP, mark=mark)


def scaled_by_constant(
    watch: Context, function: Function, mark: Mark, x: Tensor, by: Any, output: Tensor
) -> Tensor:
    """Record ``x`` scaled by a constant, a parameter or a statistic of itself."""
    constant = by if isinstance(by, Tensor) and by.dim() > 0 else None
    of_by = watch.mark(by)
    if of_by is not None and mark.examples.known:
        require_known(watch, of_by)
    examples = broadcast_examples(mark.examples, x.shape, output.shape)
    channels, role = (0, Flow.KEEP) if constant is None else (constant.numel(), Flow.MASKED)
    scaled = watch.record(
        function, AutogradKernel(torch.mul), (x,), output, constant=constant, role=role,
        rule=watch.rules.of_module() or _SCALE,
        mark=watch.tape.made(Kind.ELEMENTWISE, (mark,), examples, channels=channels),
    )  # fmt: skip
    if not (of_by is not None or mark.node.scores or mark.node.softmax):  # maps are large
        watch.tape.made_of.sources[scaled] = x
    return scaled


def detached(watch: Context, value: Any) -> Mark | None:
    """The provenance of what has been detached; None for anything else.

    Raises:
        MixedExamplesError: if it is computed from several examples, unless it is one number, such
            as the largest score, which a softmax is given the scores less.
    """
    mark = watch.tape.made_of.detached.get(value)
    if mark is not None and value.numel() > 1:
        require_known(watch, mark)
    return mark


_OPERANDS = ("input", "self", "other", "mat2", "vec")


def two_operands(args: Args, kwargs: Kwargs) -> tuple[Any, Any]:
    """The operands of a binary operation, however they were passed."""
    values = (*args, *(kwargs[name] for name in _OPERANDS if name in kwargs))
    return values[0], values[1]
