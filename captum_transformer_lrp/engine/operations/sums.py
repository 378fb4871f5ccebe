"""Addition and subtraction: skip connections, position embeddings, masks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
    function_of_same,
    scaled_by_constant,
    two_operands,
)
from captum_transformer_lrp.engine.watch.context import Context, Handlers
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.rules import ScaleRule
from captum_transformer_lrp.rules.examples import broadcast_examples
from captum_transformer_lrp.rules.kernels import AutogradKernel
from captum_transformer_lrp.rules.spellings import spelled

HANDLERS = Handlers()

_BIAS = ScaleRule()
"""The bias of a linear layer spelled out takes nothing, as that of ``F.linear`` (eq. 5)."""


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
    of_v = watch.mark(v)
    if of_u is not None and of_v is not None and is_statistic_of(of_v, of_u):
        output = watch.made(torch.sub, u, v, alpha=alpha)
        return scaled_by_constant(watch, function, of_u, u, 1.0, output)
    return _summed(watch, function, u, _times(watch, v, -alpha))


def _summed(watch: Context, function: Function, u: Any, v: Any) -> Any:
    of_u = watch.mark(u)
    of_v = watch.mark(v)
    if of_u is not None and of_v is not None:
        return _skip_add(watch, function, u, of_u, v, of_v)
    x, mark, constant = (u, of_u, v) if of_u is not None else (v, of_v, u)
    assert mark is not None
    if not isinstance(constant, Tensor):
        if constant == 0:  # Captum's and others' way to copy
            return _copied(watch, x, mark)
        constant = torch.full((), constant, dtype=x.dtype, device=x.device)
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
    _require_examples(watch, mark)
    return watch.record(
        function,
        AutogradKernel(torch.add),
        (x,),
        output,
        rule=watch.rules.of_module() or _BIAS if takes_nothing else watch.rules.of(torch.add),
        flow=Flow.KEEP,
        mark=mark,
        constant=constant,
        name=watch.names.title(v if of_u is not None else u) if watch.tape.keeps_books else "",
    )


def _copied(watch: Context, x: Tensor, mark: Mark) -> Tensor:
    copy = x.clone()
    watch.tape.marks[copy] = mark
    return copy


def _require_examples(watch: Context, mark: Mark) -> None:
    if not mark.examples.known:
        raise ExplanationError(
            f"in {watch.names.caller()} the examples of the batch cannot be told apart, so their "
            "relevance cannot be normalised one by one: explain one example at a time"
        )


def _skip_add(
    watch: Context, function: Function, u: Tensor, of_u: Mark, v: Tensor, of_v: Mark
) -> Tensor:
    output = watch.made(torch.add, u, v)
    if is_function_of_same(of_u, of_v):
        return function_of_same(watch, function, torch.add, u, of_u, v, of_v, output)
    examples = broadcast_examples(of_u.examples, u.shape, output.shape)
    if not examples.known:
        examples = broadcast_examples(of_v.examples, v.shape, output.shape)
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
            watch.tape.streams.append(Stream((u, v)[stream], branch_attentions))
        # What the branch is made of ends here: the stream stays what it was.
        mark = mark.but(
            events=skipped.events,
            scores=skipped.scores,
            softmax=skipped.softmax,
            attention=skipped.attention,
        )
    else:
        factors, through_attention, branch_attentions = _without_stream(watch, of_u, of_v)
    features = of_u.features if of_u.features is not None else of_v.features
    mark = mark.but(source=None, features=features)
    _require_examples(watch, mark)
    output = watch.record(
        function,
        AutogradKernel(torch.add),
        (u, v),
        output,
        rule=watch.rules.of(torch.add),
        flow=Flow.SKIP_ADD,
        mark=mark,
        mass=factors,
        branch=branch_attentions,
        mass_through_branch=through_attention,
    )
    if stream is not None and of_u.base is not of_v.base:
        tensor, skipped_by = (u, v) if stream == 0 else (v, u)
        residual = Residual(tensor, skipped_by, output, attends)
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


def _without_stream(watch: Context, of_u: Mark, of_v: Mark) -> tuple[Shares, Shares, int]:
    """The mass of two operands neither of which is made of the other.

    Returns:
        Their shares; the same where all mass is to go through the attentions of a branch; and
        the bits of these attentions.
    """
    attending = [attends_beyond(of_u, of_v), attends_beyond(of_v, of_u)]
    if all(attending):
        return (1.0, 1.0), (1.0, 0.0), 0
    if not any(attending):
        return (0.5, 0.5), (1.0, 0.0), 0
    through_attention = (1.0, 0.0) if attending[0] else (0.0, 1.0)
    branch, beside = (of_u, of_v) if attending[0] else (of_v, of_u)
    # A shortcut that is projected, as to merge tokens, is a shortcut; an MLP beside is not.
    if watch.tape.is_linear_beside(beside, branch):
        return (1.0, 1.0), through_attention, branch.attentions & ~beside.attentions
    return through_attention, through_attention, 0
