"""The passes of a forward pass: chains of attentions that end in one of their own.

Two inputs that go through one model make two passes, as do two towers and sentences in a loop.
Each has its own last attention and its own tokens.  An encoder with its decoder is one pass: the
decoder's last attention is computed from all others.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from captum_transformer_lrp.engine.graph.ancestors import is_made_from_alone
from captum_transformer_lrp.engine.graph.seen import AttentionStep, Stream
from captum_transformer_lrp.engine.graph.tape import Tape
from captum_transformer_lrp.errors import ExplanationError


def passes(tape: Tape, output: Tensor) -> list[list[AttentionStep]]:
    """The attentions that an output depends on, for each pass in the order of the calls."""
    mark = tape.mark(output)
    reached = 0 if mark is None else mark.node.attentions
    steps = [step for step in tape.attentions if step.event & reached]
    inner = 0
    for step in steps:
        inner |= step.upstream
    ends: list[list[AttentionStep]] = []
    for step in steps:
        if step.event & inner:
            continue
        beside = next((end for end in ends if _share_tokens(tape, end[-1], step)), None)
        if beside is None:
            ends.append([step])
        else:
            beside.append(step)
    found = []
    for end in ends:
        members = 0
        for step in end:
            members |= step.event | step.upstream
        found.append([step for step in steps if step.event & members])
    return found


def only_pass(tape: Tape, output: Tensor, what: str) -> list[AttentionStep]:
    """The attentions of the one pass that there is.

    Raises:
        ExplanationError: if there are several; ``what`` says what has no meaning then.
    """
    found = passes(tape, output)
    if len(found) > 1:
        raise ExplanationError(
            f"the output is read from {len(found)} passes, which end in {names_of(found)}, each "
            f"with tokens of its own: {what}"
        )
    return found[0] if found else []


def names_of(of_passes: Sequence[Sequence[AttentionStep]]) -> str:
    """The last attentions of passes, for messages."""
    return " and ".join(f"{steps[-1].name} (attention {steps[-1].index})" for steps in of_passes)


def blocks(tape: Tape, steps: Sequence[AttentionStep]) -> list[list[AttentionStep]]:
    """The attentions of one sequence of tokens, those that lie beside each other together.

    Raises:
        ExplanationError: unless each is computed from all before it, but for those beside it.
    """
    found: list[list[AttentionStep]] = []
    for step in steps:
        last = found[-1] if found else []
        follows = [bool(one.event & step.upstream) for one in last]
        if all(follows) and _is_within(tape, step):
            found.append([step])
        elif last and not any(follows) and all(_share_tokens(tape, one, step) for one in last):
            last.append(step)
        else:
            of_what = f"of {last[-1].name} before it" if last else "that skip it"
            raise ExplanationError(
                f"{step.name} does not attend within the tokens {of_what} alone: the attentions "
                "are not between the tokens of one sequence, so there is no one matrix over all "
                'tokens: use granularity="input" or "token" without row_normalize'
            )
    return found


def beside(tape: Tape, steps: Sequence[AttentionStep], step: AttentionStep) -> list[AttentionStep]:
    """An attention and those that one skip connection leads around together with it."""
    return [
        one
        for one in steps
        if one is step
        or (
            not one.event & step.upstream
            and not step.event & one.upstream
            and any(s.attentions & one.event and s.attentions & step.event for s in tape.streams)
        )
    ]


def _share_tokens(tape: Tape, one: AttentionStep, later: AttentionStep) -> bool:
    """Whether two attentions beside each other are of one sequence of tokens."""
    for stream in _around(tape, later):
        mark = tape.mark(stream.tensor)
        if stream.attentions & one.event or (mark is not None and mark.node.attentions & one.event):
            return True
    return False


def _is_within(tape: Tape, step: AttentionStep) -> bool:
    """Whether an attention reads nothing but what skips it, if anything does."""
    around = _around(tape, step)
    return not around or any(is_made_from_alone(step.attention, one.tensor) for one in around)


def _around(tape: Tape, step: AttentionStep) -> list[Stream]:
    return [stream for stream in tape.streams if stream.attentions & step.event]
