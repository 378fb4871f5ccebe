"""Maps of a checkpointed forward pass: all three phases go through one segment after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.attr import views
from captum_transformer_lrp.engine.checkpoints import Log, Pending, Replay, Segment
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.phases import Rollout
from captum_transformer_lrp.engine.recording import Recording

Combine = Callable[[AttentionStep, Tensor | None, Tensor], Tensor]
"""An attention's weighted map, of its gradient and its relevance."""


@dataclass(eq=False)
class Descent:
    """How far one target's explanation has come: what waits for the segment below, by phase.

    ``mass`` is all mass, or what no attention has moved if ``moved`` has the rest.
    """

    relevance: Pending
    gradient: Pending
    mass: Pending
    moved: Pending | None

    def carried(self) -> Pending:
        """The mass that the map is made of."""
        return self.mass if self.moved is None else self.moved


def rolled_out(
    recording: Recording,
    log: Log,
    view: views.View,
    layers: set[int],
    combined: Combine,
    *,
    needs_gradient: bool,
) -> list[Any]:
    """The maps of all targets of a recording, by the attentions whose places are ``layers``."""
    stream = views.token_stream(recording) if view.granularity == "token" else None
    log.finish([recording.output] if stream is None else [recording.output, stream])
    output = log.number(recording.output)
    descents = [
        Descent(
            {output: start},
            {output: start} if needs_gradient else {},
            {output: start},
            None if view.keep_identity else {output: torch.zeros_like(start)},
        )
        for start in recording.targets
    ]
    at_stream: list[Tensor] | None = None
    place = None if stream is None else log.number(stream)
    with closing(log.again()) as segments:
        for segment, replay in segments:
            found = [
                _through(recording, descent, segment, replay, place, layers, combined)
                for descent in descents
            ]
            if place in segment.made:
                at_stream = [one for one in found if one is not None]
                break
    if place is not None:
        at_stream = at_stream or [descent.carried()[place] for descent in descents]
        return [views.summed_by_token(recording, one).detach() for one in at_stream]
    return [view.formatted(_at_inputs(recording, log, descent)) for descent in descents]


def _through(
    recording: Recording,
    descent: Descent,
    segment: Segment,
    replay: Replay,
    place: int | None,
    layers: set[int],
    combined: Combine,
) -> Tensor | None:
    """Carry one target through one segment; returns the mass at tensor ``place``, if made there."""
    used = [step for step in replay.steps if step.index in layers]
    goes_on = any(layer < segment.attentions for layer in layers)
    wanted = [step.attention for step in used]
    maps = {}
    if used or goes_on:
        relevances = replay.backward(
            recording.relevance, descent.relevance, wanted, goes_on=goes_on
        )
        gradients: Sequence[Tensor | None] = [None] * len(used)
        if descent.gradient:
            gradients = replay.backward(
                recording.gradient, descent.gradient, wanted, goes_on=goes_on
            )
        for step, gradient, relevance in zip(used, gradients, relevances, strict=True):
            maps[step.index] = combined(step, gradient, relevance)
    rollout = Rollout(maps, reaches_pixels=place is None)
    is_here = place in segment.made
    tokens = [replay.made[place]] if is_here and place is not None else []
    if descent.moved is None:
        found = replay.backward(rollout, descent.mass, tokens)
    else:
        rollout.holds_back = True
        replay.backward(rollout, descent.mass, tokens)
        rollout.holds_back = False
        found = replay.backward(rollout, descent.moved, tokens)
    return found[0] if is_here else None


def _at_inputs(recording: Recording, log: Log, descent: Descent) -> tuple[Tensor, ...]:
    mass = descent.carried()
    numbers = [number for number in log.outside if number in mass]
    arrived = recording.tape.backward(
        Rollout(),
        [log.outside[number] for number in numbers],
        [mass[number] for number in numbers],
        recording.all_leaves,
    )
    return views.at_inputs(recording, arrived)
