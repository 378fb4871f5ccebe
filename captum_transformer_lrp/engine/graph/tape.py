"""The tape: what a model did in one forward pass, replayed backward in three phases.

Every call with a rule is followed by a *switch*, one autograd function whose forward pass is the
identity.  Its backward pass asks the tape which phase it is in:

* ``GRADIENT`` — the gradient goes on into the call's own autograd graph, as if nothing were there;
* ``RELEVANCE`` — the call's rule divides the relevance among its inputs;
* ``ROLLOUT`` — token mass goes on along attention and skip connections (eq. 13–14 as a backward
  pass).

Calls that only move elements have no switch: their derivative is right in every phase.

Weights are kept as the model has them.  Those of a lower precision than the tape's are raised
anew whenever a phase needs them.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from captum_transformer_lrp.engine.flows import NATIVE, SHAPES_ONLY, Flow
from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.graph.tensor_table import TensorTable
from captum_transformer_lrp.rules import Call, Rule
from captum_transformer_lrp.rules.call import Stabilizer
from captum_transformer_lrp.rules.kernels import Kernel, SoftmaxKernel
from captum_transformer_lrp.rules.normalization import NormalizationKernel
from captum_transformer_lrp.rules.rows import on_rows


class Keeps(enum.Enum):
    """What the switch behind a call keeps of the call's activations."""

    VALUES = enum.auto()
    """Its output and its inputs."""
    OUTPUT = enum.auto()
    """Its output, and the shapes of its inputs."""
    SHAPES = enum.auto()


class Phase(enum.Enum):
    """The three backward phases."""

    GRADIENT = enum.auto()
    RELEVANCE = enum.auto()
    ROLLOUT = enum.auto()


ALL_PHASES = frozenset(Phase)


@dataclass(eq=False)
class Residual:
    """One skip connection of the forward pass: a stream of tokens, and a branch added to it.

    Args:
        stream: the operand that skips the branch; on the tape, as are the others.
        branch: what is added to it.
        output: their sum.
        attends: whether an attention lies in the branch.
        norm: the normalisation that the sum goes through before the stream goes on, as in
            post-norm models; None if the sum is the stream.
    """

    stream: Tensor
    branch: Tensor
    output: Tensor
    attends: bool
    norm: Normalized | None = None


@dataclass(eq=False)
class Stream:
    """What skips attentions.

    Args:
        tensor: the operand of the addition that goes around them.
        attentions: their bits in :attr:`Mark.attentions`.
    """

    tensor: Tensor
    attentions: int


@dataclass(eq=False)
class Normalized:
    """One normalisation of the forward pass: its input, its output and how it was computed."""

    source: Tensor
    output: Tensor
    kernel: NormalizationKernel


@dataclass(eq=False)
class AttentionStep:
    """One attention of the forward pass: a softmax map that multiplied values.

    Args:
        index: its place in the order of the forward pass.
        name: the qualified name of the module that computed it.
        attention: A, the map as it multiplied the values; on the tape.
        mark: its provenance.
        event: its bit in :attr:`Mark.events` and :attr:`Mark.attentions`.
        position: which operand of the product A was, 0 or 1.
        axes: the axes of A, counted from the end, along which queries and keys lie; None where
            there is not one of each.
        values: V, what it multiplied; None if streams are not kept, as for the next two, but that
            the first attention has an output.
        output: the product, A V.
        residual: the skip connection around it, if there is one.
        weighted: the map that the rollout phase carries mass by, (∇A ⊙ R)⁺ for the paper's method;
            None for an attention that takes no part.
        held_back: mass that no attention has moved yet, while :meth:`Tape.moved_mass` moves it.
    """

    index: int
    name: str
    attention: Tensor
    mark: Mark
    event: int
    position: int
    axes: tuple[int, int] | None = (-2, -1)
    values: Tensor | None = None
    output: Tensor | None = None
    residual: Residual | None = None
    weighted: Tensor | None = None
    held_back: Tensor | None = None


Shape: TypeAlias = tuple[torch.Size, torch.dtype, torch.device]


