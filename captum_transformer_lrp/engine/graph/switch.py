"""The switch behind a call: the identity forward; backward what the phase under way says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.flow import Flow
from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.graph.step import NATIVE, Keeps, Step
from captum_transformer_lrp.engine.graph.tape import Tape
from captum_transformer_lrp.rules import Rule
from captum_transformer_lrp.rules.kernels import Kernel


def record(
    tape: Tape,
    function: Callable[..., Any],
    kernel: Kernel,
    inputs: Sequence[Tensor],
    output: Tensor,
    *,
    rule: Rule,
    flow: Flow,
    mark: Mark,
    name: str = "",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    constant: Tensor | None = None,
    gate: int | None = None,
    pixels: Tensor | None = None,
    **facts: Any,
) -> Tensor:
    """Put a switch behind a call that has been made, and note the provenance of its result.

    The gradient goes on in the autograd graph of ``output``, if it has one, or else by the
    kernel's vector-Jacobian product.  ``pixels`` are what token mass may go to, past all that
    lies between them and the call.
    """
    if not torch.is_grad_enabled():
        return output  # the model wants no derivative, as inside a custom autograd function
    has_graph, others = output.requires_grad, (weight, bias, constant)
    step = Step(
        function, kernel, rule, flow, mark, name, len(inputs), has_graph, pixels is not None,
        weight is not None, bias is not None, constant is not None, gate, facts,
        tape.stabilizer, tape.epsilon,
    )  # fmt: skip
    step.keeps = max((phase.needs(step) for phase in tape.phases), default=Keeps.SHAPES)
    kept = [
        value if original is None else original
        for value in others
        if value is not None
        for original in (tape.originals.get(value),)
    ]
    graph = output if has_graph else None
    switched: Tensor = TapeSwitch.apply(tape, step, graph, pixels, output.detach(), *inputs, *kept)
    tape.marks[switched] = mark
    return switched


class TapeSwitch(torch.autograd.Function):
    """The identity, with a backward pass for each phase."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        tape: Tape,
        step: Step,
        graph: Tensor | None,
        pixels: Tensor | None,
        value: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.tape = tape
        ctx.step = step
        ctx.set_materialize_grads(False)
        if step.keeps is Keeps.VALUES:
            ctx.save_for_backward(value, *tensors)
        else:
            inputs, others = tensors[: step.inputs], tensors[step.inputs :]
            keeps_output = step.keeps is Keeps.OUTPUT
            of_shape = inputs if keeps_output else (value, *inputs)
            step.shapes = [(one.shape, one.dtype, one.device) for one in of_shape]
            ctx.save_for_backward(*([value] if keeps_output else []), *others)
        return value.detach()

    @staticmethod
    def backward(  # noqa: D102
        ctx: Any, *grads: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        step: Step = ctx.step
        to_graph: Tensor | None = None
        to_pixels: Tensor | None = None
        to_inputs: Sequence[Tensor | None] = ()
        if grad is None:
            pass
        elif (parts := ctx.tape.phase.pull(step, ctx, grad)) is NATIVE:
            to_graph = grad
        else:
            to_inputs = parts[: step.inputs]
            to_pixels = parts[step.inputs] if len(parts) > step.inputs else None
        rest = [None] * (len(ctx.needs_input_grad) - 5 - len(to_inputs))
        return None, None, to_graph, to_pixels, None, *to_inputs, *rest
