"""The switch behind a call: the identity forward; backward what the phase under way says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.graph.op import NATIVE, Keeps, Op
from captum_transformer_lrp.engine.graph.role import Role
from captum_transformer_lrp.engine.graph.tape import Tape
from captum_transformer_lrp.rules import Rule
from captum_transformer_lrp.rules.kernels import Kernel, MatmulKernel


def record(
    tape: Tape,
    function: Callable[..., Any],
    kernel: Kernel,
    inputs: Sequence[Tensor],
    output: Tensor,
    *,
    rule: Rule,
    role: Role,
    mark: Mark,
    name: str = "",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    constant: Tensor | None = None,
    pixels: Tensor | None = None,
) -> Tensor:
    """Put a switch behind a call that has been made, and note the provenance of its result.

    The gradient goes on in the autograd graph of ``output``, if it has one, or else by the
    kernel's vector-Jacobian product.  ``pixels`` are what token mass may go to, past all that
    lies between them and the call.
    """
    if not torch.is_grad_enabled():
        return output  # the model wants no derivative, as inside a custom autograd function
    graph = output if output.requires_grad else None
    others = (weight, bias, constant)
    op = Op(
        function, kernel, rule, role, mark, name, len(inputs), tape.stabilizer, tape.epsilon,
        graph is not None, pixels is not None, weight is not None, bias is not None,
        constant is not None,
    )  # fmt: skip
    keeps = Keeps.SHAPES
    for phase in tape.phases:
        keeps = max(keeps, phase.needs(op))
        if keeps is Keeps.VALUES:
            break
    is_product = keeps is Keeps.VALUES and isinstance(kernel, MatmulKernel)
    if is_product and output.numel() > 2 * sum(one.numel() for one in inputs):
        # The scores of a long text take much memory, and little time to be computed again.
        keeps = Keeps.INPUTS
    kept = [
        value if original is None else original
        for value in others
        if value is not None
        for original in (tape.originals.get(value),)
    ]
    switched: Tensor = TapeSwitch.apply(
        tape, op, keeps, graph, pixels, output.detach(), *inputs, *kept
    )
    tape.marks[switched] = mark
    return switched


class TapeSwitch(torch.autograd.Function):
    """The identity, with a backward pass for each phase."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        tape: Tape,
        op: Op,
        keeps: Keeps,
        graph: Tensor | None,
        pixels: Tensor | None,
        value: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.tape = tape
        ctx.op, ctx.keeps, ctx.shapes = op, keeps, ()
        ctx.set_materialize_grads(False)
        if keeps is Keeps.VALUES:
            ctx.save_for_backward(value, *tensors)
        elif keeps is Keeps.INPUTS:
            ctx.save_for_backward(*tensors)
        else:
            inputs, others = tensors[: op.inputs], tensors[op.inputs :]
            keeps_output = keeps is Keeps.OUTPUT
            of_shape = inputs if keeps_output else (value, *inputs)
            ctx.shapes = [(one.shape, one.dtype, one.device) for one in of_shape]
            ctx.save_for_backward(*([value] if keeps_output else []), *others)
        return value.detach()

    @staticmethod
    def backward(  # noqa: D102
        ctx: Any, *grads: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        op: Op = ctx.op
        to_graph: Tensor | None = None
        to_pixels: Tensor | None = None
        to_inputs: Sequence[Tensor | None] = ()
        if grad is None:
            pass
        elif (parts := ctx.tape.phase.pull(op, ctx, grad)) is NATIVE:
            to_graph = grad
        else:
            to_inputs = parts[: op.inputs]
            to_pixels = parts[op.inputs] if len(parts) > op.inputs else None
        rest = [None] * (len(ctx.needs_input_grad) - 6 - len(to_inputs))
        return None, None, None, to_graph, to_pixels, None, *to_inputs, *rest