@dataclass(eq=False)
class Step:
    """What the switch behind one call needs to know.

    ``shapes`` are those of the call's inputs, of its output too if ``keeps`` is ``SHAPES``; empty
    where they are kept themselves.
    """

    tape: Tape
    function: Callable[..., Any]
    kernel: Kernel
    rule: Rule
    flow: Flow
    mark: Mark
    name: str
    inputs: int
    has_graph: bool = True
    has_weight: bool = False
    has_bias: bool = False
    has_constant: bool = False
    gate: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    keeps: Keeps = Keeps.VALUES
    shapes: Sequence[Shape] = ()

    def call(self, saved: Sequence[Tensor]) -> Call:
        """The call, put together again from the tensors that autograd kept."""
        kept = 1 if self.keeps is Keeps.OUTPUT else 0
        saved = [*saved[:kept], *(_stand_in(one) for one in self.shapes), *saved[kept:]]
        rest = [raised(one, saved[0].dtype) for one in saved[1 + self.inputs :]]
        return Call(
            function=self.function,
            kernel=self.kernel,
            output=saved[0],
            inputs=tuple(saved[1 : 1 + self.inputs]),
            weight=rest.pop(0) if self.has_weight else None,
            bias=rest.pop(0) if self.has_bias else None,
            constant=rest.pop(0) if self.has_constant else None,
            gate=self.gate,
            examples=self.mark.examples,
            stabilizer=self.tape.stabilizer,
            epsilon=self.tape.epsilon,
            keeps_books=self.tape.keeps_books,
            absorb=self._absorb,
        )

    def _absorb(self, amount: Callable[[], Tensor]) -> None:
        if self.tape.keeps_books:
            self.tape.absorb(self.name, amount())


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
        originals: for constants in the tape's precision what they were raised from.
        attentions: the attentions, in the order of the forward pass.
        streams: what skips attentions, for each addition around any.
        residuals: the skip connections, in the order of the forward pass.
        normalizations: the normalisations, in the order of the forward pass.
        readout: the calls after the last skip connection, if they are kept: function, arguments,
            keyword arguments and result.
        through: events of an attention that the rollout phase must go through, not around.
        explicit_zeros: whether inputs without relevance are sent zeros, as Captum's hooks on
            modules expect, rather than nothing at all.
        grids: mass that has arrived at a convolution that makes tokens.
        stops_at_grids: whether mass stops there, as it does on its way to the inputs.
        holds_back: whether attentions keep the mass that arrives, rather than move it.
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
        phases: frozenset[Phase] = ALL_PHASES,
        epsilon: float = 0.0,
    ) -> None:
        self.stabilizer = stabilizer
        self.keeps_books = keeps_books
        self.keeps_streams = keeps_streams
        self.phases = phases
        self.epsilon = epsilon
        self.phase = Phase.GRADIENT
        self.originals: TensorTable[Tensor] = TensorTable()
        self.marks: TensorTable[Mark] = TensorTable()
        self.attentions: list[AttentionStep] = []
        self.through = 0
        self.explicit_zeros = False
        self.streams: list[Stream] = []
        self.residuals: list[Residual] = []
        self.normalizations: list[Normalized] = []
        self.readout: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        self.absorbed: dict[str, Tensor] = {}
        self.patch_features: int | None = None
        self.grids: list[tuple[Tensor, Mark]] = []
        self.stops_at_grids = True
        self.holds_back = False
        self.skips = 0
        self.other_mixing: list[str] = []
        self._events = 0
        self._linear_events = 0

    def mark(self, tensor: Tensor) -> Mark | None:
        """What is known of a tensor, None if it does not descend from the inputs."""
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
            if node.name().startswith(_Switch.__name__) or (
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

    def leave_out_attentions(self) -> None:
        """No attention takes part in the rollout phase, until it is given what carries mass."""
        for step in self.attentions:
            step.weighted = None
        self.through = 0

    def clear(self) -> None:
        """Let go of the graph; it and the tape hold each other."""
        for step in self.attentions:  # what made their outputs refers to them
            step.values = step.output = step.residual = None
        self.attentions.clear()
        self.streams.clear()
        self.residuals.clear()
        self.normalizations.clear()
        self.readout.clear()
        self.grids.clear()
        self.absorbed = {}

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

    def absorb(self, name: str, amount: Tensor) -> None:
        """Add to the relevance that ends in parameter or operation ``name``, shape (N,)."""
        before = self.absorbed.get(name)
        self.absorbed[name] = amount if before is None else before + amount

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
        graph = output if output.requires_grad else None
        step = Step(
            self,
            function,
            kernel,
            rule,
            flow,
            mark,
            name,
            len(inputs),
            graph is not None,
            weight is not None,
            bias is not None,
            constant is not None,
            gate,
            facts,
        )
        needs_derivative = Phase.GRADIENT in self.phases and graph is None
        if (
            (Phase.RELEVANCE in self.phases and rule.reads_values)
            or (Phase.ROLLOUT in self.phases and flow not in SHAPES_ONLY)
            or (needs_derivative and not isinstance(kernel, SoftmaxKernel))
        ):
            step.keeps = Keeps.VALUES
        else:
            step.keeps = Keeps.OUTPUT if needs_derivative else Keeps.SHAPES
        kept = [
            value if original is None else original
            for value in (weight, bias, constant)
            if value is not None
            for original in (self.originals.get(value),)
        ]
        switched: Tensor = _Switch.apply(step, graph, output.detach(), *inputs, *kept)
        self.marks[switched] = mark
        return switched

    def at_positions(self, output: Tensor, positions: Sequence[tuple[int, ...]]) -> Tensor | None:
        """The part of a linear layer's output that was made at some positions.

        What goes backward from there touches nothing else of the output, which for a language model
        has a row of its whole vocabulary for each token.

        Args:
            output: (N, …, C), on the tape.
            positions: indices of the axes between the first and the last.

        Returns:
            (N, positions, C), on the tape; None unless ``output`` is a linear layer's, examples
            first, whose inputs were kept.
        """
        node = output.grad_fn
        step = getattr(node, "step", None)
        if node is None or not isinstance(step, Step) or self.keeps_books:
            return None
        examples = step.mark.examples
        in_front = examples.count == 1 or (examples.axis == 0 and examples.index is None)
        is_whole = output.shape[0] == examples.count
        if not (step.kernel.by_row and step.keeps is Keeps.VALUES and in_front and is_whole):
            return None
        value, x, *others = node.saved_tensors  # type: ignore[attr-defined]
        if value.shape != output.shape:
            return None
        places = (slice(None), *torch.tensor(positions, device=x.device).unbind(1))
        with torch.enable_grad():
            part: Tensor = _Switch.apply(step, None, value[places], x[places], *others)
        self.marks[part] = step.mark
        return part

    def backward(
        self,
        phase: Phase,
        output: Tensor | Sequence[Tensor],
        seed: Tensor | Sequence[Tensor],
        wanted: Sequence[Tensor],
    ) -> list[Tensor]:
        """Run one phase from an output, or several, to ``wanted``; zeros where nothing arrives."""
        self.phase = phase
        found = torch.autograd.grad(output, wanted, seed, retain_graph=True, allow_unused=True)
        return [
            torch.zeros_like(tensor) if value is None else value
            for tensor, value in zip(wanted, found, strict=True)
        ]

    @contextlib.contextmanager
    def holding_back(self) -> Iterator[Callable[[], None]]:
        """Carry mass in two passes, so that what no attention has moved can be left out.

        In the first pass attentions keep what arrives.  Then the yielded function is called.  The
        second pass starts from no mass at all: the attentions send on what they have kept.  So the
        row of C − I is computed without the difference.
        """

        def send_on() -> None:
            self.holds_back = False
            self.grids.clear()

        self.holds_back = True
        try:
            yield send_on
        finally:
            self.holds_back = False
            for step in self.attentions:
                step.held_back = None

    def moved_mass(self, output: Tensor, seed: Tensor, wanted: Sequence[Tensor]) -> list[Tensor]:
        """Run the rollout phase, for the mass that at least one attention moves."""
        with self.holding_back() as send_on:
            self.backward(Phase.ROLLOUT, output, seed, wanted)
            send_on()
            return self.backward(Phase.ROLLOUT, output, torch.zeros_like(seed), wanted)

    def backward_to_each(
        self,
        phase: Phase,
        output: Tensor,
        seed: Tensor,
        steps: Sequence[AttentionStep],
        arrived: Callable[[int, Tensor], None],
    ) -> None:
        """Run one phase down to attention maps, and hand over what arrives as soon as it does.

        :meth:`backward` keeps what arrives at every map until the pass has ended; of this, only
        what ``arrived(place, value)`` keeps is in memory.  It is called once for each step, by its
        place in ``steps``, with zeros where nothing arrives.
        """
        self.phase = phase
        maps = [step.attention for step in steps]
        missing = set(range(len(steps)))

        def note(place: int, value: Tensor | None) -> None:
            if value is not None:  # as it is where a call in between has no derivative
                missing.discard(place)
                arrived(place, value)

        # A pass that goes down to the lowest maps comes by all that are computed from them.
        lowest = [
            map
            for map, step in zip(maps, steps, strict=True)
            if not any(step.mark.attentions & below.event for below in steps)
        ]
        hooks = [map.register_hook(partial(note, place)) for place, map in enumerate(maps)]
        try:
            torch.autograd.grad(output, lowest, seed, retain_graph=True, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
        for place in missing:
            arrived(place, torch.zeros_like(maps[place]))

    def backward_together(
        self, phase: Phase, output: Tensor, seeds: Sequence[Tensor], wanted: Sequence[Tensor]
    ) -> list[list[Tensor]]:
        """Run one phase for several seeds in one pass; for each what :meth:`backward` returns."""

        def run(seed: Tensor) -> list[Tensor]:
            return self.backward(phase, output, seed, wanted)

        if len(seeds) > 1:
            try:
                found = torch.func.vmap(run)(torch.stack(list(seeds)))
                return [[one[place] for one in found] for place in range(len(seeds))]
            except RuntimeError:
                pass  # an operation or a rule of somebody's that vmap cannot do: one by one
        return [run(seed) for seed in seeds]


class _Switch(torch.autograd.Function):
    """The identity, with a backward pass for each phase."""

    @staticmethod
    def forward(
        ctx: Any, step: Step, graph: Tensor | None, value: Tensor, *tensors: Tensor
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
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        step: Step = ctx.step
        count = len(ctx.needs_input_grad) - 3
        nothing: list[Tensor | None] = [None] * count
        if grad is None:
            return None, None, None, *nothing
        phase = step.tape.phase
        if phase is Phase.GRADIENT and step.has_graph:
            return None, grad, None, *nothing
        call = step.call(ctx.saved_tensors)
        if phase is Phase.GRADIENT:
            nothing[: step.inputs] = _gradients(call, grad)
            return None, None, None, *nothing
        if phase is Phase.RELEVANCE:
            parts = step.rule.relevance(call, grad)
            parts = (parts,) if isinstance(parts, Tensor) else tuple(parts)
            if len(parts) != step.inputs:
                raise ValueError(
                    f"{step.rule!r} returned {len(parts)} relevances for the {step.inputs} inputs "
                    f"of {getattr(step.function, '__name__', step.function)}"
                )
            if step.tape.explicit_zeros:
                parts = tuple(
                    torch.zeros_like(value) if part is None else part
                    for part, value in zip(parts, call.inputs, strict=True)
                )
            nothing[: step.inputs] = parts
            return None, None, None, *nothing
        masses = step.flow(step, call, grad)
        if masses is NATIVE:
            return None, grad, None, *nothing
        nothing[: step.inputs] = masses
        return None, None, None, *nothing


def _gradients(call: Call, grad: Tensor) -> tuple[Tensor, ...]:
    if isinstance(call.kernel, SoftmaxKernel):
        return (call.kernel.vjp_at(call.output, grad),)
    if call.kernel.by_row:
        return (on_rows(call, grad, lambda some, rows: some.vjp(rows)[0]),)
    return call.vjp(grad)


def raised(constant: Tensor, dtype: torch.dtype) -> Tensor:
    """A constant in a dtype, if that is more precise."""
    lower = constant.is_floating_point() and constant.element_size() < dtype.itemsize
    return constant.to(dtype) if lower else constant


def _stand_in(shape: Shape) -> Tensor:
    """A tensor of a shape, dtype and device that takes no memory."""
    size, dtype, device = shape
    return torch.empty((), dtype=dtype, device=device).expand(size)


def stand_in_for(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, dtype and device that takes no memory."""
    return _stand_in((tensor.shape, tensor.dtype, tensor.device))
