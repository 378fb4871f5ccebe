"""Maps of a checkpointed forward pass: all three phases go through one segment after another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.attr import views
from captum_transformer_lrp.engine.checkpoints import Arrived, Segment, segments
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.phases import Rollout
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.engine.watch.log import Log

Combine = Callable[[AttentionStep, Tensor | None, Tensor], Tensor]
"""An attention's weighted map, of its gradient and its relevance."""


class Descent:
    """How far one target's explanation has come: what has arrived, by phase."""

    def __init__(
        self, output: int, start: Tensor, *, needs_gradient: bool, keep_identity: bool
    ) -> None:
        self.relevance: Arrived = {output: start}
        self.gradient: Arrived = {output: start} if needs_gradient else {}
        self.mass: Arrived = {output: start if keep_identity else torch.zeros_like(start)}
        self._passes = [(False, self.mass)]
        if not keep_identity:  # what no attention has moved goes down beside what one has
            self._passes.insert(0, (True, {output: start}))

    def maps(
        self, recording: Recording, segment: Segment, layers: Collection[int], combined: Combine
    ) -> dict[int, Tensor]:
        """Carry relevance and gradient through a segment; returns its weighted maps."""
        used = [step for step in segment.steps if step.index in layers]
        goes_on = any(layer < segment.before for layer in layers)
        if not used and not goes_on:
            return {}
        wanted = [step.attention for step in used]
        relevances = segment.backward(recording.relevance, self.relevance, wanted, goes_on=goes_on)
        gradients: Sequence[Tensor | None] = [None] * len(used)
        if self.gradient:
            gradients = segment.backward(recording.gradient, self.gradient, wanted, goes_on=goes_on)
        return {
            step.index: combined(step, gradient, relevance)
            for step, gradient, relevance in zip(used, gradients, relevances, strict=True)
        }

    def moved(self, segment: Segment, rollout: Rollout, wanted: Sequence[Tensor]) -> list[Tensor]:
        """Carry mass through a segment; returns what arrives at ``wanted``."""
        found: list[Tensor] = []
        for holds_back, arrived in self._passes:
            rollout.holds_back = holds_back
            found = segment.backward(rollout, arrived, wanted)
        return found


def rolled_out(
    recording: Recording,
    log: Log,
    view: views.View,
    layers: Collection[int],
    combined: Combine,
    *,
    needs_gradient: bool,
) -> list[Any]:
    """The maps of all targets of a recording, by the attentions whose places are ``layers``."""
    stream = views.token_stream(recording) if view.granularity == "token" else None
    place = None if stream is None else log.hold(stream)
    output = log.hold(recording.output)
    kinds = {"needs_gradient": needs_gradient, "keep_identity": view.keep_identity}
    descents = [Descent(output, start, **kinds) for start in recording.targets]
    found: list[Tensor] = []
    with closing(segments(recording.tape, log)) as made_again:
        for segment in made_again:
            here = [value for number, value in segment.made.items() if number == place]
            for descent in descents:
                maps = descent.maps(recording, segment, layers, combined)
                rollout = Rollout(maps, reaches_pixels=place is None)
                found += descent.moved(segment, rollout, here)
            if here:
                break
    if place is None:
        return [view.formatted(_at_inputs(recording, log, one.mass)) for one in descents]
    found = found or [descent.mass[place] for descent in descents]
    return [views.summed_by_token(recording, one).detach() for one in found]


def _at_inputs(recording: Recording, log: Log, mass: Arrived) -> tuple[Tensor, ...]:
    numbers = [number for number in log.outside if number in mass]
    outputs, seeds = [log.held[one] for one in numbers], [mass[one] for one in numbers]
    arrived = recording.tape.backward(Rollout(), outputs, seeds, recording.all_leaves)
    return views.at_inputs(recording, arrived)
