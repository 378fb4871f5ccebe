"""The tape: what a model did in one forward pass, walked backward in several phases.

Every call with a rule is followed by a *switch*, one autograd function whose forward pass is the
identity.  Its backward pass asks the :class:`~captum_transformer_lrp.engine.graph.step.Phase` that
is under way what goes on to the call's inputs (see :mod:`captum_transformer_lrp.engine.phases`).
Calls that only move elements have no switch: their derivative is right in every
phase.

Weights are kept as the model has them.  Those of a lower precision than the tape's are raised
anew whenever a phase needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.flow import Flow
from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.graph.seen import AttentionStep, Normalized, Residual, Stream
from captum_transformer_lrp.engine.graph.step import NATIVE, Keeps, NoPhase, Phase, Step
from captum_transformer_lrp.engine.graph.tensor_table import TensorTable
from captum_transformer_lrp.rules import Rule
from captum_transformer_lrp.rules.call import Stabilizer
from captum_transformer_lrp.rules.kernels import Kernel


class Tape:
    """State of one explanation; nothing of it outlives the explanation.

    Args:
        stabilizer: divides relevance safely.
        keeps_books: whether absorbed relevance is added up.
        keeps_streams: whether the tokens of skip connections, normalisations and attentions are
            kept as the model computed them.
        phases: the phases that will be run; what no other needs is not kept.
        epsilon: ε of eq. 2.

    Attributes:
        phase: what is under way; without any, moves pass on what arrives, and calls do not.
        originals: for constants in the tape's precision what they were raised from.
        attentions: the attentions, in the order of the forward pass.
        streams: what skips attentions, for each addition around any.
        residuals: the skip connections, in the order of the forward pass.
        normalizations: the normalisations, in the order of the forward pass.
        readout: the calls after the last skip connection, if they are kept: function, arguments,
            keyword arguments and result.
        skips: how many skip connections there have been.
        other_mixing: names of layers with a softmax or a product of activations that is no
            attention.
    """

    def __init__(
        self,
        stabilizer: Stabilizer,
        *,
        keeps_books: bool,
        keeps_streams: bool = True,
        phases: Sequence[type[Phase]],
        epsilon: float = 0.0,
    ) -> None:
        self.stabilizer = stabilizer
        self.keeps_books = keeps_books
        self.keeps_streams = keeps_streams
        self.phases = phases
        self.phase: Phase = NoPhase()
        self.epsilon = epsilon
        self.originals: TensorTable[Tensor] = TensorTable()
        self.marks: TensorTable[Mark] = TensorTable()
        self.attentions: list[AttentionStep] = []
        self.streams: list[Stream] = []
        self.residuals: list[Residual] = []
        self.normalizations: list[Normalized] = []
        self.readout: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        self.patch_features: int | None = None
        self.skips = 0
        self.other_mixing: list[str] = []
        self._events = 0
        self._linear_events = 0

    def mark(self, tensor: object) -> Mark | None:
        """What is known of a tensor, None for anything that does not descend from the inputs."""
        return self.marks.get(tensor)

    def made(self, tensor: Tensor) -> bool:
        """Whether autograd's graph of a tensor leads to anything on the tape."""
        nodes, seen = [tensor.grad_fn], set()
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if node.name().startswith(TapeSwitch.__name__) or (
                leaf is not None and self.mark(leaf) is not None
            ):
                return True
            nodes += [following for following, _ in node.next_functions]
        return False

    def new_event(self, *, linear: bool = False) -> int:
        """A fresh bit for :attr:`Mark.events`."""
        self._events += 1
        event = 1 << self._events
        if linear:
            self._linear_events |= event
        return event

    def is_linear_beside(self, mark: Mark, other: Mark) -> bool:
        """Whether one tensor has passed nothing but linear layers that the other has not."""
        return mark.events & ~other.events & ~self._linear_events == 0

    def clear(self) -> None:
        """Let go of the graph; it and the tape hold each other."""
        for step in self.attentions:  # what made their outputs refers to them
            step.values = step.output = step.residual = None
        self.attentions.clear()
        self.streams.clear()
        self.residuals.clear()
        self.normalizations.clear()
        self.readout.clear()

    def note_residual(self, residual: Residual, events: int) -> None:
        """Note a skip connection around the attentions of ``events``, if streams are kept."""
        self.skips += 1
        if not self.keeps_streams:
            return
        before = self.residuals[-1] if self.residuals else None
        if before is not None:
            for norm in self.normalizations:
                if norm.source is before.output and norm.output is residual.stream:
                    before.norm = norm
        self.residuals.append(residual)
        for step in self.attentions:
            if step.event & events and step.residual is None:
                step.residual = residual

    def record(
        self,
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
        **facts: Any,
    ) -> Tensor:
        """Put a switch behind a call that has been made, and note the provenance of its result.

        The gradient phase goes on in the autograd graph of ``output``, if it has one, or else takes
        the kernel's vector-Jacobian product.
        """
        if not torch.is_grad_enabled():
            return output  # the model wants no derivative, as inside a custom autograd function
        has_graph, others = output.requires_grad, (weight, bias, constant)
        step = Step(
            function, kernel, rule, flow, mark, name, len(inputs), has_graph,
            weight is not None, bias is not None, constant is not None, gate, facts,
        )  # fmt: skip
        step.stabilizer, step.epsilon = self.stabilizer, self.epsilon
        step.keeps = max((phase.needs(step) for phase in self.phases), default=Keeps.SHAPES)
        kept = [
            value if original is None else original
            for value in others
            if value is not None
            for original in (self.originals.get(value),)
        ]
        graph = output if has_graph else None
        switched: Tensor = TapeSwitch.apply(self, step, graph, output.detach(), *inputs, *kept)
        self.marks[switched] = mark
        return switched

    def backward(
        self,
        phase: Phase,
        output: Tensor | Sequence[Tensor],
        seed: Tensor | Sequence[Tensor],
        wanted: Sequence[Tensor],
    ) -> list[Tensor]:
        """Run one phase from an output, or several, to ``wanted``; zeros where nothing arrives."""
        outer, self.phase = self.phase, phase  # Captum's LRP has one under way
        try:
            found = torch.autograd.grad(output, wanted, seed, retain_graph=True, allow_unused=True)
        finally:
            self.phase = outer
        return [
            torch.zeros_like(tensor) if value is None else value
            for tensor, value in zip(wanted, found, strict=True)
        ]


class TapeSwitch(torch.autograd.Function):
    """The identity, with a backward pass for each phase."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, tape: Tape, step: Step, graph: Tensor | None, value: Tensor, *tensors: Tensor
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
        count = len(ctx.needs_input_grad) - 4
        nothing: list[Tensor | None] = [None] * count
        if grad is None:
            return None, None, None, None, *nothing
        parts = ctx.tape.phase.pull(step, ctx, grad)
        if parts is NATIVE:
            return None, None, grad, None, *nothing
        nothing[: step.inputs] = parts
        return None, None, None, None, *nothing
