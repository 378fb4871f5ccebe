"""Calls without a handler, which go by a rule of somebody's or by eq. 2."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import (
    Args,
    Function,
    Kwargs,
    replace_tensors,
    tensors_in,
    title,
)
from captum_transformer_lrp.engine.graph.flow import Flow
from captum_transformer_lrp.engine.graph.marks import merged
from captum_transformer_lrp.engine.watch.context import Context
from captum_transformer_lrp.rules import TaylorRule
from captum_transformer_lrp.rules.examples import broadcast_examples
from captum_transformer_lrp.rules.kernels import AutogradKernel


def generic(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """A call that no handler knows: by a rule of somebody's, or by eq. 2 if that is allowed."""
    output = function(*args, **kwargs)
    if isinstance(output, Tensor) and not output.requires_grad:
        return output
    if not any(tensor.requires_grad for tensor in tensors_in(output)):
        return output
    active = [tensor for tensor in tensors_in((args, kwargs)) if watch.mark(tensor)]
    rule = watch.rules.functions.get(function)
    if rule is None and watch.rules.strict:
        fourier = "fft" in title(function)
        what = "a Fourier transform, which mixes tokens without any attention map"
        raise watch.unsupported(function, what if fourier else "activations")
    if not isinstance(output, Tensor):
        raise watch.unsupported(function, "more than one output")
    positions = {id(tensor): place for place, tensor in enumerate(active)}

    def run(*values: Tensor) -> Tensor:
        change = lambda t: values[positions[id(t)]] if id(t) in positions else t  # noqa: E731
        result: Tensor = function(*replace_tensors(args, change), **replace_tensors(kwargs, change))
        return result

    marks = [mark for tensor in active if (mark := watch.mark(tensor))]
    examples = broadcast_examples(marks[0].examples, active[0].shape, output.shape)
    mark = merged(marks, examples).but(
        events=merged(marks, examples).events | watch.tape.new_event(),
        source=None,
        base=object(),
        channels=0,
        features=None,
    )
    return watch.record(
        function,
        AutogradKernel(run),
        active,
        output,
        rule=watch.rules.of(function) if rule is not None else TaylorRule(),
        flow=Flow.UNKNOWN,
        mark=mark,
        name=watch.names.caller(),
    )
