"""An explanation as a graph of PyTorch's operations, without Python between them.

A recorder writes down what one call of a function computes.  Wherever Python reads a value, the
graph gets a check: whether the value would lead to the same decision for other inputs.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from inspect import currentframe
from operator import getitem
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from captum_transformer_lrp.engine.programs.graphs import Like, Writing, weights_of
from captum_transformer_lrp.engine.programs.writes import Sources, memory, without_writing
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.rules.decisions import Decisions

_aten = torch.ops.aten


class Trace(NamedTuple):
    """What one call of a function computes.

    Attributes:
        graph: from tensors to what the function returns, flat, and then for each decision a
            boolean that says whether it holds.  Its operations know the layouts of their results.
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
    function: Callable[..., Any],
    tensors: Sequence[Tensor],
    *,
    chooses_rows: bool = True,
    shares: bool = True,
) -> Trace:
    """The graph of ``function(*tensors)``.

    Args:
        function: returns tensors, in any structure.
        tensors: what it is called with.
        chooses_rows: as of :class:`Decisions`.
        shares: as of :class:`Writing`.

    Raises:
        ExplanationError: for what cannot be written down as a graph.
    """
    recorder = _Recorder(tensors, Writing(shares=shares), chooses_rows=chooses_rows)
    try:
        with recorder, _Methods(recorder):
            found, structure = pytree.tree_flatten(function(*tensors))
    except NotImplementedError as error:
        if not Path(traceback.extract_tb(error.__traceback__)[-1].filename).match("torch/_ops.py"):
            raise  # the model's own
        raise ExplanationError(f"{_NO_GRAPH} ({error})") from error
    depends = recorder.made_from_inputs()
    results = [recorder.node_of(one) for one in found]
    if not depends.issuperset(results):
        raise ExplanationError(_NO_GRAPH)
    checks = {recorder.node_of(one.holds): one.where for one in recorder.made}
    made = {check: where for check, where in checks.items() if check in depends}
    graph = recorder.graph.done([*results, *made])
    found = [one.detach() for one in found]
    return Trace(graph, structure, [*made.values()], found, [*weights_of(graph).values()])


_NO_GRAPH: Final = (
    "the map is not made by PyTorch's operations alone, so there is no graph of them: call "
    "attribute() of the method itself"
)


