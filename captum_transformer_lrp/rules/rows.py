"""Linear layers treat rows alike: rows that carry no relevance need not be computed.

A model that reads its answer from one token gives relevance to that token alone until the last
attention, and padding gets none at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, maybe_get_bdim

from captum_transformer_lrp.rules.base import Rule
from captum_transformer_lrp.rules.call import Call
from captum_transformer_lrp.rules.decisions import ROWS, Decisions, decisions

AnyRule = TypeVar("AnyRule", bound=Rule)
OfOneInput = Callable[[AnyRule, Call, Tensor], Tensor]


def only_rows_with_relevance(method: OfOneInput[AnyRule]) -> OfOneInput[AnyRule]:
    """Decorator for a rule's ``relevance``, if rows without relevance pass none on."""

    def relevance(self: AnyRule, call: Call, relevance: Tensor) -> Tensor:
        return on_rows(call, relevance, lambda some, rows: method(self, some, rows))

    relevance.__doc__ = method.__doc__
    return relevance


def on_rows(call: Call, values: Tensor, method: Callable[[Call, Tensor], Tensor]) -> Tensor:
    """``method(call, values)``, computed for the rows of ``values`` that are not zero.

    Which rows these are is asked where asking is cheap: on a GPU it would wait for the device.
    """
    rows = _few_rows(call, values)
    if rows is None:
        return method(call, values)
    (x,) = call.inputs
    some = replace(
        call,
        inputs=(x.reshape(-1, x.shape[-1])[rows],),
        output=call.output.reshape(-1, call.output.shape[-1])[rows],
    )
    found = method(some, values.reshape(-1, values.shape[-1])[rows])
    nothing = x.new_zeros(x.shape).reshape(-1, x.shape[-1])
    return nothing.index_copy(0, rows, found).reshape(x.shape)


def _are_most(present: Tensor) -> bool:
    return 2 * int(present.count_nonzero()) > present.numel()


def _few_rows(call: Call, values: Tensor) -> Tensor | None:
    """The indices of the rows that are not zero, if they are few and that may be asked."""
    if not call.kernel.by_row or call.keeps_books or values.device.type != "cpu":
        return None
    if values.dim() < 2:
        return None
    if (made := decisions()) is not None:
        return _same_rows(made, values, call.examples.count)
    if not is_batchedtensor(values) and _are_most(values[..., 0] != 0):
        return None
    largest = values.abs().amax(-1).flatten()
    if is_batchedtensor(largest):  # of several targets at once
        largest = get_unwrapped(largest).movedim(maybe_get_bdim(largest), 0).amax(0)
    rows = largest.nonzero().flatten()
    return rows if 2 * len(rows) <= len(largest) else None


def _same_rows(made: Decisions, values: Tensor, count: int) -> Tensor | None:
    """The same in a run that is recorded: the rows that answers are read from, if no others."""
    if not made.chooses_rows or is_batchedtensor(values):
        return None
    present: Tensor = made.aside(lambda: values.detach().abs().amax(-1).flatten() > 0)
    if not 0 < 2 * int(made.aside(present.count_nonzero)) <= min(2 * count, len(present)):
        return None
    nothing = values.detach().reshape(-1, values.shape[-1]) == 0
    made.note(nothing[made.aside(lambda: present.logical_not().nonzero().flatten())], ROWS)
    return made.aside(lambda: present.nonzero().flatten())
