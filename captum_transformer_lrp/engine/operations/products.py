"""Matrix products of two activations, attention among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine import flows
from captum_transformer_lrp.engine.arguments import Args, Function, Kwargs
from captum_transformer_lrp.engine.interception import Interception, handles
from captum_transformer_lrp.engine.marks import (
    Mark,
    broadcast_examples,
    merged,
    unknown_examples,
)
from captum_transformer_lrp.engine.operations.linear import weighted
from captum_transformer_lrp.engine.tape import AttentionStep
from captum_transformer_lrp.rules.call import (
    AutogradKernel,
    Examples,
    Kernel,
    MatmulKernel,
)
from captum_transformer_lrp.rules.spellings import spelled


@handles(*spelled("matmul", "__matmul__", "bmm", "mm"))
def _matmul(watch: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(u: Any = None, v: Any = None, **named: Any) -> Any:
        return (u if u is not None else named.get("input", named.get("self"))), (
            v if v is not None else named.get("other", named.get("mat2"))
        )

    u, v = bind(*args, **kwargs)
    output = torch.matmul(u, v)
    return multiplied(watch, function, MatmulKernel(), torch.matmul, u, v, output, None)


@handles(*spelled("__rmatmul__"))
def _rmatmul(watch: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    return _matmul(watch, torch.matmul, (args[1], args[0]), {})


@handles(*spelled("baddbmm"))
def _baddbmm(watch: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(
        input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> Any:
        return input, batch1, batch2, beta, alpha

    offset, u, v, beta, alpha = bind(*args, **kwargs)
    with watch:
        scores = torch.bmm(u, v)
        scores = scores if alpha == 1 else scores * alpha
        return scores if beta == 0 else scores + (offset if beta == 1 else beta * offset)


@handles(*spelled("einsum"))
def _einsum(watch: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    equation, operands = args[0], args[1:]
    if not isinstance(equation, str):
        raise watch.unsupported(function, "index lists; write the equation as a string")
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    active = [operand for operand in operands if watch.tape.mark(operand)]
    if len(operands) == 1:
        return _einsum_of_one(watch, equation, operands[0])
    if len(operands) > 2:
        raise watch.unsupported(function, f"{len(operands)} operands; multiply them two at a time")
    u, v = operands
    output = torch.einsum(equation, u, v)

    def run(first: Tensor, second: Tensor) -> Tensor:
        return torch.einsum(equation, first, second)

    examples = None
    for operand in active:
        letters = equation.replace(" ", "").split("->")
        mark = watch.tape.mark(operand)
        assert mark is not None
        own = letters[0].split(",")[0 if operand is u else 1]
        if mark.examples.count > 1 and mark.examples.axis is not None and len(letters) == 2:
            axis = mark.examples.axis
            if "." not in equation and own[axis] in letters[1]:
                place = letters[1].index(own[axis])
                examples = Examples(mark.examples.count, place, mark.examples.index)
            elif "." in equation and own.startswith("...") and letters[1].startswith("..."):
                extra = operand.dim() - len(own.replace(".", ""))
                if axis < extra:
                    examples = mark.examples
    if examples is None:
        known = watch.tape.mark(active[0])
        assert known is not None
        examples = unknown_examples(known.examples)
    return multiplied(watch, function, AutogradKernel(run), run, u, v, output, examples)


def _einsum_of_one(watch: Interception, equation: str, operand: Tensor) -> Tensor:
    """An einsum of one operand permutes and sums; the permutation alone is what is met."""
    left, right = equation.replace(" ", "").split("->")
    if sorted(left) != sorted(right):
        raise watch.unsupported(torch.einsum, f"the reduction {equation!r}; use sum()")
    with watch:
        return operand.permute([left.index(letter) for letter in right])


def multiplied(
    watch: Interception,
    function: Function,
    kernel: Kernel,
    run: Callable[[Tensor, Tensor], Tensor],
    u: Tensor,
    v: Tensor,
    output: Tensor,
    examples: Examples | None,
) -> Tensor:
    """Record a contraction of two tensors: linear in one activation, or a product of two."""
    of_u, of_v = watch.tape.mark(u), watch.tape.mark(v)
    if of_u is None or of_v is None:
        x, weight = (u, v) if of_v is None else (v, u)
        mark = of_u or of_v
        assert mark is not None
        if weight.dtype == torch.bool or not weight.is_floating_point():
            weight = weight.to(x.dtype)
        ordered = run if of_v is None else (lambda value, by: run(by, value))
        found = examples or _matmul_examples(mark, x, output)
        tokenwise = run is torch.matmul and of_v is None and weight.dim() == 2
        return weighted(
            watch,
            function,
            AutogradKernel(ordered),
            x,
            weight,
            None,
            output,
            flows.spread_over_features if tokenwise else flows.spread_evenly,
            found,
        )
    if examples is None:
        examples = _matmul_examples(of_u, u, output)
        if not examples.known:
            examples = _matmul_examples(of_v, v, output)
    mark = merged([of_u, of_v], examples)
    event = watch.tape.new_event()
    facts: dict[str, Any] = {}
    record: AttentionStep | None = None
    if of_u.attention != of_v.attention:
        position = 0 if of_u.attention else 1
        values = (of_v, of_u)[position]
        record = AttentionStep(
            index=len(watch.tape.attentions),
            name=watch.module_name(),
            attention=(u, v)[position],
            mark=(of_u, of_v)[position],
            event=event,
            values=(v, u)[position],
            position=position,
        )
        watch.tape.attentions.append(record)
        watch.tape.attention_events |= event
        facts = {"attention": record, "position": position, "gate": position}
        flow: flows.Flow = flows.attention
        mark = merged([values], examples).but(
            attention=False, scores=False, attended=True, events=mark.events | event
        )
    else:
        flow = flows.product
        watch.tape.other_mixing.append(watch.module_name())
        mark = mark.but(scores=True, events=mark.events | event)
    output = watch.tape.record(
        function,
        kernel,
        (u, v),
        output,
        rule=watch.rule_for(torch.matmul),
        flow=flow,
        mark=mark.but(source=None, base=object(), statistic=False, channels=0, activated=False),
        name=watch.book_title(),
        **facts,
    )
    if record is not None:
        record.output = output
    return output


def _matmul_examples(mark: Mark, operand: Tensor, output: Tensor) -> Examples:
    """Batch axes of a matmul, and the rows of its first operand, keep their place."""
    axis = mark.examples.axis
    if mark.examples.count == 1 or axis is None:
        return mark.examples
    if operand.dim() == 2 and axis == 0 and output.shape[0] == operand.shape[0]:
        return mark.examples if output.dim() == 2 else unknown_examples(mark.examples)
    if axis < operand.dim() - 1:
        return broadcast_examples(mark.examples, operand.shape, output.shape)
    return unknown_examples(mark.examples)
