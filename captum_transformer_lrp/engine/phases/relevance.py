"""The relevance phase: each call's rule divides the relevance among its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.op import Books, Keeps, Op, Phase, Saved


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
    def needs(cls, op: Op) -> Keeps:
        """See :class:`Phase`."""
        return Keeps.VALUES if op.rule.reads_values else Keeps.SHAPES

    def pull(self, op: Op, saved: Saved, arrived: Tensor) -> Sequence[Tensor | None]:
        """See :class:`Phase`."""

        def absorb(amount: Callable[[], Tensor]) -> None:
            if self.books is not None:
                self.books.absorb(op.name, amount())

        call = op.call(saved, absorb=absorb, keeps_books=self.books is not None)
        found = op.rule.relevance(call, arrived)
        parts = (found,) if isinstance(found, Tensor) else tuple(found)
        if len(parts) != op.inputs:
            raise ValueError(
                f"{op.rule!r} returned {len(parts)} relevances for the {op.inputs} inputs "
                f"of {getattr(op.function, '__name__', op.function)}"
            )
        if self._explicit_zeros:
            return tuple(
                torch.zeros_like(value) if part is None else part
                for part, value in zip(parts, call.inputs, strict=True)
            )
        return parts
