"""Matrix products of two activations, attention among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs
from captum_transformer_lrp.engine.graph.marks import Kind, Mark, Node, common_pixels
from captum_transformer_lrp.engine.graph.role import Flow, Product, Role
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.operations.contractions import Axes, refuse_weighed, shares_of
from captum_transformer_lrp.engine.operations.linear import only_averages, weighted
from captum_transformer_lrp.engine.operations.product_examples import (
    einsum_examples,
    matmul_examples,
    product_examples,
)
from captum_transformer_lrp.engine.operations.scaling import two_operands
from captum_transformer_lrp.engine.watch.apart import agreed
from captum_transformer_lrp.engine.watch.context import Context, Handlers
from captum_transformer_lrp.rules.examples import Examples, broadcast_examples
from captum_transformer_lrp.rules.kernels import AutogradKernel, Kernel, MatmulKernel, ProductKernel
from captum_transformer_lrp.rules.spellings import spelled

HANDLERS = Handlers()


@HANDLERS.handles(*spelled("matmul", "__matmul__", "bmm", "mm", "mv"))
def _matmul(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    u, v = two_operands(args, kwargs)
    if v.dim() == 1:
        with watch:
            return torch.matmul(u, v.unsqueeze(-1)).squeeze(-1)
    if u.dim() == 1:
        with watch:
            return torch.matmul(u.unsqueeze(0), v).squeeze(-2)
    output = watch.computed(torch.matmul, u, v)
    return multiplied(watch, function, MatmulKernel(), torch.matmul, u, v, output, None)


@HANDLERS.handles(*spelled("__rmatmul__"))
def _rmatmul(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    return _matmul(watch, torch.matmul, (args[1], args[0]), {})


@HANDLERS.composes(*spelled("baddbmm"))
def _baddbmm(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    scores = torch.bmm(batch1, batch2)
    scores = scores if alpha == 1 else scores * alpha
    return scores if beta == 0 else scores + (input if beta == 1 else beta * input)


@HANDLERS.handles(*spelled("einsum"))
def _einsum(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    equation, operands = args[0], args[1:]
    if not isinstance(equation, str):
        raise watch.unsupported(function, "index lists; write the equation as a string")
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if len(operands) == 1:
        return _einsum_of_one(watch, equation, operands[0])
    if len(operands) > 2:
        return _einsum_of_many(watch, equation, operands)
    active = [operand for operand in operands if watch.mark(operand)]
    u, v = operands
    if len(active) == 1:
        scaled = _einsum_that_scales(watch, equation, u, v)
        if scaled is not None:
            return scaled
    output = watch.computed(torch.einsum, equation, u, v)

    def run(first: Tensor, second: Tensor) -> Tensor:
        return torch.einsum(equation, first, second)

    found = [
        einsum_examples(mark.examples, equation, 0 if operand is u else 1, operand)
        for operand in active
        if (mark := watch.mark(operand))
    ]
    examples = agreed(found)
    axes, free = _contracted_axes(equation), _free_axes(equation)
    kernel = AutogradKernel(run)
    return multiplied(watch, function, kernel, run, u, v, output, examples, axes, free)


def _einsum_that_scales(watch: Context, equation: str, u: Tensor, v: Tensor) -> Tensor | None:
    """An einsum that sums nothing is a product element by element, if the constant is the smaller.

    None for any other.
    """
    left, _, right = equation.replace(" ", "").partition("->")
    of_x, of_constant = left.split(",")
    x, constant = u, v
    if watch.mark(u) is None:
        of_x, of_constant, x, constant = of_constant, of_x, v, u
    alike = sorted(of_x) == sorted(right) and len(set(of_x)) == len(of_x)
    if "." in left or not alike or not set(of_constant) < set(of_x):
        return None
    if len(set(of_constant)) < len(of_constant):
        return None
    ordered = constant.permute([of_constant.index(one) for one in of_x if one in of_constant])
    sizes = [size if one in of_constant else 1 for one, size in zip(of_x, x.shape, strict=True)]
    with watch:
        return (x * ordered.reshape(sizes)).permute([of_x.index(one) for one in right])


def _einsum_of_one(watch: Context, equation: str, operand: Tensor) -> Tensor:
    """An einsum of one operand sums over axes and permutes the others."""
    named = len(equation.replace(" ", "").partition("->")[0].replace(".", ""))
    rest = "".join(chr(ord("À") + place) for place in range(operand.dim() - named))
    left, arrow, right = equation.replace(" ", "").replace("...", rest).partition("->")
    if not arrow:  # what is left stands in the order of the alphabet
        right = rest + "".join(sorted(set(left) - set(rest)))
    if len(set(left)) < len(left) or not set(right) <= set(left):
        raise watch.unsupported(torch.einsum, f"{equation!r}; use sum(), diagonal() and permute()")
    kept = [letter for letter in left if letter in right]
    with watch:
        if len(kept) < len(left):
            operand = operand.sum([left.index(letter) for letter in left if letter not in right])
        return operand.permute([kept.index(letter) for letter in right])


def _einsum_of_many(watch: Context, equation: str, operands: tuple[Tensor, ...]) -> Tensor:
    """An einsum of more than two operands multiplies them one after another."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    if "." in left or not arrow:
        raise watch.unsupported(torch.einsum, f"{equation!r}; multiply them two at a time")
    result, (letters, *others) = operands[0], left.split(",")
    for place, (operand, other) in enumerate(zip(operands[1:], others, strict=True), start=1):
        needed = set(right).union(*others[place:])
        joined = "".join(one for one in dict.fromkeys(letters + other) if one in needed)
        if place == len(others):
            joined = right
        with watch:
            result = torch.einsum(f"{letters},{other}->{joined}", result, operand)
        letters = joined
    return result


