"""Keeping the books: which constants and parameters the relevance ends in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.tape import Tape
from captum_transformer_lrp.engine.graph.tensor_table import HeldTable


def report_constants(
    tape: Tape,
    result: Tensor,
    values: Sequence[Tensor],
    again: Callable[[HeldTable[Tensor]], Tensor],
    title: Callable[[Tensor], str],
) -> None:
    """Report the relevance of constants and parameters that are joined to activations.

    Args:
        tape: where to.
        result: the joined tensor.
        values: what it was joined from.
        again: joins other tensors in the same way, given for each of ``values``.
        title: what a constant's share is reported under.
    """
    floating = [value for value in values if value.is_floating_point()]
    constants = [value for value in floating if tape.mark(value) is None]
    if not constants:
        return
    names = HeldTable((value, title(value)) for value in constants)
    mark = tape.mark(result)
    assert mark is not None
    examples = mark.examples
    count = examples.count
    per_example = [
        value
        for value in constants
        if count == 1 or (value.dim() == result.dim() and value.shape[0] == count)
    ]
    shared = [value for value in constants if not any(value is one for one in per_example)]

    def report(relevance: Tensor) -> None:
        books = tape.phase.books
        if books is None:
            return
        with torch.enable_grad():
            leaves = HeldTable((value, value.detach()) for value in values)
            for value in floating:
                leaves[value].requires_grad_()
            wanted = [leaves[value] for value in floating]
            found = torch.autograd.grad(again(leaves), wanted, relevance, allow_unused=True)
        arrived = HeldTable(
            (value, torch.zeros_like(value) if one is None else one)
            for value, one in zip(floating, found, strict=True)
        )
        for value in per_example:
            amount = arrived[value]
            total = amount.flatten(1).sum(1) if count > 1 else amount.sum().reshape(1)
            books.absorb(names[value], total)
        if shared:  # what nobody else has got
            rest = examples.sum(relevance)
            for value in floating:
                of_value = tape.mark(value)
                if of_value is not None:
                    rest = rest - of_value.examples.sum(arrived[value])
            for value in per_example:
                rest = rest - arrived[value].flatten(1).sum(1)
            books.absorb(", ".join(dict.fromkeys(names[value] for value in shared)), rest)

    result.register_hook(report)


def report_filling(tape: Tape, result: Tensor, inside: Tensor, name: str) -> None:
    """Report the relevance of what lies outside of a mask, as padding does."""
    mark = tape.mark(result)
    if mark is None or not mark.examples.known or not result.requires_grad:
        return
    examples = mark.examples

    def report(relevance: Tensor) -> None:
        books = tape.phase.books
        if books is not None:
            outside = relevance.masked_fill(inside, 0)
            if bool(outside.any()):
                books.absorb(name, examples.sum(outside))

    result.register_hook(report)
