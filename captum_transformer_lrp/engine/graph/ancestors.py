"""What a tensor on the tape has been made from, read from autograd's graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from captum_transformer_lrp.engine.graph.op import NoPhase
from captum_transformer_lrp.engine.graph.role import Flow, Sum
from captum_transformer_lrp.engine.graph.tape import Tape

Edge: TypeAlias = tuple[Any, int]
"""A node of autograd's graph, or a leaf, and which of its outputs.

Nodes and tensors hash by identity, so a set tells edges apart, and holds them.  It must: PyTorch
makes Python's object of a node anew for each question, unless one is alive still.
"""


def edge_of(tensor: Tensor) -> Edge:
    """Where a tensor lies in the graph; a leaf is itself."""
    return (tensor, 0) if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)


def edges_below(tensor: Tensor, stops: Iterable[Tensor] = ()) -> Iterator[Edge]:
    """Everything that a tensor was made from, itself included, but nothing below ``stops``."""
    ends = set(map(edge_of, stops))
    waiting, seen = [edge_of(tensor)], set[Edge]()
    while waiting:
        edge = waiting.pop()
        if edge in seen:
            continue
        seen.add(edge)
        yield edge
        if edge not in ends and not isinstance(edge[0], Tensor):
            waiting += _inputs(edge[0])


def made_from(tensor: Tensor, others: Sequence[Tensor]) -> list[bool]:
    """Which of several tensors one was made from."""
    below = set(edges_below(tensor))
    return [edge_of(one) in below for one in others]


def is_made_from(tensor: Tensor, other: Tensor) -> bool:
    """Whether one tensor was made from the other, or is it."""
    end = {edge_of(other)}
    return any(edge in end for edge in edges_below(tensor, [other]))


def is_made_from_alone(tensor: Tensor, other: Tensor) -> bool:
    """Whether all that one tensor knows of the inputs came by the other."""
    end = edge_of(other)
    below = set(edges_below(tensor, [other]))
    leaves = {edge for edge in below if isinstance(edge[0], Tensor)}
    return end in below and leaves <= {end}


def is_on_tape(tape: Tape, tensor: Tensor) -> bool:
    """Whether a tensor was made from anything on the tape."""
    return any(
        tape.mark(one) is not None if isinstance(one, Tensor) else hasattr(one, "op")
        for one, _ in edges_below(tensor)
    )


def before_copies(tape: Tape, stream: Tensor, branch: Tensor) -> Tensor:
    """What skips a branch, before it was copied, moved or scaled: what the branch is made from."""
    found: Tensor | None = stream
    if tape.made_of.sources.get(stream) is None:
        return stream
    while (source := tape.made_of.sources.get(branch)) is not None:
        branch = source  # a part of what both were joined in is made from the one alone
    while found is not None and not is_made_from(branch, found):
        found = tape.made_of.sources.get(found)
    return stream if found is None else found


def is_of_features(tape: Tape, tensor: Tensor, axis: int) -> bool:
    """Whether along an axis lie the features of a place, as the layer has made them.

    If they have been moved since, the derivative of the moves tells where a line of the axis lay.
    """
    mark = tape.mark(tensor)
    if mark is not None and mark.features is not None:
        return (mark.features - axis) % tensor.dim() == 0
    line = torch.zeros_like(tensor)  # through the middle: at the ends are class tokens
    place: list[Any] = [size // 2 for size in tensor.shape]
    place[axis] = slice(None)
    line[tuple(place)] = 1
    with tape.walking(NoPhase()):
        return _is_line_of_features(edge_of(tensor), tensor, line)


def _is_line_of_features(start: Edge, output: Tensor | GradientEdge, line: Tensor) -> bool:
    for edge in _made_by_calls(start):
        found: Tensor | None = line
        root = GradientEdge(*edge)
        if edge not in {start}:
            (found,) = torch.autograd.grad(output, root, line, retain_graph=True, allow_unused=True)
        if found is None or not bool(found.any()):
            continue
        long = [n for n in range(found.dim()) if len(found.nonzero()[:, n].unique()) > 1]
        op = edge[0].op
        features, keeps_places = op.mark.features, op.role in (Flow.KEEP, Flow.MASKED)
        if len(long) != 1 or not (features is not None or keeps_places or isinstance(op.role, Sum)):
            return False
        if features is not None:
            return bool(long[0] == features % found.dim())
        first = op.has_graph + op.has_pixels + 1
        for below in edge[0].next_functions[first : first + op.inputs]:
            if below[0] is not None and not hasattr(below[0], "variable"):
                return _is_line_of_features(below, GradientEdge(*below), found)
    return False


def _made_by_calls(start: Edge) -> Iterator[Edge]:
    """The calls on the tape whose results a tensor rearranges."""
    waiting = [start]
    while waiting:
        edge = waiting.pop()
        if isinstance(edge[0], Tensor):
            continue
        if hasattr(edge[0], "op"):
            yield edge
        else:
            waiting += _inputs(edge[0])


def _inputs(node: Any) -> Iterator[Edge]:
    """What a node was called on; of the tape's own ones without what mass may go to besides."""
    op = getattr(node, "op", None)
    left_out = int(op.has_graph) if op is not None and op.has_pixels else -1
    for place, (below, number) in enumerate(node.next_functions):
        if below is None or place == left_out:
            continue
        leaf = getattr(below, "variable", None)
        yield (below, number) if leaf is None else (leaf, 0)