def multiplied(
    watch: Context,
    function: Function,
    kernel: Kernel,
    run: Callable[[Tensor, Tensor], Tensor],
    u: Tensor,
    v: Tensor,
    output: Tensor,
    examples: Examples | None,
    axes: tuple[Axes, Axes] = ((-1,), (-2,)),
    free: tuple[Axes, Axes] = ((-2,), (-1,)),
) -> Tensor:
    """Record a contraction of two tensors: linear in one activation, or a product of two.

    ``axes`` are those that each operand is contracted along, ``free`` those of the result that only
    it has, unless as in a matmul.
    """
    of_u, of_v = watch.mark(u), watch.mark(v)
    refuse_weighed(watch, of_u, of_v)
    if of_u is None or of_v is None:
        return _linear(watch, function, run, u, v, output, examples, axes)
    known = (examples, None) if examples is not None else None
    examples, columns = known or product_examples(of_u, u, of_v, v, output)
    role: Role
    position = _map_position((of_u, of_v), (u, v), axes)
    if position is not None:
        mark = watch.tape.made(Kind.ATTENTION, (of_u, of_v), examples)
        places = free[position], axes[position]
        role = _attention(watch, (u, v), position, places, mark.node)
    else:
        # Q · (softmax(K)ᵀ · V): queries choose among contexts, as scores choose among values.
        role = Product(*shares_of(watch, (u, v), axes, free))
        watch.tape.other_mixing.append(watch.names.caller())
        pixels = common_pixels((of_u, of_v))._replace(planes=())
        mark = watch.tape.made(Kind.PRODUCT, (of_u, of_v), examples, pixels)
    rule = watch.rules.of(torch.matmul)
    output = watch.record(function, kernel, (u, v), output, rule=rule, role=role, mark=mark)
    if isinstance(role, AttentionStep) and watch.tape.keeps_streams:
        role.output = output
    if columns is not None:
        watch.tape.marks[output] = mark.but(columns=columns)
    return output


def _linear(
    watch: Context,
    function: Function,
    run: Callable[[Tensor, Tensor], Tensor],
    u: Tensor,
    v: Tensor,
    output: Tensor,
    examples: Examples | None,
    axes: tuple[Axes, Axes],
) -> Tensor:
    """Record a contraction of an activation and a constant, in either order."""
    of_v = watch.mark(v)
    x, weight = (u, v) if of_v is None else (v, u)
    mark = watch.mark(x)
    assert mark is not None
    if weight.dtype == torch.bool or not weight.is_floating_point():
        weight = weight.to(x.dtype)
    ordered = run if of_v is None else (lambda value, by: run(by, value))
    found = examples or matmul_examples(mark, x, output, last=of_v is not None)
    tokenwise = run is torch.matmul and of_v is None and weight.dim() == 2
    kernel: Kernel = ProductKernel() if tokenwise else AutogradKernel(ordered)
    role = Flow.SPREAD_OVER_FEATURES if tokenwise else Flow.SPREAD_EVENLY
    if only_averages(weight, axes[of_v is None]):
        function, role = torch.mean, Flow.AVERAGED
    # Learned queries, as latents and probes have them.
    kind = Kind.QUERIES if x.dim() > 2 and weight.dim() > 2 else Kind.LINEAR
    return weighted(watch, function, kernel, x, weight, None, output, role, found, kind=kind)


