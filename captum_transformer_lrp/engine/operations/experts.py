"""Mixtures of experts: rows sorted by expert, one weight for each group, and added up again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import Function
from captum_transformer_lrp.engine.graph.marks import Kind, skipped
from captum_transformer_lrp.engine.graph.role import Flow
from captum_transformer_lrp.engine.operations.linear import weighted
from captum_transformer_lrp.engine.watch.context import Context, Handlers
from captum_transformer_lrp.rules.examples import Examples, rearranged_examples, unknown_examples
from captum_transformer_lrp.rules.kernels import AutogradKernel
from captum_transformer_lrp.rules.spellings import spelled

HANDLERS = Handlers()


@HANDLERS.binds(*spelled("grouped_mm", "_grouped_mm"))
def _grouped_mm(
    watch: Context, function: Function, mat_a: Tensor, mat_b: Tensor, offs: Tensor | None = None,
    bias: Tensor | None = None, out_dtype: torch.dtype | None = None,
) -> Any:  # fmt: skip
    """Each group of rows times its expert's weight; PyTorch's kernel knows no float64."""
    rows, experts, ends = mat_a, mat_b, offs
    if (
        watch.mark(rows) is None
        or watch.mark(experts)
        or rows.dim() != 2
        or ends is None
        or bias is not None
    ):
        raise watch.unsupported(function, "anything but rows of activations and experts' weights")
    starts = [0, *ends.tolist()]

    def run(values: Tensor, weights: Tensor) -> Tensor:
        groups = zip(starts, starts[1:], weights, strict=False)
        found = [values[start:end] @ weight for start, end, weight in groups]
        found.append(values.new_zeros(len(values) - starts[-1], weights.shape[-1]))
        return torch.cat(found)

    output = run(rows, experts)
    return weighted(watch, function, AutogradKernel(run), rows, experts, None, output)


@HANDLERS.binds(*spelled("index_add", "scatter_add"))
def _accumulate(
    watch: Context, function: Function, input: Tensor, dim: int, index: Tensor, *rest: Any,
    alpha: float = 1, **named: Any,
) -> Any:  # fmt: skip
    """``input`` with the rows of ``source`` added at the places that ``index`` says."""
    onto = input
    source: Any = rest[0] if rest else named.get("source", named.get("src"))
    of_onto, of_source = watch.mark(onto), watch.mark(source)
    if of_onto and of_source and skipped(of_onto.node, of_source.node) == 0:
        with watch:  # a skip connection
            placed = function(torch.zeros_like(onto), dim, index, source)
            return onto + (placed if alpha == 1 else placed * alpha)
    adds_rows = function.__name__ == "index_add"
    with watch:
        if alpha != 1:
            source = source * alpha
            of_source = watch.mark(source)
        if of_source is None or (of_onto is None and bool(onto.any())):
            return onto + function(torch.zeros_like(onto), dim, index, source)
    marks = [mark for mark in (of_onto, of_source) if mark is not None]
    examples = _accumulated_examples(
        of_source.examples, onto.shape, dim, index, source, adds_rows=adds_rows
    )
    if of_onto is not None:
        examples = _completed(of_onto.examples, examples)

    def run(*values: Tensor) -> Tensor:
        base = torch.zeros_like(onto) if of_onto is None else values[0]
        total: Tensor = function(base, dim, index, values[-1])
        return total

    inputs = [source] if of_onto is None else [onto, source]
    rule, mark = watch.rules.of(function), watch.tape.made(Kind.ACCUMULATION, marks, examples)
    return watch.record(
        function, AutogradKernel(run), inputs, run(*inputs), rule=rule, role=Flow.ACCUMULATION,
        mark=mark,
    )  # fmt: skip


def _accumulated_examples(
    examples: Examples,
    shape: torch.Size,
    dim: int,
    index: Tensor,
    source: Tensor,
    *,
    adds_rows: bool,
) -> Examples:
    """The examples of rows put together; unknown if a row gets something of two examples."""
    place = index.cpu()
    if adds_rows:
        place = place.view([-1 if d == dim % len(shape) else 1 for d in range(len(shape))])
        place = place.expand(source.shape)

    def extreme(reduce: str) -> Examples | list[Examples]:
        return rearranged_examples(
            examples,
            source.shape,
            lambda numbers: torch.zeros(shape).scatter_reduce(
                dim, place, numbers, reduce, include_self=False
            ),
        )

    with torch.no_grad():
        largest, smallest = extreme("amax"), extreme("amin")
    if largest != smallest or not isinstance(largest, Examples):
        return unknown_examples(examples)
    return largest


def _completed(examples: Examples, others: Examples) -> Examples:
    """``examples``, with those of ``others`` at positions that belonged to none."""
    if examples.index is None or -1 not in examples.index:
        return examples
    if others.index is None or others.axis != examples.axis:
        return unknown_examples(examples)
    pairs = zip(examples.index, others.index, strict=True)
    return Examples(examples.count, examples.axis, tuple(a if a >= 0 else b for a, b in pairs))
