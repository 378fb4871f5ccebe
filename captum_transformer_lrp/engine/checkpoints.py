"""Checkpointing: a range of the logged calls is made again, and all phases go through it.

Between two *checkpoints* lies a segment: the calls up to a skip connection around an attention.  Of
the forward pass only the tensors that a segment takes over from earlier ones are kept, such as the
stream of tokens.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.op import Phase
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.graph.tape import Tape
from captum_transformer_lrp.engine.watch.log import Cut, Log

Arrived = dict[int, Tensor]
"""What has arrived at activations of the forward pass, by their number."""


def segments(tape: Tape, log: Log) -> Generator[Segment, None, None]:
    """The calls of each segment made again, from the last segment to the first.

    The tape lists the attentions of the segment and those before it, as in the forward pass.
    """
    attentions, streams = list(tape.attentions), list(tape.streams)
    end = len(log.calls)
    try:
        for cut in reversed(log.cuts):
            tape.attentions[:] = attentions[: cut.attentions]
            tape.streams[:] = streams[: cut.streams]
            yield _made_again(tape, log, cut, end)
            end = cut.calls
    finally:
        tape.attentions[:], tape.streams[:] = attentions, streams


def _made_again(tape: Tape, log: Log, cut: Cut, end: int) -> Segment:
    calls = log.calls[cut.calls : end]
    made = {number for call in calls for number in call.results if number is not None}
    taken = dict.fromkeys(one for call in calls for one in call.numbers if one not in made)
    given: dict[int, Tensor] = {}
    for number in taken:
        mark = tape.mark(log.held[number])
        assert mark is not None
        given[number] = log.held[number].detach().requires_grad_()
        tape.marks[given[number]] = mark.but(pixels=mark.pixels._replace(grid=None))
    found = log.play(calls, given, made & log.held.keys())
    return Segment(tape, cut.attentions, given, found, tape.attentions[cut.attentions :])


@dataclass(frozen=True, eq=False)
class Segment:
    """A segment whose calls have been made again.

    Args:
        tape: where.
        before: how many attentions came before it.
        given: the activations that it takes over, by their number; its graph begins there.
        made: those that others take over of it.
        steps: its attentions.
    """

    tape: Tape
    before: int
    given: Arrived
    made: Arrived
    steps: list[AttentionStep]

    def backward(
        self, phase: Phase, arrived: Arrived, wanted: Sequence[Tensor], *, goes_on: bool = True
    ) -> list[Tensor]:
        """Run one phase through the segment.

        Args:
            phase: which.
            arrived: what has arrived at the activations that are made here is taken out of it, and
                what arrives at those that are taken over is put into it.
            wanted: tensors of the segment.
            goes_on: whether what arrives at those that are taken over is needed.

        Returns:
            What arrives at each of ``wanted``.
        """
        starts = [number for number in self.made if number in arrived]
        seeds = [arrived.pop(number) for number in starts]
        given = self.given if goes_on else {}
        if not starts or not (wanted or given):
            return [torch.zeros_like(one) for one in wanted]
        outputs = [self.made[number] for number in starts]
        found = self.tape.backward(phase, outputs, seeds, [*wanted, *given.values()])
        for number, value in zip(given, found[len(wanted) :], strict=True):
            arrived[number] = arrived[number] + value if number in arrived else value
        return found[: len(wanted)]
