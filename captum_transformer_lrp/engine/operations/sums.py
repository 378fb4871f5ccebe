"""Addition and subtraction: skip connections, position embeddings, masks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer_lrp.engine.graph.ancestors import before_copies
from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs
from captum_transformer_lrp.engine.graph.flow import Flow
from captum_transformer_lrp.engine.graph.marks import (
    Mark,
    attends_beyond,
    is_function_of_same,
    is_statistic_of,
    merged,
)
from captum_transformer_lrp.engine.graph.seen import Residual, Stream
from captum_transformer_lrp.engine.operations.scaling import (
    detached,
    function_of_same,
    scaled_by_constant,
    two_operands,
)
from captum_transformer_lrp.engine.watch.apart import common_examples, require_known
from captum_transformer_lrp.engine.watch.context import Context, Handlers
from captum_transformer_lrp.engine.watch.joins import (
    added_before_moving,
    begins_a_sum,
    sum_of_slices,
)
from captum_transformer_lrp.rules import Rule, ScaleRule
from captum_transformer_lrp.rules.binary import SideBySideRule, SkipAddRule
from captum_transformer_lrp.rules.examples import broadcast_examples
from captum_transformer_lrp.rules.kernels import AutogradKernel
from captum_transformer_lrp.rules.spellings import spelled

HANDLERS = Handlers()

_BIAS = ScaleRule()
"""The bias of a linear layer spelled out takes nothing, as that of ``F.linear`` (eq. 5)."""

_JOIN = SideBySideRule()
"""Padding and adding is a way to concatenate, not a skip connection."""

_PADS = frozenset(spelled("pad", "constant_pad_nd"))


@HANDLERS.handles(*spelled("add", "__add__", "__radd__"))
def _add(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    alpha = kwargs.pop("alpha", 1)
    u, v = two_operands(args, kwargs)
    return _summed(watch, function, u, v if alpha == 1 else _times(watch, v, alpha))


@HANDLERS.handles(*spelled("sub", "subtract", "__sub__"))
def _sub(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    alpha = kwargs.pop("alpha", 1)
    u, v = two_operands(args, kwargs)
    return _subtracted(watch, function, u, v, alpha)


@HANDLERS.handles(*spelled("__rsub__", "rsub"))
def _rsub(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    alpha = kwargs.pop("alpha", 1)
    v, u = two_operands(args, kwargs)
    return _subtracted(watch, function, u, v, alpha)


def _times(watch: Context, value: Any, factor: Any) -> Any:
    with watch:
        return value * factor


def _subtracted(watch: Context, function: Function, u: Any, v: Any, alpha: Any) -> Any:
    of_u = watch.mark(u)
    of_v = watch.mark(v) or detached(watch, v)
    if of_u is not None and of_v is not None and is_statistic_of(of_v, of_u):
        if not (of_u.scores and v.numel() == 1):  # which a softmax knows nothing of
            require_known(watch, of_v)
        output = watch.made(torch.sub, u, v, alpha=alpha)
        return scaled_by_constant(watch, function, of_u, u, 1.0, output)
    return _summed(watch, function, u, _times(watch, v, -alpha))


def _summed(watch: Context, function: Function, u: Any, v: Any) -> Any:
    of_u = watch.mark(u)
    of_v = watch.mark(v)
    if of_u is not None and of_v is not None:
        moved = added_before_moving(watch, u, v)
        if moved is None:
            moved = sum_of_slices(watch, u, v)
        if moved is not None:
            return moved
        return _skip_add(watch, function, u, of_u, v, of_v)
    x, mark, constant = (u, of_u, v) if of_u is not None else (v, of_v, u)
    assert mark is not None
    if not isinstance(constant, Tensor):
        if constant == 0:  # Captum's and others' way to copy
            return _copied(watch, x, mark)
        constant = torch.full((), constant, dtype=x.dtype, device=x.device)
    elif begins_a_sum(watch, constant, x):
        return _copied(watch, x, mark)
    detached(watch, constant)
    output = watch.made(torch.add, x, constant)
    if constant.dtype == torch.bool or not constant.is_floating_point():
        constant = constant.to(x.dtype)
    # No value of its own for every token, but one for every output, or for each of Q, K and V.
    is_bias = (
        mark.channels > 0
        and mark.channels % max(constant.numel(), 1) == 0
        and not watch.names.is_repeated(constant)
    )
    takes_nothing = is_bias and not watch.rules.of(F.linear).shares_with_bias
    mark = mark.but(
        examples=broadcast_examples(mark.examples, x.shape, output.shape), source=None, channels=0
    )
    require_known(watch, mark)
    return watch.record(
        function,
        AutogradKernel(torch.add),
        (x,),
        output,
        rule=_rule(watch, x, constant, takes_nothing=takes_nothing),
        flow=Flow.KEEP,
        mark=mark,
        constant=constant,
        name=watch.names.title(v if of_u is not None else u) if watch.tape.keeps_books else "",
    )


def _copied(watch: Context, x: Tensor, mark: Mark) -> Tensor:
    copy = x.clone()
    watch.tape.marks[copy] = mark
    watch.tape.made_of.sources[copy] = x
    return copy


def _rule(watch: Context, u: Tensor, v: Tensor, *, takes_nothing: bool = False) -> Rule:
    """The rule of a sum, which takes the relevance of each example by itself."""
    if takes_nothing:
        return watch.rules.of_module() or _BIAS
    rule = watch.rules.of(torch.add)
    return _JOIN if isinstance(rule, SkipAddRule) and _lie_apart(watch, u, v) else rule


def _lie_apart(watch: Context, u: Tensor, v: Tensor) -> bool:
    """Whether operands that have been padded with zeros lie in each other's padding."""
    moved = [watch.tape.made_of.moved.get(one) for one in (u, v)]
    padded = any(one is not None and one[1][0] in _PADS for one in moved)
    return padded and not bool(((u != 0) & (v != 0)).any())


