"""The switch behind a call: the identity forward, with a backward pass for each phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.graph.tape import NATIVE, Flow, Keeps, Phase, Step, Tape
from captum_transformer_lrp.rules import Call, Rule
from captum_transformer_lrp.rules.kernels import Kernel, SoftmaxKernel
from captum_transformer_lrp.rules.rows import on_rows


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

    The gradient phase goes on in the autograd graph of ``output``, if it has one, or else takes
    the kernel's vector-Jacobian product.  ``pixels`` are what token mass may go to, past all
    that lies between them and the call.
    """
    if not torch.is_grad_enabled():
        return output  # the model wants no derivative, as inside a custom autograd function
    has_graph, others = output.requires_grad, (weight, bias, constant)
    step = Step(
        tape, function, kernel, rule, flow, mark, name, len(inputs), has_graph,
        pixels is not None,
        weight is not None, bias is not None, constant is not None, gate, facts,
        _keeps(tape, kernel, rule, flow, has_graph=has_graph),
    )  # fmt: skip
    kept = [
        value if original is None else original
        for value in others
        if value is not None
        for original in (tape.originals.get(value),)
    ]
    graph = output if has_graph else None
    switched: Tensor = TapeSwitch.apply(step, graph, pixels, output.detach(), *inputs, *kept)
    tape.marks[switched] = mark
    return switched


def _keeps(tape: Tape, kernel: Kernel, rule: Rule, flow: Flow, *, has_graph: bool) -> Keeps:
    """What the phases that will be run need of a call."""
    needs_derivative = Phase.GRADIENT in tape.phases and not has_graph
    if (
        (Phase.RELEVANCE in tape.phases and rule.reads_values)
        or (Phase.ROLLOUT in tape.phases and flow.reads_values)
        or (needs_derivative and not isinstance(kernel, SoftmaxKernel))
    ):
        return Keeps.VALUES
    return Keeps.OUTPUT if needs_derivative else Keeps.SHAPES


class TapeSwitch(torch.autograd.Function):
    """The identity, with a backward pass for each phase."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        step: Step,
        graph: Tensor | None,
        pixels: Tensor | None,
        value: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
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
        phase = step.tape.phase
        if grad is None:
            pass
        elif phase is Phase.GRADIENT and step.has_graph:
            to_graph = grad
        elif phase is Phase.GRADIENT:
            to_inputs = _gradients(step.call(ctx.saved_tensors), grad)
        elif phase is Phase.RELEVANCE:
            to_inputs = _relevances(step, step.call(ctx.saved_tensors), grad)
        elif (masses := step.flow(step, step.call(ctx.saved_tensors), grad)) is NATIVE:
            to_graph = grad
        else:
            to_inputs = masses[: step.inputs]
            to_pixels = masses[step.inputs] if len(masses) > step.inputs else None
        rest = [None] * (len(ctx.needs_input_grad) - 4 - len(to_inputs))
        return None, to_graph, to_pixels, None, *to_inputs, *rest


def _relevances(step: Step, call: Call, relevance: Tensor) -> Sequence[Tensor | None]:
    found = step.rule.relevance(call, relevance)
    parts: Sequence[Tensor | None] = (found,) if isinstance(found, Tensor) else tuple(found)
    if len(parts) != step.inputs:
        raise ValueError(
            f"{step.rule!r} returned {len(parts)} relevances for the {step.inputs} inputs "
            f"of {getattr(step.function, '__name__', step.function)}"
        )
    if not step.tape.explicit_zeros:
        return parts
    pairs = zip(parts, call.inputs, strict=True)
    return [torch.zeros_like(value) if part is None else part for part, value in pairs]


def _gradients(call: Call, grad: Tensor) -> tuple[Tensor, ...]:
    if isinstance(call.kernel, SoftmaxKernel):
        return (call.kernel.vjp_at(call.output, grad),)
    if call.kernel.by_row:
        return (on_rows(call, grad, lambda some, rows: some.vjp(rows)[0]),)
    return call.vjp(grad)
