"""One graph for inputs of any size, from graphs that were recorded for some sizes.

A recorder writes down numbers: a reshape to (2, 197, 192) does not say that the 2 is the batch.
Graphs for two sizes of the batch say it: what differs between them depends on the batch.  A number
must be linear in each size, such as the 12 · N heads of a batch.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from itertools import combinations, zip_longest
from math import prod
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx

from captum_transformer_lrp.engine.programs.graphs import Writing, outputs_of, weights_of
from captum_transformer_lrp.errors import ExplanationError


class Size(NamedTuple):
    """A size that may be any.

    Attributes:
        tensor: the number of an input that has it.
        dim: the dimension of this input.
        smaller: the value in some of the graphs; it is one more in the others.
    """

    tensor: int
    dim: int
    smaller: int


Sample: TypeAlias = frozenset[int]
"""Those sizes, by number, that are larger in a recorded graph."""


def samples(sizes: Sequence[Size]) -> list[Sample]:
    """All that must be recorded."""
    numbers = range(len(sizes))
    return [
        frozenset(some) for many in range(len(sizes) + 1) for some in combinations(numbers, many)
    ]


def of_any_size(graphs: Mapping[Sample, fx.GraphModule], sizes: Sequence[Size]) -> fx.GraphModule:
    """The graph that is each of the given ones for inputs of its sizes.

    Args:
        graphs: one for each sample, recorded without sharing.
        sizes: those that may be any.

    Raises:
        ExplanationError: for graphs of other operations, or with other constants.
    """
    return _Unified(graphs, sizes).graph


def _refusal(what: str) -> ExplanationError:
    return ExplanationError(
        f"no graph serves inputs of every size: another size leads to {what}.  Export with "
        "dynamic_batch=False, and without dynamic_tokens"
    )


class _Unified:
    """The graph, and what its nodes are in the others."""

    def __init__(self, graphs: Mapping[Sample, fx.GraphModule], sizes: Sequence[Size]) -> None:
        self._samples, self._sizes, self._writing = list(graphs), sizes, Writing()
        self._nodes: dict[fx.Node, fx.Node] = {}
        listed = [list(graph.graph.nodes) for graph in graphs.values()]
        held = [weights_of(graph) for graph in graphs.values()]
        self._place = {node: place for one in listed for place, node in enumerate(one)}
        for node in graphs[self._samples[0]].graph.find_nodes(op="placeholder"):
            self._nodes[node] = self._writing.graph.placeholder(node.target)
        inputs = list(self._nodes.values())
        self._counts = [
            self._call(torch.ops.aten.sym_size.int, inputs[one.tensor], one.dim) for one in sizes
        ]
        for same in zip_longest(*listed):
            if len({_operation(node) for node in same}) > 1:
                raise _refusal(f"the operations {[*map(_operation, same)]}")
            node = same[0]
            if node.op == "get_attr":
                values = [of[one] for of, one in zip(held, same, strict=True)]
                self._nodes[node] = self._constant(node, values)
            elif node.op == "call_function":
                args, kwargs = self._unified(node, [(one.args, one.kwargs) for one in same])
                self._nodes[node] = self._writing.call(node.target, args, kwargs)
        end = self._unified(same[0], [outputs_of(one) for one in graphs.values()])
        self.graph = self._writing.done(end)

    def _unified(self, node: fx.Node, values: Sequence[Any]) -> Any:
        """One argument of an operation for those in all graphs."""
        first = values[0]
        if isinstance(first, fx.Node) and len({self._place.get(one) for one in values}) == 1:
            return self._nodes[first]
        if isinstance(first, dict):
            return {name: self._unified(node, [one[name] for one in values]) for name in first}
        if isinstance(first, (tuple, list)) and len(set(map(len, values))) == 1:
            return type(first)(self._unified(node, one) for one in zip(*values, strict=True))
        if len(set(map(repr, values))) == 1:
            return first
        if all(type(one) is int for one in values):
            return self._number(dict(zip(self._samples, values, strict=True)))
        raise _refusal(f"the arguments {values} of {node.target}")

    def _constant(self, node: fx.Node, values: Sequence[Tensor]) -> fx.Node:
        """A tensor of the graph's own: the same for every size, or the numbers of examples."""
        first, aten = values[0], torch.ops.aten
        if all(_equal(first, other) for other in values[1:]):
            return self._writing.hold(first)
        found = [_progression(one) for one in values]
        if None in found:
            raise _refusal(f"constants of the shapes {[tuple(one.shape) for one in values]}")
        shape, start, step = self._unified(node, found)
        options = {"dtype": first.dtype, "device": first.device}
        if step == 0:
            return self._call(aten.full.default, shape, start, **options)
        places = self._call(aten.arange.default, shape[0], **options)
        more = self._call(aten.mul.Tensor, places, step)
        return self._call(aten.add.Tensor, more, start)

    def _number(self, found: Mapping[Sample, int]) -> Any:
        """An integer that is linear in each size, as operations on the sizes."""
        steps = {
            some: sum((-1) ** len(some - part) * found[part] for part in found if part <= some)
            for some in found
        }
        total: Any = 0
        for some in found:  # c + a N + b T + d N T, from steps at the smaller sizes
            term: Any = sum(
                steps[more] * prod(-self._sizes[number].smaller for number in more - some)
                for more in found
                if some <= more
            )
            if term != 0:
                for number in some:
                    size = self._counts[number]
                    term = size if term == 1 else self._call(operator.mul, size, term)
                total = term if total == 0 else self._call(operator.add, total, term)
        return total

    def _call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return self._writing.call(function, args, kwargs)


def _operation(node: fx.Node | None) -> str:
    """What an operation is; empty for none."""
    return "" if node is None else str(node.target) if node.op == "call_function" else node.op


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.dtype == other.dtype and torch.equal(one, other))


def _progression(tensor: Tensor) -> tuple[list[int], int, int] | None:
    """The shape, the first number and the step of whole numbers, if there is no more to them."""
    flat = tensor.flatten()
    if len(flat) == 0 or tensor.dtype in (torch.bool, torch.complex64, torch.complex128):
        return None
    start = int(flat[0])
    step = int(flat[1]) - start if tensor.dim() == 1 and len(flat) > 1 else 0
    expected = start + step * torch.arange(len(flat), device=flat.device)
    return ([*tensor.shape], start, step) if bool((flat == expected).all()) else None
