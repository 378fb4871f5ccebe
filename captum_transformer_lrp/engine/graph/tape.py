"""The tape: what a model did in one forward pass, walked backward in several phases.

Every call with a rule is followed by a *switch* (``switch.py``), one autograd function whose
forward pass is the identity.  Its backward pass asks the
:class:`~captum_transformer_lrp.engine.graph.op.Phase` that is under way what goes on to the
call's inputs (see :mod:`captum_transformer_lrp.engine.phases`).  Calls that only move elements
have no switch: their derivative is right in every phase.

Weights are kept as the model has them.  Those of a lower precision than the tape's are raised
anew whenever a phase needs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.made_of import MadeOf
from captum_transformer_lrp.engine.graph.marks import (
    NO_PIXELS,
    Kind,
    Mark,
    Node,
    Pixels,
    common_pixels,
)
from captum_transformer_lrp.engine.graph.op import NoPhase, Phase
from captum_transformer_lrp.engine.graph.seen import AttentionStep, Normalized, Residual, Stream
from captum_transformer_lrp.engine.graph.tensor_table import TensorTable
from captum_transformer_lrp.rules.call import Stabilizer
from captum_transformer_lrp.rules.examples import Examples


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
        mark: returns what is known of a tensor, None for anything that does not descend from the
            inputs.
        streams: what skips attentions, for each addition around any.
        made_of: what copies, parts, sums and products are made of.
        residuals: the skip connections, in the order of the forward pass.
        normalizations: the normalisations, in the order of the forward pass.
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
        self.epsilon = epsilon
        self.phase: Phase = NoPhase()
        self.originals: TensorTable[Tensor] = TensorTable()
        self.marks: TensorTable[Mark] = TensorTable()
        self.mark = self.marks.get
        self.attentions: list[AttentionStep] = []
        self.streams: list[Stream] = []
        self.made_of = MadeOf()
        self.residuals: list[Residual] = []
        self.normalizations: list[Normalized] = []
        self.skips = 0
        self.other_mixing: list[str] = []
        self._last, self._linear = 1, 0
        self._inputs: dict[int, int] = {}

    def given(self, examples: Examples, index: int, **known: Any) -> Mark:
        """What is known of an explained input, or of what was looked up for it."""
        if index not in self._inputs:
            self._last = self._inputs[index] = self._last << 1
        return Mark(examples, Node(Kind.INPUT, (), self._inputs[index], **known))

    def made(
        self,
        kind: Kind,
        below: Sequence[Mark],
        examples: Examples,
        pixels: Pixels | None = None,
        **known: Any,
    ) -> Mark:
        """What is known of the result of a call; ``known`` as of :class:`Node`."""
        self._last <<= 1
        node = Node(kind, below, self._last, **known)
        if kind in (Kind.LINEAR, Kind.QUERIES):
            self._linear |= node.bit
        if pixels is None and kind is not Kind.ATTENTION:
            pixels = below[0].pixels if len(below) == 1 else common_pixels(below)
            if kind is Kind.JOIN and pixels.grid is not None:
                pixels = pixels._replace(grid=None)
        columns = [one.columns for one in below if one.columns is not None]
        return Mark(
            examples, node, node.moved, pixels or NO_PIXELS, columns[0] if columns else None
        )

    def is_linear_beside(self, mark: Mark, other: Mark) -> bool:
        """Whether one tensor has passed nothing but linear layers that the other has not."""
        beyond = mark.node.events & ~other.node.events
        return beyond & ~self._linear & ~sum(self._inputs.values()) == 0

    def has_layers(self, mark: Mark) -> bool:
        """Whether a tensor has passed a linear layer since its stream began."""
        return bool(mark.node.events & self._linear)

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

    def note_skip(self, residual: Residual) -> None:
        """Note a skip connection, and whatever is known of it if streams are kept."""
        self.skips += 1
        if residual.attentions:
            self.streams.append(Stream(residual.tensor, residual.branch, residual.attentions))
        if not self.keeps_streams:
            return
        before = self.residuals[-1] if self.residuals else None
        if before is not None:
            for norm in self.normalizations:
                if norm.source is before.output and norm.output is residual.tensor:
                    before.norm = norm
        self.residuals.append(residual)
        for step in self.attentions:
            if step.event & residual.attentions and step.residual is None:
                step.residual = residual

    @contextmanager
    def walking(self, phase: Phase) -> Iterator[None]:
        """A block in which a phase is under way, in the place of any other."""
        outer, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = outer

    def backward(
        self,
        phase: Phase,
        output: Tensor | Sequence[Tensor],
        seed: Tensor | Sequence[Tensor],
        wanted: Sequence[Tensor],
    ) -> list[Tensor]:
        """Run one phase from an output, or several, to ``wanted``; zeros where nothing arrives."""
        with self.walking(phase):
            found = torch.autograd.grad(output, wanted, seed, retain_graph=True, allow_unused=True)
        return [
            torch.zeros_like(tensor) if value is None else value
            for tensor, value in zip(wanted, found, strict=True)
        ]
