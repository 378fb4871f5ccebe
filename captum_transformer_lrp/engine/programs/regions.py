"""The parts of a graph, those that repeat found, so that one compilation serves all copies.

A Transformer does the same in every block, forward and in each backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import getitem
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_leaves

from captum_transformer_lrp.engine.programs.graphs import Like, outputs_of, weights_of
from captum_transformer_lrp.engine.programs.products import choose_products
from captum_transformer_lrp.errors import ExplanationError

FEWEST_NODES: Final = 40
"""A repetition is worth finding that saves the compilation of so many operations."""

MOST_NODES: Final = 2500
"""So many operations are compiled together, repeated or not.  That takes a minute at most.
It saves a small model a fifth of each call: its parts take as long to call as to compute."""

Function = Callable[..., Sequence[Tensor]]
Compiler = Callable[[fx.GraphModule, Sequence[Tensor]], Function]
"""Makes a function of a graph, given tensors like its inputs."""


class Region(NamedTuple):
    """Operations that follow each other.

    Attributes:
        nodes: these.
        inputs: what they are computed from, in the order of its first use.
        outputs: those of them that others use.
        pattern: what is the same for regions that one compiled function serves.
    """

    nodes: Sequence[fx.Node]
    inputs: Sequence[fx.Node]
    outputs: Sequence[int]
    pattern: Any


@dataclass
class _Step:
    """One region, computed by a function.

    Attributes:
        function: from inputs to outputs.
        inputs: the places of the values that it takes.
        outputs: where it puts what it makes.
        layouts: of these.
        used_up: the places of what nobody needs any more.
        others: the numbers of outputs that the function returns in another layout, once it has run.
    """

    function: Function
    inputs: Sequence[int]
    outputs: Sequence[int]
    layouts: Sequence[Like]
    used_up: Sequence[int]
    others: Sequence[int] | None = None

    def run(self, values: list[Any]) -> None:
        """Take inputs from among the values, and put outputs there."""
        found = list(self.function(*[values[place] for place in self.inputs]))
        if self.others is None:
            made = enumerate(zip(found, self.layouts, strict=True))
            self.others = [number for number, (one, like) in made if like.holding(one) is not one]
        for number in self.others:
            found[number] = self.layouts[number].holding(found[number])
        for place, one in zip(self.outputs, found, strict=True):
            values[place] = one
        for place in self.used_up:
            values[place] = None


class Program:
    """A graph, computed region by region; what depends on weights alone is computed once.

    Args:
        graph: has results and decisions as its outputs; its operations know the layouts of their
            results.
        tensors: inputs like those to come.
        compiler: makes a function of each kind of region.
        chooses_products: whether another library than PyTorch's may multiply.

    Attributes:
        devices: where its inputs are, and where it computes.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        tensors: Sequence[Tensor],
        compiler: Compiler,
        *,
        chooses_products: bool = False,
    ) -> None:
        inputs, outputs = graph.graph.find_nodes(op="placeholder"), outputs_of(graph)
        for node, tensor in zip(inputs, tensors, strict=True):
            node.meta["layout"] = Like.of(tensor)
        known = _known(graph)
        computed = [one for one in graph.graph.nodes
                    if one.op == "call_function" and one not in known]  # fmt: skip
        layouts = [one.meta["layout"] for one in [*inputs, *computed]]
        self.devices = {one for one in tree_leaves(layouts) if isinstance(one, torch.device)}
        if len(self.devices) == 1:
            _move(known, *self.devices)
        regions = list(_regions(computed))
        used = {*outputs, *(node for one in regions for node in one.inputs)}
        constants = [node for node in known if node in used]
        self._constants = [known[node] for node in constants]
        alike: dict[Any, list[Region]] = {}
        for region in regions:
            alike.setdefault(region.pattern, []).append(region)
        functions = {}
        for pattern, copies in alike.items():
            made = sorted({place for one in copies for place in one.outputs})
            part, like = _graph_of(copies[0], made)
            if chooses_products:
                choose_products(part)
            functions[pattern] = compiler(fx.GraphModule({}, part), like), made
        last = {node: region for region in regions for node in region.inputs}
        kept = {*outputs, *constants, *inputs}
        places = {node: place for place, node in enumerate([*inputs, *constants])}

        def places_of(nodes: Sequence[fx.Node]) -> list[int]:
            return [places.setdefault(node, len(places)) for node in nodes]

        self._steps = []
        for region in regions:
            function, numbers = functions[region.pattern]
            returned = [region.nodes[number] for number in numbers]
            done = [one for one in region.inputs if last[one] is region and one not in kept]
            done += [one for one in returned if one not in last and one not in kept]
            layouts = [node.meta["layout"] for node in returned]
            self._steps.append(_Step(
                function, places_of(region.inputs), places_of(returned), layouts, places_of(done)
            ))  # fmt: skip
        self._outputs = places_of(outputs)
        self._computed = [None] * (len(places) - len(inputs) - len(constants))

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The outputs of the graph for tensors like those that it was recorded with."""
        values: list[Any] = [*tensors, *self._constants, *self._computed]
        for step in self._steps:
            step.run(values)
        return [values[place] for place in self._outputs]


def _known(graph: fx.GraphModule) -> dict[fx.Node, Any]:
    """The values of all that does not depend on inputs."""
    known: dict[fx.Node, Any] = {**weights_of(graph)}
    with torch.no_grad():
        for node in graph.graph.nodes:
            if node.op == "call_function" and known.keys() >= {*node.all_input_nodes}:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
                known[node] = node.target(*args, **kwargs)
    for node, value in known.items():
        node.meta["layout"] = Like.of(value)
    return known


def _move(known: dict[fx.Node, Any], device: torch.device) -> None:
    """Bring constants to where the rest is, once: operations would do it in each call."""
    for node, value in known.items():
        if isinstance(value, Tensor) and value.device != device:
            known[node] = value.to(device)
            node.meta["layout"] = Like.of(known[node])


def _regions(nodes: Sequence[fx.Node]) -> Iterator[Region]:
    """Operations in parts: where there are many, cut where something begins that is repeated."""
    places = {node: place for place, node in enumerate(nodes)}
    numbers: dict[Any, int] = {}
    kinds = np.array([numbers.setdefault(_kind(node), len(numbers)) for node in nodes])
    alive = np.zeros(len(nodes) + 1, dtype=int)  # how much is in use, before each operation
    for node, place in places.items():
        users = [places.get(one, len(nodes)) for one in node.users]
        alive[place + 1 : max(users, default=place) + 1] += 1
    cuts = {0, len(nodes)}
    repeated = _repetitions(kinds, alive, 0, len(nodes)) if len(nodes) > MOST_NODES else ()
    for cut in repeated:
        while cut < len(nodes) and nodes[cut].target is getitem:
            cut += 1  # what an operation returns several of stays together
        cuts.add(cut)
    for start, end in pairwise(sorted(cuts)):
        yield _region(nodes, places, start, end)


def _repetitions(kinds: Any, alive: Any, start: int, end: int) -> list[int]:
    """Where to cut between two places, so that as many operations as can be are repeated ones."""
    of_these, best = kinds[start:end], (FEWEST_NODES - 1, 0, 0, 0, 0)
    for period in range(1, len(of_these) // 2 + 1):
        same = np.concatenate([[False], of_these[:-period] == of_these[period:], [False]])
        begins, ends = np.flatnonzero(np.diff(same.astype(np.int8))).reshape(-1, 2).T
        if len(begins):
            longest = int((ends - begins).argmax())
            length = int(ends[longest] - begins[longest])
            copies = length // period + 1
            if (copies - 1) * period > best[0]:
                best = (copies - 1) * period, period, copies, int(begins[longest]), length
    saved, period, copies, first, length = best
    if not period:
        return []
    ways = range(start + first, start + first + length - saved + 1)
    first = min(ways, key=lambda way: sum(alive[way : way + saved + period + 1 : period]))
    cuts = [first + copy * period for copy in range(copies + 1)]
    return [
        *_repetitions(kinds, alive, start, first),
        *cuts,
        *_repetitions(kinds, alive, cuts[-1], end),
    ]


def _kind(node: fx.Node) -> Any:
    """What an operation is, whatever it is computed from."""
    settings = fx.node.map_arg((node.args, node.kwargs), lambda _: None)
    return str(node.target), repr(settings), node.meta["layout"]


def _region(nodes: Sequence[fx.Node], places: dict[fx.Node, int], start: int, end: int) -> Region:
    inputs: dict[fx.Node, int] = {}

    def name(node: fx.Node) -> Any:
        place = places.get(node, -1)
        return ("own", place - start) if place >= start else inputs.setdefault(node, len(inputs))

    inside = nodes[start:end]
    calls = tuple(
        (str(node.target), repr(fx.node.map_arg((node.args, node.kwargs), name))) for node in inside
    )
    outputs = [
        place
        for place, node in enumerate(inside)
        if any(places.get(user, end) >= end for user in node.users)
    ]
    return Region(
        inside, list(inputs), outputs, (calls, tuple(one.meta["layout"] for one in inputs))
    )


def _graph_of(region: Region, outputs: Sequence[int]) -> tuple[fx.Graph, list[Tensor]]:
    """A region as a graph of its own, and tensors like its inputs."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    like = []
    for number, node in enumerate(region.inputs):
        copies[node] = graph.placeholder(f"input_{number}")
        copies[node].meta["layout"] = node.meta["layout"]
        like.append(node.meta["layout"].tensor())
    for node in region.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[region.nodes[place]] for place in outputs))
    return graph, like


def by_inductor(graph: fx.GraphModule, like: Sequence[Tensor]) -> Function:
    """A graph as machine code, for inputs like some tensors; PyTorch keeps the code on disk.

    Raises:
        ExplanationError: without a C++ compiler.
    """
    from torch._inductor import compile as compiled
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    shapes = FakeTensorMode(shape_env=ShapeEnv())  # without one, PyTorch looks for no code on disk
    given: list[Any] = [shapes.from_tensor(one, static_shapes=True) for one in like]
    try:
        with torch.no_grad(), tracing(TracingContext(shapes)):
            found: Function = compiled(graph, given)
    except (InvalidCxxCompiler, InductorError) as error:
        if InvalidCxxCompiler.__name__ not in f"{type(error).__name__}: {error}":
            raise
        raise ExplanationError(f'{error}.  Install one, or compile with backend="eager"') from error
    return found


def as_it_is(graph: fx.GraphModule, like: Sequence[Tensor]) -> Function:
    """A graph whose operations are called one by one."""
    return graph
