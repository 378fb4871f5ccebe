"""What Python decides by the values of tensors, where a run is recorded to be made again.

A recorded run has no branches.  Each decision of the run that was recorded is noted with a tensor
that says, in any later run, whether the decision would be the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

Value = TypeVar("Value")


class Decision(NamedTuple):
    """One decision: a boolean tensor that says whether it holds, and where it was made."""

    holds: Tensor
    where: str


class Decisions(TorchDispatchMode, ABC):
    """A block that is recorded, and its decisions.

    Args:
        chooses_rows: whether rows without relevance are left out, as in the run at hand.
    """

    def __init__(self, *, chooses_rows: bool = True) -> None:
        super().__init__()
        self.chooses_rows = chooses_rows
        self.made: list[Decision] = []
        self.records = True

    def aside(self, function: Callable[[], Value]) -> Value:
        """What a function returns, whose operations are not recorded."""
        outer, self.records = self.records, False
        try:
            return function()
        finally:
            self.records = outer

    @abstractmethod
    def stand_for(self, copy: Tensor, original: Tensor) -> None:
        """A copy that was made aside has the values of its original."""

    def note(self, holds: Tensor, where: str) -> None:
        """Note a decision that holds as long as all of ``holds`` is true."""
        self.made.append(Decision(holds.all(), where))


ROWS: Final = "the choice of rows with relevance"
"""Where a decision is made that a run can do without."""


def decisions() -> Decisions | None:
    """The decisions of the run that is being recorded, if one is.

    PyTorch hands the modes of a thread on to the threads of a backward pass.
    """
    for mode in reversed(_get_current_dispatch_mode_stack()):
        if isinstance(mode, Decisions):
            return mode
    return None
