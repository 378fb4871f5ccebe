"""Calls inside a module with a rule of its own, and what it returns."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import (
    Args,
    Function,
    Kwargs,
    replace_tensors,
    tensors_in,
)
from captum_transformer_lrp.engine.graph.marks import Kind, Mark
from captum_transformer_lrp.engine.graph.role import Flow
from captum_transformer_lrp.engine.graph.tensor_table import HeldTable
from captum_transformer_lrp.engine.graph.unit import Unit
from captum_transformer_lrp.engine.watch.context import Context
from captum_transformer_lrp.rules.kernels import AutogradKernel


def inside_unit(
    watch: Context,
    unit: Unit,
    function: Function,
    args: Args,
    kwargs: Kwargs,
    active: list[Tensor],
) -> Any:
    """Make a call in the forward pass of a module that has a rule; only autograd records it."""
    if not unit.inputs:
        unit.inputs = tuple(watch.resolve(t) for t in tensors_in(unit.arguments) if watch.mark(t))
    result = function(*args, **kwargs)
    marks = [mark for tensor in active if (mark := watch.mark(tensor))]
    for tensor in tensors_in(result):
        if tensor.requires_grad and not watch.mark(tensor):
            watch.tape.marks[tensor] = watch.tape.made(
                Kind.OTHER, marks, marks[0].examples, unit=unit
            )
    return result


def leave_unit(watch: Context, tensor: Tensor, mark: Mark) -> Tensor:
    """Put one switch behind a whole module call, when its result is first used outside."""
    unit = mark.node.unit
    assert unit is not None
    inputs = unit.inputs
    examples = mark.examples
    marks = [found for value in inputs if (found := watch.mark(value))]
    if inputs[0].shape == tensor.shape:
        examples = marks[0].examples
    args, kwargs = unit.arguments
    active = [tensor for tensor in tensors_in(unit.arguments) if watch.mark(tensor)]

    def run(*values: Tensor) -> Any:
        known = HeldTable(zip(active, values, strict=True))
        change = lambda t: known.get(t, t)  # noqa: E731
        return unit.module(*replace_tensors(args, change), **replace_tensors(kwargs, change))

    mark, name = watch.tape.made(Kind.OTHER, marks, examples), watch.names.of_module(unit.module)
    switched = watch.record(
        type(unit.module).forward, AutogradKernel(run), inputs, tensor, rule=unit.rule,
        role=Flow.UNIT, mark=mark, name=name,
    )  # fmt: skip
    watch.writes.replaced[tensor] = switched
    return switched
