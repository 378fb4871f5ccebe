"""An explanation as a graph of PyTorch's operations, without Python between them.

``make_fx`` writes down what one call of a function computes.  Wherever Python reads a value, the
graph gets a check: whether the value would lead to the same decision for other inputs.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, fx
from torch._functorch.compile_utils import fx_graph_cse
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.rules.decisions import Decisions, noting

_aten = torch.ops.aten


class Trace(NamedTuple):
    """What one call of a function computes.

    Attributes:
        graph: from tensors to what the function returns, flat, and then for each decision a
            boolean that says whether it holds.
        structure: of what the function returns.
        places: where each decision was made.
        found: what the function returned, flat.
        weights: the tensors that the graph has of its own.
    """

    graph: fx.GraphModule
    structure: pytree.TreeSpec
    places: Sequence[str]
    found: Sequence[Tensor]
    weights: Sequence[Tensor]


def traced(
    function: Callable[..., Any], tensors: Sequence[Tensor], *, chooses_rows: bool = True
) -> Trace:
    """The graph of ``function(*tensors)``.

    Args:
        function: returns tensors, in any structure.
        tensors: what it is called with.
        chooses_rows: as of :class:`Decisions`.

    Raises:
        ExplanationError: for what cannot be written down as a graph.
    """
    decisions = Decisions(_aside, chooses_rows=chooses_rows)
    structure: list[pytree.TreeSpec] = []
    found: list[Tensor] = []

    def run(*values: Tensor) -> list[Tensor]:
        with noting(decisions), _MethodReads(decisions), _Reads(decisions):
            results, spec = pytree.tree_flatten(function(*values))
        structure.append(spec)
        found.extend(one.detach() for one in results)
        return [one.detach() for one in (*results, *(one.holds for one in decisions.made))]

    shapes = TracingContext(FakeTensorMode(allow_fallback_kernels=True))  # one mode for all nodes
    try:
        with tracing(shapes):
            graph = make_fx(run, tracing_mode="real")(*tensors)
    except NotImplementedError as error:
        if "fx" not in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts:
            raise  # the model's own
        raise ExplanationError(f"{_NO_GRAPH} ({error})") from error
    outputs = outputs_of(graph)
    results, checks = outputs[: len(found)], outputs[len(found) :]
    depends = _made_from_inputs(graph)
    made = [
        (check, where)
        for check, (_, where) in zip(checks, decisions.made, strict=True)
        if check in depends
    ]
    if not depends.issuperset(results):
        raise ExplanationError(_NO_GRAPH)
    graph.graph.output_node().args = ([*results, *(check for check, _ in made)],)
    graph, places = _simplified(graph, tensors), [where for _, where in made]
    return Trace(graph, structure[0], places, found, [*weights_of(graph).values()])


_NO_GRAPH: Final = (
    "the map is not made by PyTorch's operations alone, so there is no graph of them: call "
    "attribute() of the method itself"
)


def outputs_of(graph: fx.GraphModule) -> list[fx.Node]:
    """The nodes that a graph returns."""
    outputs: Any = graph.graph.output_node().args[0]
    return list(outputs)


def weights_of(graph: fx.GraphModule) -> dict[fx.Node, Tensor]:
    """The tensors that a graph has of its own: the model's weights, and constants."""
    held = {node: getattr(graph, node.target) for node in graph.graph.find_nodes(op="get_attr")}
    return {node: value for node, value in held.items() if isinstance(value, Tensor)}


def _aside(function: Callable[[], Any]) -> Any:
    with disable_proxy_modes_tracing():
        return function()


def _made_from_inputs(graph: fx.GraphModule) -> set[fx.Node]:
    found = set(graph.graph.find_nodes(op="placeholder"))
    for node in graph.graph.nodes:
        if any(one in found for one in node.all_input_nodes):
            found.add(node)
    return found


def _simplified(graph: fx.GraphModule, tensors: Sequence[Tensor]) -> fx.GraphModule:
    """The same graph without writes into tensors, dead code and what is computed twice."""
    for node in graph.graph.nodes:
        if node.target in _VIEWS:  # that of another layout in memory may be a copy
            node.target = _aten.reshape.default
    graph.graph.eliminate_dead_code()
    graph.recompile()
    pure = functionalize(graph, remove="mutations")
    with torch.no_grad():
        found = make_fx(pure, tracing_mode="fake", _allow_non_fake_inputs=True)(*tensors)
    for node in list(found.graph.nodes):
        if node.target in _IDENTITIES:
            node.replace_all_uses_with(node.args[0])
            found.graph.erase_node(node)
    found = fx.GraphModule(found, fx_graph_cse(found.graph))
    found.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    found.recompile()
    for node, value in weights_of(found).items():
        node.meta["val"] = value
    return found


_VIEWS: Final = frozenset({_aten.view.default, _aten._unsafe_view.default})
_IDENTITIES: Final = frozenset({_aten.alias.default, _aten.detach.default})


class _Reads(TorchDispatchMode):
    """Computes for the values at hand what has no tensor of a known shape as its result."""

    def __init__(self, decisions: Decisions) -> None:
        super().__init__()
        self._decisions = decisions

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is _aten.index.Tensor:
            places = [part for index in args[1] for part in self._places(index)]
            return func(args[0], places, *args[2:], **kwargs)
        if not _READS.intersection(func.tags):
            return func(*args, **kwargs)
        found = _aside(lambda: func(*args, **kwargs))
        if func in _COMPARISONS:
            self._decisions.note(_COMPARISONS[func](*args, **kwargs).all() == found, _reader())
            return found
        for read in pytree.tree_leaves((args, kwargs)):
            if isinstance(read, Tensor):
                _note(self._decisions, read != 0 if func is _aten.nonzero.default else read)
        return found

    def _places(self, index: Tensor | None) -> Sequence[Tensor | None]:
        """An index as it is; a mask as the indices of what it takes."""
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            return [index]
        _note(self._decisions, index)
        return _aside(lambda: index.nonzero().unbind(1))


_READS: Final = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

_COMPARISONS: Final[Mapping[Any, Callable[..., Tensor]]] = {
    _aten.equal.default: torch.eq,
    _aten.allclose.default: torch.isclose,
}


class _MethodReads(TorchFunctionMode):
    """Notes methods that read a tensor's memory without any of PyTorch's operations."""

    def __init__(self, decisions: Decisions) -> None:
        super().__init__()
        self._decisions = decisions

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            _note(self._decisions, args[0])
        return func(*args, **(kwargs or {}))


def _note(decisions: Decisions, read: Tensor) -> None:
    """Note that a decision was made by all values of a tensor."""
    read = read.detach()
    known = _aside(read.clone)
    same = read == known
    if bool(_aside(lambda: known.isnan().any())):
        same = same | (read.isnan() & known.isnan())
    decisions.note(same, _reader())


def _reader() -> str:
    """The line of Python that reads a value: the model's, or else the innermost of this library."""
    found = ""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path == _HERE and frame.name == "run":
            break
        if path == _HERE or "torch" in path.parts:
            continue
        place = f"{'/'.join(path.parts[-3:])}, line {frame.lineno}"
        if _PACKAGE not in path.parents:
            return place
        found = found or place
    return found


_HERE: Final = Path(__file__)
_PACKAGE: Final = _HERE.parents[2]
