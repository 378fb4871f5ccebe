"""Linear layers treat rows alike: rows that carry no relevance need not be computed.

A model that reads its answer from one token gives relevance to that token alone until the last
attention, and padding gets none at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from captum_transformer_lrp.rules.base import Rule
from captum_transformer_lrp.rules.call import Call

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

    Which rows these are is asked where asking is cheap: on a GPU it would wait for the device, and
    of several targets at once (``vmap``) it has no one answer.
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
    result = x.new_zeros(x.shape)
    result.view(-1, x.shape[-1])[rows] = method(some, values.reshape(-1, values.shape[-1])[rows])
    return result


def _few_rows(call: Call, values: Tensor) -> Tensor | None:
    """The indices of the rows that are not zero, if they are few and that may be asked."""
    if not call.kernel.by_row or call.keeps_books or values.device.type != "cpu":
        return None
    if values.dim() < 2 or torch._C._functorch.is_batchedtensor(values):
        return None
    table = values.reshape(-1, values.shape[-1])
    largest = table.abs().amax(1)
    rows = largest.nonzero().flatten()
    return rows if 2 * len(rows) <= len(largest) else None
