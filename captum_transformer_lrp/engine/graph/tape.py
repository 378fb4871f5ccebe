"""The tape: what a model did in one forward pass, replayed backward in three phases.

Every call with a rule is followed by a *switch* (``switch.py``), one autograd function whose
forward pass is the identity.  Its backward pass asks the tape which phase it is in:

* ``GRADIENT`` — the gradient goes on into the call's own autograd graph, as if nothing were there;
* ``RELEVANCE`` — the call's rule divides the relevance among its inputs;
* ``ROLLOUT`` — token mass goes on along attention and skip connections (eq. 13–14 as a backward
  pass).

Calls that only move elements have no switch: their derivative is right in every phase.

Weights are kept as the model has them.  Those of a lower precision than the tape's are raised
anew whenever a phase needs them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.made_of import MadeOf
from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.graph.seen import AttentionStep, Normalized, Residual, Stream
from captum_transformer_lrp.engine.graph.tensor_table import TensorTable
from captum_transformer_lrp.engine.graph.values import Shape, raised, stand_in
from captum_transformer_lrp.rules import Call, Rule
from captum_transformer_lrp.rules.call import Stabilizer
from captum_transformer_lrp.rules.kernels import Kernel


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


NATIVE: Final = ()
"""Returned by a flow that leaves the matter to the call's own derivative."""


@dataclass(frozen=True)
class Flow:
    """How token mass passes an operation in the rollout phase.

    Args:
        mass: given the step, its call and the mass of the call's output: the mass of each input,
            None for none at all, then that of the pixels; or :data:`NATIVE`.
        reads_values: whether it looks at the values of the inputs and output, not only at their
            shapes.
        keeps_places: whether the output has the places and features of the inputs.
    """

    mass: Callable[[Step, Call, Tensor], Sequence[Tensor | None]]
    reads_values: bool = True
    keeps_places: bool = False

    def __call__(self, step: Step, call: Call, mass: Tensor) -> Sequence[Tensor | None]:
        """See ``mass``."""
        return self.mass(step, call, mass)


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
    has_pixels: bool = False
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
        saved = [*saved[:kept], *(stand_in(one) for one in self.shapes), *saved[kept:]]
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
        made_of: what copies, parts, sums and products are made of.
        residuals: the skip connections, in the order of the forward pass.
        normalizations: the normalisations, in the order of the forward pass.
        readout: the calls that make the output, if they are kept: function, arguments, keyword
            arguments and result.
        through: events of an attention that the rollout phase must go through, not around.
        explicit_zeros: whether inputs without relevance are sent zeros, as Captum's hooks on
            modules expect, rather than nothing at all.
        reaches_pixels: whether mass of tokens that convolutions make goes to the pixels that they
            are made from, as on its way to the inputs.
        held: mass that has arrived at places that queries are compared with, while it is kept.
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
        self.made_of = MadeOf()
        self.residuals: list[Residual] = []
        self.normalizations: list[Normalized] = []
        self.readout: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        self.absorbed: dict[str, Tensor] = {}
        self.reaches_pixels = True
        self.held: list[list[Tensor]] = []
        self.holds_back = False
        self.skips = 0
        self.other_mixing: list[str] = []
        self._events = self._linear_events = 0

    def mark(self, tensor: object) -> Mark | None:
        """What is known of a tensor, None for anything that does not descend from the inputs."""
        return self.marks.get(tensor)

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

    def has_layers(self, mark: Mark) -> bool:
        """Whether a tensor has passed a linear layer since its stream began."""
        return bool(mark.events & self._linear_events)

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
        self.made_of.clear()
        self.marks.clear()  # what is known of tokens holds the pixels that they were made from
        self.residuals.clear()
        self.normalizations.clear()
        self.readout.clear()
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

    @contextmanager
    def asked(self, phase: Phase) -> Iterator[None]:
        """A block in which a phase is run to learn something, while the model runs still.

        Nothing of it counts: the phase and the books are the same behind the block.
        """
        before, books = self.phase, self.absorbed
        self.phase, self.absorbed = phase, dict(books)
        try:
            yield
        finally:
            self.phase, self.absorbed = before, books

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
