"""The relevance phase: each call's rule divides the relevance among its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.step import Books, Keeps, Phase, Saved, Step


class Relevance(Phase):
    """Relevance, divided by rules.

    Args:
        books: where relevance is entered that ends on the way; None if nobody asks.
        explicit_zeros: whether inputs without relevance are sent zeros, as Captum's hooks on
            modules expect, rather than nothing at all.
    """

    def __init__(self, books: Books | None = None, *, explicit_zeros: bool = False) -> None:
        self.books = books
        self._explicit_zeros = explicit_zeros

    @classmethod
    def needs(cls, step: Step) -> Keeps:
        """See :class:`Phase`."""
        return Keeps.VALUES if step.rule.reads_values else Keeps.SHAPES

    def pull(self, step: Step, saved: Saved, arrived: Tensor) -> Sequence[Tensor | None]:
        """See :class:`Phase`."""

        def absorb(amount: Callable[[], Tensor]) -> None:
            if self.books is not None:
                self.books.absorb(step.name, amount())

        call = step.call(saved, absorb=absorb, keeps_books=self.books is not None)
        found = step.rule.relevance(call, arrived)
        parts = (found,) if isinstance(found, Tensor) else tuple(found)
        if len(parts) != step.inputs:
            raise ValueError(
                f"{step.rule!r} returned {len(parts)} relevances for the {step.inputs} inputs "
                f"of {getattr(step.function, '__name__', step.function)}"
            )
        if self._explicit_zeros:
            return tuple(
                torch.zeros_like(value) if part is None else part
                for part, value in zip(parts, call.inputs, strict=True)
            )
        return parts