def _skip_add(
    watch: Context, function: Function, u: Tensor, of_u: Mark, v: Tensor, of_v: Mark
) -> Tensor:
    output = watch.made(torch.add, u, v)
    if is_function_of_same(of_u, of_v):
        return function_of_same(watch, function, torch.add, u, of_u, v, of_v, output)
    examples = common_examples(watch, [(of_u, u), (of_v, v)], output.shape)
    mark = merged([of_u, of_v], examples)
    stream = _stream(of_u, of_v)
    attends = False
    if stream is not None:
        skipped, branch = (of_u, of_v) if stream == 0 else (of_v, of_u)
        attends = attends_beyond(branch, skipped)
        through_branch = 1.0 if attends else 0.0
        factors = (1.0, through_branch) if stream == 0 else (through_branch, 1.0)
        through_attention = (0.0, 1.0) if stream == 0 else (1.0, 0.0)
        branch_attentions = branch.attentions & ~skipped.attentions
        if attends:
            tokens = before_copies(watch.tape, (u, v)[stream], (u, v)[1 - stream])
            watch.tape.streams.append(Stream(tokens, branch_attentions, (u, v)[1 - stream]))
        # What the branch is made of ends here: the stream stays what it was.
        mark = mark.but(
            events=skipped.events,
            scores=skipped.scores,
            softmax=skipped.softmax,
            attention=skipped.attention,
        )
    else:
        terms = watch.tape.made_of.terms_of(u), watch.tape.made_of.terms_of(v)
        factors, through_attention, branch_attentions = _without_stream(watch, of_u, of_v, terms)
    features = of_u.features if of_u.features is not None else of_v.features
    mark = mark.but(source=None, features=features)
    output = watch.record(
        function,
        AutogradKernel(torch.add),
        (u, v),
        output,
        rule=_rule(watch, u, v),
        flow=Flow.SKIP_ADD,
        mark=mark,
        mass=factors,
        branch=branch_attentions,
        mass_through_branch=through_attention,
    )
    if stream is None:
        watch.tape.made_of.terms[output] = sum(terms)
    elif of_u.base is not of_v.base:
        tensor, skipped_by = (u, v) if stream == 0 else (v, u)
        tokens = before_copies(watch.tape, tensor, skipped_by) if attends else tensor
        residual = Residual(tokens, tensor, skipped_by, output, attends)
        watch.tape.note_residual(residual, branch_attentions)
    return output


def _stream(of_u: Mark, of_v: Mark) -> int | None:
    """Which of two operands is what skips the other, if one is."""
    if of_u.events == of_v.events:
        return None
    if of_u.events & ~of_v.events == 0:
        return 0
    return 1 if of_v.events & ~of_u.events == 0 else None


Shares = tuple[float, float]


def _without_stream(
    watch: Context, of_u: Mark, of_v: Mark, terms: tuple[int, int]
) -> tuple[Shares, Shares, int]:
    """The mass of two operands neither of which is made of the other.

    Where they are sums themselves, of as many as ``terms`` says, each term gets the same.

    Returns:
        Their shares; the same where all mass is to go through the attentions of a branch; and
        the bits of these attentions.
    """
    attending = [attends_beyond(of_u, of_v), attends_beyond(of_v, of_u)]
    if all(attending):
        return (1.0, 1.0), (1.0, 0.0), 0
    if not any(attending):
        return (terms[0] / sum(terms), terms[1] / sum(terms)), (1.0, 0.0), 0
    through_attention = (1.0, 0.0) if attending[0] else (0.0, 1.0)
    branch, beside = (of_u, of_v) if attending[0] else (of_v, of_u)
    # A shortcut that is projected, as to merge tokens, is a shortcut; an MLP beside is not.
    if watch.tape.is_linear_beside(beside, branch):
        return (1.0, 1.0), through_attention, branch.attentions & ~beside.attentions
    return through_attention, through_attention, 0
