"""The calls of one forward pass, kept so that some of them can be made again on other values."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import (
    Args,
    Function,
    Kwargs,
    replace_tensors,
    tensors_in,
)
from captum_transformer_lrp.engine.graph.structure import UPDATES
from captum_transformer_lrp.engine.graph.tensor_table import TensorTable
from captum_transformer_lrp.engine.graph.values import stand_in_for
from captum_transformer_lrp.engine.watch.context import Context
from captum_transformer_lrp.errors import ExplanationError


class LoggedCall(NamedTuple):
    """One call of the model.

    Attributes:
        function: what was called.
        args: its arguments, with anything in the place of tensors.
        kwargs: likewise.
        sources: for each tensor among the arguments its number, or itself if it is a constant.
        results: for each tensor that was returned its number; None for what is no new activation.
    """

    function: Function
    args: Args
    kwargs: Kwargs
    sources: list[int | Tensor]
    results: list[int | None]

    @property
    def numbers(self) -> list[int]:
        """Those of the activations that it was made on."""
        return [one for one in self.sources if isinstance(one, int)]


class Cut(NamedTuple):
    """A place in the log: how many of each came before it."""

    calls: int
    values: int
    attentions: int
    streams: int


class Log:
    """The calls of one forward pass; what they compute is numbered in the order of the calls.

    Args:
        context: makes the calls, now and again.
        inputs: the model's.
        has_cuts: whether it is cut behind each skip connection around an attention, and only what
            crosses a cut is held, in the place of all that calls were made on.

    Attributes:
        calls: the calls.
        held: values, by their number.
        outside: the numbers of those that no logged call has made: inputs, looked up embeddings.
        cuts: where segments begin.
    """

    def __init__(self, context: Context, inputs: Sequence[Tensor], *, has_cuts: bool) -> None:
        self._context = context
        self._numbers: TensorTable[int] = TensorTable()
        self._count = self._skips = 0
        self.has_cuts = has_cuts
        self.calls: list[LoggedCall] = []
        self.held: dict[int, Tensor] = {}
        self.outside: list[int] = []
        self.cuts = [Cut(0, 0, 0, 0)]
        self._give(inputs)

    def number(self, tensor: Tensor) -> int:
        """The number of an activation.

        Raises:
            ExplanationError: if no call is known that has made it, and all must be known.
        """
        if self._numbers.get(tensor) is None:
            if self.has_cuts:
                raise ExplanationError(
                    f"{self._context.names.caller()} uses a tensor that is not made by a call that "
                    "can be made again, such as one that was written into or the result of a "
                    "custom autograd function: explain the model without checkpointing"
                )
            self._give([tensor])
        return self._numbers[tensor]

    def hold(self, tensor: Tensor) -> int:
        """Keep an activation; returns its number."""
        number = self.number(tensor)
        self.held[number] = tensor
        return number

    def add(self, function: Function, args: Args, kwargs: Kwargs, returned: Any) -> None:
        """Note a call that has been made."""
        mark = self._context.mark
        given = tensors_in((args, kwargs))
        result = self._written(function, args, returned)
        if not any(mark(one) for one in given):
            self._give(tensors_in(result))
            return
        if not any(mark(one) for one in tensors_in(result)):
            return
        begin = self.cuts[-1].values if self.has_cuts else self._count
        sources: list[int | Tensor] = []
        for one in given:
            source = one if mark(one) is None else self.number(one)
            if isinstance(source, int) and source < begin:
                self.held[source] = one
            sources.append(source)
        results = [self._new(one) for one in tensors_in(result)]
        args, kwargs = replace_tensors((args, kwargs), lambda _: _HOLE)
        self.calls.append(LoggedCall(function, args, kwargs, sources, results))
        if self.has_cuts:
            self._cut()

    def _cut(self) -> None:
        """Begin another segment, if an attention and a skip connection are behind."""
        tape, before = self._context.tape, self.cuts[-1].attentions
        for step in tape.attentions[before:]:
            step.attention = stand_in_for(step.attention)  # nothing else keeps the map
        if tape.skips > self._skips and len(tape.attentions) > before:
            cut = Cut(len(self.calls), self._count, len(tape.attentions), len(tape.streams))
            self.cuts.append(cut)
        self._skips = tape.skips

    def _give(self, tensors: Sequence[Tensor]) -> None:
        """Note activations that come from outside."""
        for one in tensors:
            number = self._new(one)
            if number is not None:
                self.outside.append(number)
                self.held[number] = one

    def _new(self, tensor: Tensor) -> int | None:
        """The number of an activation that has had none; None for any other tensor."""
        if self._context.mark(tensor) is None or self._numbers.get(tensor) is not None:
            return None
        self._count += 1
        self._numbers[tensor] = self._count - 1
        return self._count - 1

    def making(self, number: int) -> list[LoggedCall]:
        """The calls that an activation is made by."""
        needed, found = {number}, []
        for call in reversed(self.calls):
            if not needed.isdisjoint(call.results):
                needed.update(call.numbers)
                found.append(call)
        return found[::-1]

    def play(
        self, calls: Sequence[LoggedCall], given: Mapping[int, Tensor], wanted: Container[int]
    ) -> dict[int, Tensor]:
        """Make calls again: those that depend on other values than before.

        Args:
            calls: in the order of the forward pass.
            given: these values, by their number.
            wanted: numbers of what is to be found.

        Returns:
            The values of ``wanted`` that depend on ``given``.
        """
        self._context.writes.clear()  # what was written in place is of no concern
        last = {number: place for place, call in enumerate(calls) for number in call.numbers}
        values = dict(given)
        for place, call in enumerate(calls):
            numbers = call.numbers
            if values.keys().isdisjoint(numbers):
                continue
            self._again(call, values)
            for one in (*numbers, *call.results):
                if one is not None and last.get(one, -1) <= place and one not in wanted:
                    values.pop(one, None)
        return {number: value for number, value in values.items() if number in wanted}

    def _again(self, call: LoggedCall, values: dict[int, Tensor]) -> None:
        own = iter(call.sources)

        def now(_: Tensor) -> Tensor:
            source = next(own)
            if not isinstance(source, int):
                return source
            return values[source] if source in values else self.held[source]

        args, kwargs = replace_tensors((call.args, call.kwargs), now)
        returned = self._context.call(call.function, args, kwargs)
        result = tensors_in(self._written(call.function, args, returned))
        for number, tensor in zip(call.results, result, strict=True):
            if number is not None:
                values[number] = tensor

    def _written(self, function: Function, args: Args, returned: Any) -> Any:
        """What a call has returned, or for one that writes in place what it has written."""
        return self._context.resolve(args[0]) if function in UPDATES and args else returned


_HOLE = torch.empty(0)
"""Stands for a tensor among the arguments of a logged call."""
