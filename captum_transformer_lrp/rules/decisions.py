"""What Python decides by the values of tensors, where a run is recorded to be made again.

A recorded run has no branches.  Each decision of the run that was recorded is noted with a tensor
that says, in any later run, whether the decision would be the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar

from torch import Tensor

Value = TypeVar("Value")


class Decision(NamedTuple):
    """One decision: a boolean tensor that says whether it holds, and where it was made."""

    holds: Tensor
    where: str


class Decisions:
    """The decisions of a run that is being recorded.

    Args:
        aside: calls a function whose operations are not recorded.
        chooses_rows: whether rows without relevance are left out, as in the run at hand.
    """

    def __init__(
        self, aside: Callable[[Callable[[], Any]], Any], *, chooses_rows: bool = True
    ) -> None:
        self._aside = aside
        self.chooses_rows = chooses_rows
        self.made: list[Decision] = []

    def aside(self, function: Callable[[], Value]) -> Value:
        """What a function returns; neither its operations nor its decisions are noted."""
        found: Value = self._aside(function)
        return found

    def note(self, holds: Tensor, where: str) -> None:
        """Note a decision that holds as long as all of ``holds`` is true."""
        self.made.append(Decision(holds.all(), where))


ROWS: Final = "the choice of rows with relevance"
"""Where a decision is made that a run can do without."""

_state = threading.local()


def decisions() -> Decisions | None:
    """The decisions of this thread's run, if it is being recorded."""
    return getattr(_state, "decisions", None)


@contextmanager
def noting(made: Decisions) -> Iterator[None]:
    """A block whose decisions are noted."""
    outer = decisions()
    _state.decisions = made
    try:
        yield
    finally:
        _state.decisions = outer
