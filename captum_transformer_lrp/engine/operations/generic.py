"""Calls without a handler: by a rule of somebody's, by eq. 2, or refused where something comes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import (
    Args,
    Function,
    Kwargs,
    replace_tensors,
    tensors_in,
    title,
)
from captum_transformer_lrp.engine.graph.marks import Kind
from captum_transformer_lrp.engine.graph.role import Flow
from captum_transformer_lrp.engine.graph.tensor_table import HeldTable
from captum_transformer_lrp.engine.operations.contractions import LostAttentionError
from captum_transformer_lrp.engine.watch.context import Context, MixedExamplesError
from captum_transformer_lrp.engine.watch.refusals import RefusalRule
from captum_transformer_lrp.errors import ExplanationError, UnsupportedOperationError
from captum_transformer_lrp.rules import Rule, TaylorRule
from captum_transformer_lrp.rules.examples import broadcast_examples
from captum_transformer_lrp.rules.kernels import AutogradKernel


def generic(
    watch: Context,
    function: Function,
    args: Args,
    kwargs: Kwargs,
    refusal: UnsupportedOperationError | None = None,
) -> Any:
    """Make a call that has no rule, a rule that is filed for it alone, or one that refused it.

    What the explained output does not depend on, such as a loss, needs no rule.  So it is not the
    call that is refused, but the relevance or the mass that comes to its result.
    """
    if isinstance(refusal, LostAttentionError):  # a map without it would not be the method's
        raise refusal
    output = function(*args, **kwargs)
    active = [tensor for tensor in tensors_in((args, kwargs)) if watch.mark(tensor)]
    rule: Rule
    flow = Flow.UNKNOWN
    if refusal is None and function in watch.rules.functions:
        rule = watch.rules.of(function)
    elif not (watch.rules.strict or isinstance(refusal, MixedExamplesError)):
        rule = TaylorRule()
    elif isinstance(refusal, MixedExamplesError):
        rule, flow = RefusalRule(ExplanationError, str(refusal)), Flow.REFUSED
    else:
        fourier = "fft" in title(function)
        what = "a Fourier transform, which mixes tokens without any attention map"
        refusal = refusal or watch.unsupported(function, what if fourier else "activations")
        if fourier:
            watch.tape.other_mixing.append(watch.names.caller())
        rule = RefusalRule(UnsupportedOperationError, str(refusal), advises=True)
        flow = Flow.REFUSED
    found = HeldTable((tensor, place) for place, tensor in enumerate(tensors_in(output)))

    def again(number: int, *values: Tensor) -> Tensor:
        known = HeldTable(zip(active, values, strict=True))
        change = lambda t: known.get(t, t)  # noqa: E731
        result = function(*replace_tensors(args, change), **replace_tensors(kwargs, change))
        return tensors_in(result)[number]

    marks = [mark for tensor in active if (mark := watch.mark(tensor))]

    def recorded(result: Tensor) -> Tensor:
        if not result.requires_grad or watch.mark(result) is not None:
            return result
        number = found[result]
        examples = broadcast_examples(marks[0].examples, active[0].shape, result.shape)
        if flow is Flow.REFUSED and result.shape[:1] == (watch.examples.count,):
            examples = watch.examples  # so that it is the refusal that is told
        mark = watch.tape.made(Kind.OTHER, marks, examples)
        if flow is Flow.REFUSED:
            mark = mark.but(columns=None)
        kernel = AutogradKernel(lambda *values: again(number, *values))
        name = watch.names.caller()
        return watch.record(
            function, kernel, active, result, rule=rule, role=flow, mark=mark, name=name
        )

    return replace_tensors(output, recorded)