def _attention(
    watch: Context,
    operands: tuple[Tensor, Tensor],
    position: int,
    places: tuple[Axes, Axes],
    node: Node,
) -> AttentionStep:
    """Note an attention, whose map is the operand at ``position``."""
    map, values = operands[position], operands[1 - position]
    mark = watch.mark(map)
    assert mark is not None
    record = AttentionStep(
        index=len(watch.tape.attentions),
        name=watch.names.caller(),
        attention=map,
        mark=mark,
        event=node.bit,
        upstream=node.attentions & ~node.bit,
        gate=position,
        axes=_queries_and_keys(map, *places),
        values=values if watch.tape.keeps_streams else None,
    )
    watch.tape.attentions.append(record)
    return record


def _map_position(
    marks: tuple[Mark, Mark], operands: tuple[Tensor, Tensor], axes: tuple[Axes, Axes]
) -> int | None:
    """Which of two factors is an attention map, if one is.

    It is a softmax over products of queries and keys; or any softmax that makes this product a
    weighted mean of values: over learned queries (attention pooling), over predicted weights
    (outlook attention), over the keys alone (factorised attention).
    """
    of_u, of_v = (mark.node for mark in marks)
    if of_u.attention != of_v.attention:
        return 0 if of_u.attention else 1
    if of_u.attention or not (of_u.softmax or of_v.softmax):
        return None
    means = [
        mark.node.softmax and _sums_to_one(operand, contracted)
        for mark, operand, contracted in zip(marks, operands, axes, strict=True)
    ]
    return means.index(True) if sum(means) == 1 else None


def _sums_to_one(weights: Tensor, axes: Axes) -> bool:
    """Whether weights are those of a mean; a row that a mask has emptied may be 0."""
    if not axes or weights.numel() == 0 or weights.dim() < 2:
        return False
    sums = weights.detach().sum(axes)
    return bool(((sums - 1).abs() < 1e-3).logical_or(sums == 0).all()) and bool(sums.any())


def _queries_and_keys(map: Tensor, queries: Axes, keys: Axes) -> tuple[int, int] | None:
    """The axes of an attention map, counted from the end, if there is one of each."""
    if len(queries) != 1 or len(keys) != 1:
        return None
    return queries[0] % map.dim() - map.dim(), keys[0] % map.dim() - map.dim()


def _free_axes(equation: str) -> tuple[Axes, Axes]:
    """The axes of an einsum's operands that the result has and the other has not."""
    left, _, right = equation.replace(" ", "").partition("->")
    of_u, of_v = left.split(",")
    own = {letter for letter in right if (letter in of_u) != (letter in of_v)}
    return _axes_of(own, of_u), _axes_of(own, of_v)


def _contracted_axes(equation: str) -> tuple[Axes, Axes]:
    """The axes of an einsum's operands that both have and the result has not."""
    left, _, right = equation.replace(" ", "").partition("->")
    of_u, of_v = left.split(",")
    gone = {letter for letter in of_u if letter.isalpha() and letter in of_v} - set(right)
    return _axes_of(gone, of_u), _axes_of(gone, of_v)


def _axes_of(letters: set[str], subscripts: str) -> Axes:
    before, dots, after = subscripts.partition("...")
    named = dict(enumerate(before))
    if dots:
        named |= {place - len(after): letter for place, letter in enumerate(after)}
    return tuple(place for place, letter in named.items() if letter in letters)


@HANDLERS.handles(*spelled("solve_triangular"))
def _solve_triangular(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """The inverse of a triangular matrix times another: what linear attention in chunks needs."""
    matrix, right = args[:2]
    marks = [watch.mark(one) for one in (matrix, right)]
    if kwargs.get("left") is False or any(mark is None for mark in marks):
        raise watch.unsupported(function, "anything but two activations, the matrix on the left")
    known = [mark for mark in marks if mark is not None]
    output = function(matrix, right, **kwargs)
    examples = broadcast_examples(known[1].examples, right.shape, output.shape)
    kernel = AutogradKernel(lambda first, second: function(first, second, **kwargs))
    rule, mark = watch.rules.of(function), watch.tape.made(Kind.OTHER, known, examples)
    inputs = (matrix, right)
    return watch.record(function, kernel, inputs, output, rule=rule, role=Flow.UNKNOWN, mark=mark)
