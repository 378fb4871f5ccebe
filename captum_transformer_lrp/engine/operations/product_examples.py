"""The examples of matrix products, as those of their factors tell."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.watch.apart import agreed, of_one_example
from captum_transformer_lrp.rules.examples import Examples, broadcast_examples, unknown_examples


def matmul_examples(mark: Mark, operand: Tensor, output: Tensor, *, last: bool = False) -> Examples:
    """Batch axes of a matmul, the rows of its first operand and the columns of its last stay.

    What is summed over is another example's, so the rest is unknown, unless there is but one.
    """
    examples, dims = mark.examples, operand.dim()
    if examples.count == 1 or examples.axis is None:
        return examples
    summed = max(dims - 2, 0) if last else dims - 1
    if examples.axis == summed:
        return of_one_example(examples, output)
    if dims > 1 and examples.axis < dims - 2:
        return broadcast_examples(examples, operand.shape, output.shape)
    return replace(examples, axis=output.dim() - 1 if last else examples.axis - dims + output.dim())


def product_examples(
    of_u: Mark, u: Tensor, of_v: Mark, v: Tensor, output: Tensor
) -> tuple[Examples, Examples | None]:
    """The examples of a matmul; of each answer with each, as CLIP has them, of rows and columns."""
    rows, columns = matmul_examples(of_u, u, output), matmul_examples(of_v, v, output, last=True)
    examples = agreed([rows, columns])
    each_with_each = rows.known and columns.known and u.dim() == v.dim() == 2
    return (rows, columns) if each_with_each and not examples.known else (examples, None)


def einsum_examples(examples: Examples, equation: str, place: int, operand: Tensor) -> Examples:
    """The examples of an einsum's result, as one operand has them; unknown if it sums over them."""
    left, _, right = equation.replace(" ", "").partition("->")
    own = left.split(",")[place]
    if examples.count == 1 or examples.axis is None:
        return examples
    if "." not in equation and own[examples.axis] in right:
        return replace(examples, axis=right.index(own[examples.axis]))
    if own.startswith("...") and right.startswith("..."):
        extra = operand.dim() - len(own.replace(".", ""))
        if examples.axis < extra:
            return examples
    return unknown_examples(examples)
