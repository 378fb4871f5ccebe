"""Whether a map that is constant says anything: what the target depends on, and by which way.

A seed of NaN marks every place that a backward phase can come to, whatever the values on the way:
NaN times 0 is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.attr.targets import seed
from captum_transformer_lrp.engine.graph.op import Phase
from captum_transformer_lrp.engine.phases import Gradient, Rollout
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.rules.examples import Examples

Again = Callable[[Sequence[type[Phase]]], AbstractContextManager[Recording]]
"""Records the same forward pass again, for other phases."""


def check_reach(
    again: Again,
    explained: Sequence[tuple[Any, Sequence[Tensor]]],
    used: Sequence[int] | None,
    inputs: int,
) -> None:
    """Raise for a map that is a constant because nothing can arrive.

    Where a map is a constant, this costs two forward passes for all targets together, and a few
    backward passes for each such target; otherwise nothing.

    Args:
        again: records the forward pass again.
        explained: targets, each with its attributions, (N, …) each.
        used: the attentions whose mass the map is made of; None for maps of relevance, where an
            input needs no attention.
        inputs: how many inputs there are; the maps are theirs if there are as many.

    Raises:
        ExplanationError: if the target of an example depends on no input.  If an input that it
            depends on makes no tokens that an attention in use could move.  If the map is zero
            because no gradient arrives at any attention map.
    """
    suspects = []
    for target, maps in explained:
        is_zero, constant = _constants(maps, used, inputs)
        if bool((is_zero if used is None else constant).any()):
            suspects.append((target, is_zero, constant))
    if not suspects:
        return
    with again([Gradient]) as recording:
        by_gradient = [_arrives(recording, one, recording.gradient) for one, *_ in suspects]
        derived = [_derived(recording, one, used or ()) for one, *_ in suspects]
    with again([Rollout]) as recording:
        for suspect, has_gradient, has_derivative in zip(
            suspects, by_gradient, derived, strict=True
        ):
            depends = has_gradient | _arrives(recording, suspect[0], _rollout(recording))
            moved = depends
            if used is not None:
                of_used = _rollout(recording, used, only_moved=True)
                moved = _arrives(recording, suspect[0], of_used)
            goes_round = has_gradient.any(0) & ~has_derivative if used is not None else None
            _raise(*suspect, depends, moved, goes_round)


def _constants(
    maps: Sequence[Tensor], used: Sequence[int] | None, inputs: int
) -> tuple[Tensor, Tensor]:
    """Whether all of an example is zero, (N,), and which of its maps are constants, (inputs, N)."""
    of_each = torch.stack([_is_constant(one, zero=True) for one in maps])
    is_zero = of_each.all(0)
    if len(maps) != inputs:
        return is_zero, is_zero.expand(inputs, -1)
    constant = of_each if used is None else torch.stack([_is_constant(one) for one in maps])
    return is_zero, constant


def _raise(
    target: Any,
    is_zero: Tensor,
    constant: Tensor,
    depends: Tensor,
    moved: Tensor,
    goes_round: Tensor | None,
) -> None:
    """Raise for the first fault.

    Attributions of an example are all zero (N,) or ``constant`` for some inputs (inputs, N).  The
    target depends on inputs, or an attention in use has moved it from there, both (inputs, N).
    ``goes_round`` is for gradients that come to inputs but to no attention map in use, (N,).
    """
    for example in (is_zero & ~depends.any(0)).nonzero().flatten().tolist():
        raise ExplanationError(
            f"{_named(target, example)} of example {example} depends on no input, so that there is "
            "nothing to attribute: expected a value that is computed from the inputs by operations "
            "that have a derivative, found an index, a constant or something detached; explain "
            "another target"
        )
    for place, example in (constant & depends & ~moved).nonzero().tolist():
        raise ExplanationError(
            f"input {place} makes no tokens that an attention of this explanation moves to "
            f"{_named(target, example)}, so that its attributions would be a constant, whatever "
            "its values: pass it in additional_forward_args, or use TransformerLRP, which follows "
            "every way"
        )
    if goes_round is not None and bool((is_zero & goes_round).any()):
        raise ExplanationError(
            "no gradient of the target arrives at any attention map, so that the attributions "
            "would be zero everywhere: the model detaches its attention maps, or computes them in "
            "a custom autograd function whose derivative goes round them; AttentionRollout and "
            "TransformerLRP need no gradient there"
        )


def _named(target: Any, example: int) -> str:
    if target is None:
        return "the output"
    if isinstance(target, Tensor):
        target = target.tolist()
    return f"target {target[example] if isinstance(target, list) and target[1:] else target!r}"


def _is_constant(values: Tensor, *, zero: bool = False) -> Tensor:
    """Whether all values of each example are the same, or zero, (N,)."""
    rows = values.flatten(1)
    return (rows == (0 if zero else rows[:, :1])).all(1)


def _rollout(
    recording: Recording, used: Sequence[int] | None = None, *, only_moved: bool = False
) -> Rollout:
    """Mass by the attention maps as they are, of all attentions or of those that are used."""
    steps = recording.tape.attentions
    taken = [step for step in steps if used is None or step.index in used]
    return Rollout({step.index: step.attention.detach() for step in taken}, only_moved=only_moved)


def _arrives(recording: Recording, target: Any, phase: Phase) -> Tensor:
    """For each input and example whether a phase comes to it, (inputs, N)."""
    start = _seed(recording, target)
    try:
        arrived = recording.run(phase, start, recording.all_leaves)
    except ExplanationError:  # it comes as far as something that would refuse it
        return torch.ones(len(recording.shapes), len(start), dtype=torch.bool, device=start.device)
    found = [one.flatten(1).isnan().any(1) for one in recording.at_inputs(arrived)]
    return torch.stack(found)


def _derived(recording: Recording, target: Any, used: Sequence[int]) -> Tensor:
    """For each example whether a gradient arrives at any attention map in use, (N,)."""
    steps = [step for step in recording.tape.attentions if step.index in used]
    start = _seed(recording, target)
    arrived = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    if steps:
        wanted = [step.attention for step in steps]
        found = recording.run(recording.gradient, start, wanted)
        for one, step in zip(found, steps, strict=True):
            arrived |= _of_examples(one, step.mark.examples)
    return arrived


def _seed(recording: Recording, target: Any) -> Tensor:
    """NaN at each example's target, and 0 elsewhere."""
    one_hot = seed(recording.output, target)
    return one_hot.masked_fill(one_hot != 0, torch.nan)


def _of_examples(arrived: Tensor, examples: Examples) -> Tensor:
    """For each example whether anything has arrived at a tensor that holds all of them, (N,)."""
    marked = arrived.isnan().to(arrived.dtype)
    if not examples.known:
        return marked.any().expand(examples.count)
    return examples.sum(marked) > 0
