"""Graphs of PyTorch's operations: what they return, what they hold, how they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx._lazy_graph_module import _LazyGraphModule


def graph_module(held: dict[str, Tensor], graph: fx.Graph) -> fx.GraphModule:
    """A graph and the tensors that it holds; its Python is written when it is first called."""
    return _LazyGraphModule(held, graph)


def outputs_of(graph: fx.GraphModule) -> list[fx.Node]:
    """The nodes that a graph returns."""
    outputs: Any = graph.graph.output_node().args[0]
    return list(outputs)


def weights_of(graph: fx.GraphModule) -> dict[fx.Node, Tensor]:
    """The tensors that a graph has of its own: the model's weights, and constants."""
    return {node: getattr(graph, node.target) for node in graph.graph.find_nodes(op="get_attr")}


class Like(NamedTuple):
    """The layout of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, value: Any) -> Any:
        """Of a tensor, or of each of several."""
        if isinstance(value, (tuple, list)):
            return tuple(map(cls.of, value))
        if not isinstance(value, Tensor):
            return value
        return cls(tuple(value.shape), value.stride(), value.dtype, value.device)

    def tensor(self) -> Tensor:
        """A tensor of this layout."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)

    def holding(self, value: Tensor) -> Tensor:
        """A tensor of this layout with some values: the one that has them, if that is its own."""
        stride = value.stride()
        if stride == self.stride or all(
            size < 2 or one == other
            for size, one, other in zip(self.shape, stride, self.stride, strict=True)
        ):
            return value
        return self.tensor().copy_(value)


def copied(graph: fx.GraphModule, change: Callable[[Tensor], Tensor]) -> fx.GraphModule:
    """The same graph with changed tensors of its own."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph.graph, {}))
    held = {str(node.target): change(value) for node, value in weights_of(graph).items()}
    return graph_module(held, copy)


def nudged(graph: fx.GraphModule) -> fx.GraphModule:
    """The same graph with weights that differ in the last bit."""
    return copied(
        graph,
        lambda one: one.detach().nextafter(one.new_zeros(())) if one.is_floating_point() else one,
    )


class Writing:
    """A graph that is being written.

    Args:
        shares: whether what is computed twice gets one node.
    """

    def __init__(self, *, shares: bool = True) -> None:
        self.graph = fx.Graph()
        self._shares = shares
        self._held: dict[str, Tensor] = {}
        self._calls: dict[Any, fx.Node] = {}

    def hold(self, tensor: Tensor) -> fx.Node:
        """A node for a tensor of the graph's own."""
        name = f"tensor_{len(self._held)}"
        self._held[name] = tensor
        return self.graph.get_attr(name)

    def call(self, func: Any, args: Any, kwargs: Any) -> fx.Node:
        """The node of an operation."""
        random = torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())
        if random or not self._shares:
            return self.graph.call_function(func, args, kwargs)
        key = func, repr((args, kwargs))  # 1, 1.0 and True are equal, but give other types
        if key not in self._calls:
            self._calls[key] = self.graph.call_function(func, args, kwargs)
        return self._calls[key]

    def done(self, outputs: Any) -> fx.GraphModule:
        """The graph of these outputs, without dead code."""
        self.graph.output(tuple(outputs))
        self.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        return graph_module(self._held, self.graph)
