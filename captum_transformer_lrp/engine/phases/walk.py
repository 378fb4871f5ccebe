"""Walking backward over the tape: one phase, from where to where, and in how many passes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress
from typing import Any, Final

import torch
from torch import Tensor, nn

from captum_transformer_lrp.engine.graph.ancestors import made_from
from captum_transformer_lrp.engine.graph.op import Keeps, Op, Phase
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.graph.switch import TapeSwitch
from captum_transformer_lrp.engine.graph.tape import Tape
from captum_transformer_lrp.engine.phases.rollout import Rollout
from captum_transformer_lrp.errors import interruption
from captum_transformer_lrp.rules.kernels import LinearKernel

FEWEST_TOGETHER: Final = 4
"""So many seeds go down in one pass, however large the model is."""

MOST_ELEMENTS: Final = 1 << 21
"""More than the fewest go down in one pass while what is wanted of them has fewer elements."""


def at_entries(
    tape: Tape, output: Tensor, positions: Sequence[tuple[int, ...]], classes: Sequence[int]
) -> Tensor | None:
    """The part of a linear layer's output that was made at some positions, of some classes.

    What goes backward from there touches nothing else of the output, which for a language model
    has a row of its whole vocabulary for each token.

    Args:
        tape: the calls.
        output: (N, …, C), on the tape.
        positions: indices of the axes between the first and the last.
        classes: indices of the last axis.

    Returns:
        (N, positions, classes), on the tape, or all C of them where the weight is no plain matrix;
        None unless ``output`` is a linear layer's, examples first, whose inputs were kept.
    """
    node: Any = output.grad_fn
    op = getattr(node, "op", None)
    if not isinstance(op, Op) or tape.keeps_books:
        return None
    examples = op.mark.examples
    in_front = examples.count == 1 or (examples.axis == 0 and examples.index is None)
    is_whole = output.shape[0] == examples.count
    if not (op.kernel.by_row and node.keeps is Keeps.VALUES and in_front and is_whole):
        return None
    value, x, *others = node.saved_tensors
    if value.shape != output.shape:
        return None
    rows = (slice(None), *torch.tensor(positions, device=x.device).unbind(1))
    value = value[rows]
    if isinstance(op.kernel, LinearKernel) and type(others[0]) in (Tensor, nn.Parameter):
        chosen = torch.tensor(classes, device=x.device)
        value = value[..., chosen]
        others = [one.detach()[chosen] for one in others]  # of each class a row and a bias
    with torch.enable_grad():
        part: Tensor = TapeSwitch.apply(tape, op, Keeps.VALUES, None, None, value, x[rows], *others)
    tape.marks[part] = op.mark
    return part


def keep_what_makes(tape: Tape, output: Tensor) -> None:
    """Forget attentions, skip connections and calls that are no part of what makes an output.

    Those of an auxiliary head or a loss would be counted among the model's layers.
    """
    mark = tape.mark(output)
    reached = 0 if mark is None else mark.node.attentions
    tape.attentions = [step for step in tape.attentions if step.event & reached]
    for place, step in enumerate(tape.attentions):
        step.index = place
    kept = sum(step.event for step in tape.attentions)
    tape.streams = [one for one in tape.streams if one.attentions & kept]
    if tape.residuals:
        is_kept = made_from(output, [one.output for one in tape.residuals])
        tape.residuals = list(compress(tape.residuals, is_kept))


def carried(
    tape: Tape, phase: Phase, origin: Tensor, seed: Tensor, wanted: Sequence[Tensor]
) -> list[Tensor]:
    """Carry something backward from a tensor, as :meth:`Tape.backward` does, in all its passes.

    A rollout of what attentions move alone has two.  In the first attentions keep what arrives.
    The second starts from no mass at all: the attentions send on what they have kept.  So the row
    of C − I is computed without the difference.
    """
    if isinstance(phase, Rollout) and phase.only_moved:
        phase.holds_back = True
        tape.backward(phase, origin, seed, wanted)
        phase.holds_back = False
        seed = torch.zeros_like(seed)
    return tape.backward(phase, origin, seed, wanted)


def backward_to_each(
    tape: Tape,
    phase: Phase,
    output: Tensor,
    seed: Tensor,
    steps: Sequence[AttentionStep],
    arrived: Callable[[int, Tensor], None],
) -> None:
    """Run one phase down to attention maps, and hand over what arrives as soon as it does.

    :meth:`Tape.backward` keeps what arrives at every map until the pass has ended; of this, only
    what ``arrived(place, value)`` keeps is in memory.  It is called once for each step, by its
    place in ``steps``, with zeros where nothing arrives.
    """
    maps = [step.attention for step in steps]
    missing = set(range(len(steps)))

    def note(place: int, value: Tensor | None) -> None:
        if value is not None:  # as it is where a call in between has no derivative
            missing.discard(place)
            arrived(place, value)

    # A pass that goes down to the lowest maps comes by all that are computed from them.
    lowest = [
        map
        for map, step in zip(maps, steps, strict=True)
        if not any(step.mark.node.attentions & below.event for below in steps)
    ]
    hooks = [map.register_hook(partial(note, place)) for place, map in enumerate(maps)]
    try:
        with tape.walking(phase):
            torch.autograd.grad(output, lowest, seed, retain_graph=True, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    for place in missing:
        arrived(place, torch.zeros_like(maps[place]))


def backward_together(
    tape: Tape, phase: Phase, output: Tensor, seeds: Sequence[Tensor], wanted: Sequence[Tensor]
) -> list[list[Tensor]]:
    """Run one phase for several seeds at once; for each what :meth:`Tape.backward` returns."""

    def run(seed: Tensor) -> list[Tensor]:
        return tape.backward(phase, output, seed, wanted)

    if len(seeds) > 1:
        outside = sys.exc_info()[1]
        size = sum(one.numel() for one in wanted)
        together = max(FEWEST_TOGETHER, MOST_ELEMENTS // max(size, 1))
        try:
            found = torch.func.vmap(run, chunk_size=together)(torch.stack(list(seeds)))
            return [[one[place] for one in found] for place in range(len(seeds))]
        except RuntimeError as error:
            if interruption(error, outside):
                raise
            # an operation or a rule of somebody's that vmap cannot do: one by one
    return [run(seed) for seed in seeds]
