"""Addition and subtraction: skip connections, position embeddings, masks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer_lrp.engine.graph.ancestors import before_copies
from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs
from captum_transformer_lrp.engine.graph.marks import (
    Kind,
    Mark,
    attends_beyond,
    is_function_of_same,
    is_statistic_of,
)
from captum_transformer_lrp.engine.graph.role import Flow, Sum
from captum_transformer_lrp.engine.graph.seen import Residual
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
        if not (of_u.node.scores and v.numel() == 1):  # which a softmax knows nothing of
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
        mark.node.channels > 0
        and mark.node.channels % max(constant.numel(), 1) == 0
        and not watch.names.is_repeated(constant)
    )
    takes_nothing = is_bias and not watch.rules.of(F.linear).shares_with_bias
    examples = broadcast_examples(mark.examples, x.shape, output.shape)
    mark = watch.tape.made(Kind.ELEMENTWISE, (mark,), examples)
    require_known(watch, mark)
    name = watch.names.title(v if of_u is not None else u) if watch.tape.keeps_books else ""
    kernel, rule = AutogradKernel(torch.add), _rule(watch, x, constant, takes_nothing=takes_nothing)
    return watch.record(
        function, kernel, (x,), output, rule=rule, role=Flow.KEEP, mark=mark, name=name,
        constant=constant,
    )  # fmt: skip


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
    padded = any(one is not None and one[1] in _PADS for one in moved)
    return padded and not bool(((u != 0) & (v != 0)).any())


def _skip_add(
    watch: Context, function: Function, u: Tensor, of_u: Mark, v: Tensor, of_v: Mark
) -> Tensor:
    output = watch.made(torch.add, u, v)
    if is_function_of_same(of_u, of_v):
        return function_of_same(watch, function, torch.add, u, v, output)
    examples = common_examples(watch, [(of_u, u), (of_v, v)], output.shape)
    mark = watch.tape.made(Kind.SUM, (of_u, of_v), examples)
    skips = mark.node.stream is not None
    if not skips:
        role = _without_stream(watch, of_u, of_v)
    elif mark.node.stream == 0:
        around = of_v.node.attentions & ~of_u.node.attentions
        role, skipped, branch = Sum((1.0, float(around > 0)), (0, around)), u, v
    else:
        around = of_u.node.attentions & ~of_v.node.attentions
        role, skipped, branch = Sum((float(around > 0), 1.0), (around, 0)), v, u
    kernel, rule = AutogradKernel(torch.add), _rule(watch, u, v)
    output = watch.record(function, kernel, (u, v), output, rule=rule, role=role, mark=mark)
    if skips and of_u.node.base is not of_v.node.base:
        tokens = before_copies(watch.tape, skipped, branch) if around else skipped
        watch.tape.note_skip(Residual(tokens, branch, around, skipped, output))
    return output


def _without_stream(watch: Context, of_u: Mark, of_v: Mark) -> Sum:
    """The mass of two operands neither of which is made of the other.

    Where they are sums themselves, each term gets the same.
    """
    attending = [attends_beyond(of_u, of_v), attends_beyond(of_v, of_u)]
    if all(attending):
        return Sum((1.0, 1.0))
    if not any(attending):
        terms = of_u.node.terms, of_v.node.terms
        return Sum((terms[0] / sum(terms), terms[1] / sum(terms)))
    branch, beside = (of_u, of_v) if attending[0] else (of_v, of_u)
    # A shortcut that is projected, as to merge tokens, is a shortcut; an MLP beside is not.
    if watch.tape.is_linear_beside(beside, branch):
        around = branch.node.attentions & ~beside.node.attentions
        return Sum((1.0, 1.0), (around, 0) if attending[0] else (0, around))
    return Sum((1.0, 0.0) if attending[0] else (0.0, 1.0))
