"""Checkpointing: what the model did, kept as a list of calls in the place of their values.

Between two *checkpoints* lies a segment: the calls up to a skip connection around an attention.  Of
the forward pass only the tensors that a segment takes over from earlier ones are kept, such as the
stream of tokens.  On the way back each segment's calls are made again, one segment at a time, and
all three phases go through it before the one below is begun.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import (
    Args,
    Function,
    Kwargs,
    replace_tensors,
    tensors_in,
)
from captum_transformer_lrp.engine.graph.op import Phase
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.graph.tensor_table import TensorTable
from captum_transformer_lrp.engine.graph.values import stand_in_for
from captum_transformer_lrp.engine.watch.interception import Interception
from captum_transformer_lrp.errors import ExplanationError

Pending = dict[int, Tensor]
"""What has arrived at tensors of the forward pass, by their number."""


@dataclass(eq=False)
class LoggedCall:
    """One call of the model.

    Args:
        function: what was called.
        args: its arguments, with anything in the place of tensors.
        kwargs: likewise.
        sources: for each tensor among the arguments its number, or itself if it is a constant.
        results: for each tensor that was returned its number; None for what is no activation.
    """

    function: Function
    args: Args
    kwargs: Kwargs
    sources: list[int | Tensor]
    results: list[int | None]


@dataclass(eq=False)
class Segment:
    """The calls between two checkpoints.

    Args:
        attentions: how many attentions came before it.
        streams: how many additions around attentions came before it.
        calls: its calls.
        given: the tensors that it takes over from earlier segments or from outside.
        made: the numbers of those that it makes.
        wanted: the numbers of those among them that others take over.
    """

    attentions: int
    streams: int
    calls: list[LoggedCall] = field(default_factory=list)
    given: dict[int, Tensor] = field(default_factory=dict)
    made: set[int] = field(default_factory=set)
    wanted: set[int] = field(default_factory=set)


class Log:
    """The calls of one forward pass, in segments.

    Args:
        watch: what makes the calls, now and again.

    Attributes:
        segments: in the order of the forward pass.
        outside: the tensors that no logged call has made: inputs and looked up embeddings.
    """

    def __init__(self, watch: Interception) -> None:
        self._watch = watch
        self._numbers: TensorTable[int] = TensorTable()
        self._count = 0
        self._skips = 0
        self.segments = [Segment(0, 0)]
        self.outside: dict[int, Tensor] = {}

    @classmethod
    def started(cls, watch: Interception, given: Sequence[Tensor]) -> Log:
        """Keep the calls that follow, in the place of what they compute.

        Args:
            watch: what makes the calls.
            given: the model's inputs.
        """
        log = watch.log = cls(watch)
        for tensor in given:
            if watch.tape.mark(tensor) is not None:
                log.give(tensor)
        return log

    def number(self, tensor: Tensor) -> int:
        """The number of a tensor of the forward pass.

        Raises:
            ExplanationError: if no call is known that has made it.
        """
        found = self._numbers.get(tensor)
        if found is None:
            raise ExplanationError(
                f"{self._watch.context.names.caller()} uses a tensor that is not made by a call "
                "that can be made again, such as one that was written into or the result of a "
                "custom autograd function: explain the model without checkpointing"
            )
        return found

    def give(self, tensor: Tensor) -> None:
        """Note a tensor that comes from outside."""
        self.outside[self._new(tensor)] = tensor

    def add(self, function: Function, args: Args, kwargs: Kwargs, result: Any) -> None:
        """Note a call that has been made."""
        tape = self._watch.tape
        given = tensors_in((args, kwargs))
        active = [tape.mark(tensor) is not None for tensor in given]
        made = [tensor for tensor in tensors_in(result) if tape.mark(tensor) is not None]
        if not any(active):
            for tensor in made:
                if self._numbers.get(tensor) is None:
                    self.give(tensor)
            return
        if not made:
            return
        segment = self.segments[-1]
        sources: list[int | Tensor] = []
        for tensor, is_active in zip(given, active, strict=True):
            if not is_active:
                sources.append(tensor)
                continue
            number = self.number(tensor)
            if number not in segment.made:
                segment.given.setdefault(number, tensor)
            sources.append(number)
        results: list[int | None] = []
        for tensor in tensors_in(result):
            known = self._numbers.get(tensor)
            if known is None and tape.mark(tensor) is not None:
                known = self._new(tensor)
                segment.made.add(known)
            results.append(known)
        args, kwargs = replace_tensors((args, kwargs), lambda _: _HOLE)
        segment.calls.append(LoggedCall(function, args, kwargs, sources, results))
        for step in tape.attentions[segment.attentions :]:
            step.attention = stand_in_for(step.attention)  # nothing else keeps the map
        if tape.skips > self._skips and len(tape.attentions) > segment.attentions:
            self.segments.append(Segment(len(tape.attentions), len(tape.streams)))
        self._skips = tape.skips

    def _new(self, tensor: Tensor) -> int:
        number = self._count
        self._count += 1
        self._numbers[tensor] = number
        return number

    def finish(self, wanted: Sequence[Tensor]) -> None:
        """After the forward pass: find out what is needed of each segment.

        Args:
            wanted: tensors of the forward pass that are needed beside those that segments take
                over from each other.
        """
        needed = {self.number(tensor) for tensor in wanted}
        needed.update(number for segment in self.segments for number in segment.given)
        for segment in self.segments:
            segment.wanted = segment.made & needed

    def again(self) -> Generator[tuple[Segment, Replay], None, None]:
        """Make the calls of each segment again, from the last to the first.

        The tape lists the attentions of the segment and those before it, as in the forward pass.
        """
        tape = self._watch.tape
        attentions, streams = list(tape.attentions), list(tape.streams)
        try:
            for segment in reversed(self.segments):
                tape.attentions[:] = attentions[: segment.attentions]
                tape.streams[:] = streams[: segment.streams]
                yield segment, self._replayed(segment)
        finally:
            tape.attentions[:], tape.streams[:] = attentions, streams

    def _replayed(self, segment: Segment) -> Replay:
        tape = self._watch.tape
        self._watch.forget_writing()
        leaves: dict[int, Tensor] = {}
        for number, tensor in segment.given.items():
            mark = tape.mark(tensor)
            assert mark is not None
            leaves[number] = tensor.detach().requires_grad_()
            tape.marks[leaves[number]] = mark.but(pixels=mark.pixels._replace(grid=None))
        last_use = {
            source: place
            for place, call in enumerate(segment.calls)
            for source in call.sources
            if _is_number(source)
        }
        values = dict(leaves)
        for place, call in enumerate(segment.calls):
            self._call_again(call, values)
            for found in {*filter(_is_number, call.sources), *filter(_is_number, call.results)}:
                if last_use.get(found, -1) <= place and found not in segment.wanted:
                    values.pop(found, None)
        made = {number: values[number] for number in segment.wanted}
        return Replay(self._watch, leaves, made, tape.attentions[segment.attentions :])

    def _call_again(self, call: LoggedCall, values: dict[int, Tensor]) -> None:
        given = iter([values[one] if _is_number(one) else one for one in call.sources])
        args, kwargs = replace_tensors((call.args, call.kwargs), lambda _: next(given))
        result = tensors_in(self._watch.call_again(call.function, args, kwargs))
        for number, tensor in zip(call.results, result, strict=True):
            if number is not None:
                values.setdefault(number, tensor)


def _is_number(source: int | Tensor | None) -> TypeGuard[int]:
    return isinstance(source, int)


@dataclass(eq=False)
class Replay:
    """A segment whose calls have been made again.

    Args:
        watch: what has made them.
        leaves: the tensors that it takes over, by their number; its graph begins there.
        made: those that others take over of it.
        steps: its attentions.
    """

    watch: Interception
    leaves: dict[int, Tensor]
    made: dict[int, Tensor]
    steps: list[AttentionStep]

    def backward(
        self, phase: Phase, pending: Pending, wanted: Sequence[Tensor], *, goes_on: bool = True
    ) -> list[Tensor]:
        """Run one phase through the segment.

        Args:
            phase: which.
            pending: what has arrived at the tensors that are made here, which is taken out of it,
                and where what arrives at those that are taken over is put into.
            wanted: tensors of the segment.
            goes_on: whether what arrives at those that are taken over is needed.

        Returns:
            What arrives at each of ``wanted``.
        """
        starts = [number for number in self.made if number in pending]
        seeds = [pending.pop(number) for number in starts]
        if not starts:
            return [torch.zeros_like(one) for one in wanted]
        numbers = list(self.leaves) if goes_on else []
        leaves = [self.leaves[number] for number in numbers]
        outputs = [self.made[number] for number in starts]
        if not wanted and not leaves:
            return []
        found = self.watch.tape.backward(phase, outputs, seeds, [*wanted, *leaves])
        for number, value in zip(numbers, found[len(wanted) :], strict=True):
            pending[number] = pending[number] + value if number in pending else value
        return found[: len(wanted)]


_HOLE = torch.empty(0)
"""Stands for a tensor among the arguments of a logged call."""