class _Recorder(Decisions):
    """Writes down the operations of a block, as a graph without writes into tensors.

    Args:
        tensors: the inputs of the graph.
        graph: empty.
        chooses_rows: as of :class:`Decisions`.
    """

    def __init__(self, tensors: Sequence[Tensor], graph: Writing, *, chooses_rows: bool) -> None:
        super().__init__(chooses_rows=chooses_rows)
        self.graph = graph
        self.sources = Sources()
        for number, one in enumerate(tensors):
            self.sources[one] = graph.graph.placeholder(f"input_{number}")

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The operation that computes a tensor; one that none has computed is the graph's own."""
        node = self.sources.get(tensor)
        return self.hold(tensor, tensor) if node is None else node

    def stand_for(self, copy: Tensor, original: Tensor) -> None:
        """A copy that was made aside has the values of its original."""
        self.sources[copy] = self.node_of(original)

    def made_from_inputs(self) -> set[fx.Node]:
        """The operations whose results depend on the inputs."""
        found = set(self.graph.graph.find_nodes(op="placeholder"))
        for node in self.graph.graph.nodes:
            if any(one in found for one in node.all_input_nodes):
                found.add(node)
        return found

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if any(one.__torch_dispatch__ is not Tensor.__torch_dispatch__ for one in types):
            return NotImplemented  # a kind of tensor that computes by operations of its own
        if not self.records:
            return func(*args, **kwargs)
        if func is _aten.index.Tensor:
            places = [part for index in args[1] for part in self._places(index)]
            args = (args[0], places)
        elif _READS.intersection(func.tags):
            return self._read(func, args, kwargs)
        if func._schema.is_mutable:
            return without_writing(func, args, kwargs, self)
        found = func(*args, **kwargs)
        if func is _aten.lift_fresh.default:  # of what nobody else has yet, and may write into
            self.hold(found, found.clone())
        else:
            self.write(func, args, kwargs, found)
        return found

    def write(self, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        """Write down an operation and what it returned."""
        args, kwargs = map_aggregate((tuple(args), kwargs), self._written)
        if func in _IDENTITIES:
            self.sources[found] = args[0]
            return
        node = self.graph.call(_aten.reshape.default if func in _VIEWS else func, args, kwargs)
        node.meta["layout"] = Like.of(found)
        if isinstance(found, Tensor):
            self.sources[found] = node
            return
        for place, one in enumerate(found if isinstance(found, (tuple, list)) else ()):
            if isinstance(one, Tensor):
                self.sources[one] = part = self.graph.call(getitem, (node, place), {})
                part.meta["layout"] = Like.of(one)

    def _written(self, value: Any) -> Any:
        return self.node_of(value) if isinstance(value, Tensor) else value

    def hold(self, tensor: Tensor, value: Tensor) -> fx.Node:
        """Keep the value of a tensor that no operation has computed."""
        self.sources[tensor] = node = self.graph.hold(value)
        if tensor is value:
            self.sources.fixed.add(memory(tensor))
        return node

    def _read(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Compute for the values at hand what has no tensor of a known shape as its result."""
        found = func(*args, **kwargs)
        with self:
            if func in _COMPARISONS:
                self.note(_COMPARISONS[func](*args, **kwargs).all() == found, _reader())
                return found
            for read in pytree.tree_leaves((args, kwargs)):
                if isinstance(read, Tensor):
                    self.note_all(read != 0 if func is _aten.nonzero.default else read)
        return found

    def _places(self, index: Tensor | None) -> Sequence[Tensor | None]:
        """An index as it is; a mask as the indices of what it takes."""
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            return [index]
        with self:
            self.note_all(index)
        return index.nonzero().unbind(1)

    def note_all(self, read: Tensor) -> None:
        """Note that a decision was made by all values of a tensor."""
        read = read.detach()
        known = self.aside(read.clone)
        same = read == known
        if self.aside(lambda: bool(known.isnan().any())):
            same = same | (read.isnan() & known.isnan())
        self.note(same, _reader())


_VIEWS: Final = frozenset({_aten.view.default, _aten._unsafe_view.default})
"""That of another layout in memory may be a copy."""

_IDENTITIES: Final = frozenset({_aten.alias.default, _aten.detach.default})

_READS: Final = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

_COMPARISONS: Final[Mapping[Any, Callable[..., Tensor]]] = {
    _aten.equal.default: torch.eq,
    _aten.allclose.default: torch.isclose,
}


class _Methods(TorchFunctionMode):
    """Notes what reads and sets a tensor's memory without any of PyTorch's operations."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__):
            self._recorder.note_all(args[0])
        result = func(*args, **(kwargs or {}))
        if func == _SET_DATA:
            self._recorder.stand_for(args[0], args[1])
        return result


_SET_DATA: Final = Tensor.data.__set__  # type: ignore[attr-defined]


def _reader() -> str:
    """The line of Python that reads a value: the model's, or else the innermost of this library."""
    found = ""
    for frame, line in traceback.walk_stack(currentframe()):
        path = Path(frame.f_code.co_filename)
        if path == _HERE and frame.f_code.co_name == "traced":
            break
        if path == _HERE or not {"torch", "captum"}.isdisjoint(path.parts):
            continue
        place = f"{'/'.join(path.parts[-3:])}, line {line}"
        if _PACKAGE not in path.parents:
            return place
        found = found or place
    return found


_HERE: Final = Path(__file__)
_PACKAGE: Final = _HERE.parents[2]
