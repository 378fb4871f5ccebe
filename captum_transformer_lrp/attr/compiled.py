"""An attribution method without Python between its operations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

import torch
from captum.attr._utils.attribution import Attribution
from torch import Tensor
from torch.utils import _pytree as pytree

from captum_transformer_lrp.attr.arguments import captum_method
from captum_transformer_lrp.attr.given import Given
from captum_transformer_lrp.attr.targets import checked_target
from captum_transformer_lrp.engine.programs.export import check_name, save, self_checking
from captum_transformer_lrp.engine.programs.graphs import nudged
from captum_transformer_lrp.engine.programs.regions import Program, as_it_is, by_inductor
from captum_transformer_lrp.engine.programs.replays import Replays
from captum_transformer_lrp.engine.programs.sizes import Size, of_any_size, samples
from captum_transformer_lrp.engine.programs.trace import Trace, traced
from captum_transformer_lrp.engine.programs.weights import Weights
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.rules.decisions import ROWS

MOST_SHAPES: Final = 8
"""So many shapes of inputs are kept; those that came first are forgotten."""

Backend: TypeAlias = Literal["inductor", "eager"]


class _Recorded(NamedTuple):
    """One recorded explanation.

    Attributes:
        trace: its graph.
        run: computes the graph.
        output: a tensor like the model's output, without values.
        weights: those of the graph and of the model.
    """

    trace: Trace
    run: Callable[..., Sequence[Tensor]]
    output: Tensor
    weights: Weights

    def results(self, tensors: Sequence[Tensor], index: Tensor) -> tuple[list[Tensor], str]:
        """What the graph returns, and where a decision would be another one, if any would."""
        with torch.no_grad():
            found = self.run(*tensors, index)
        count = self.trace.structure.num_leaves
        checks = list(found[count:])
        if checks and not bool(torch.stack(checks).all()):
            return [], next(
                one for one, holds in zip(self.trace.places, checks, strict=True) if not holds
            )
        return list(found[:count]), ""


class CompiledAttribution(Attribution):
    """An attribution method that computes its maps without Python between the operations.

    ``attribution.compile(example_inputs)`` makes one; see
    :meth:`TransformerAttribution.compile <captum_transformer_lrp.TransformerAttribution.compile>`.
    An object of this class is called like ``attribute``, and Captum's ``NoiseTunnel`` takes it.

    The graph of an explanation has no branches.  Wherever Python reads a value while it is
    recorded, such as in the check for NaN, the graph gets a check of its own: whether the value
    leads to the same decision.  For inputs where it does not, the method itself explains them, and
    a warning says which line decides otherwise.

    A call for inputs of another shape, or after the weights have changed, records again; eight
    shapes are kept.  The absolute values of weights are kept, too, where the rules need them.  What
    else was changed in the model since, such as a flag that Python reads, is not seen.

    On a GPU the program is a CUDA graph if all of it runs there; else a warning says why not.

    Args:
        attribution: the method.
        example: inputs and additional arguments, whose shapes are recorded at once.
        backend: as in ``compile``.
        options: of the method's ``attribute``, such as the granularity.
    """

    def __init__(
        self,
        attribution: Any,
        example: tuple[Any, Any],
        backend: Backend = "inductor",
        options: Mapping[str, Any] = {},
    ) -> None:
        if backend not in get_args(Backend):
            raise ValueError(f"backend must be one of {get_args(Backend)}, found {backend!r}")
        super().__init__(attribution.forward_func)
        self.attribution = attribution
        self._backend: Backend = backend
        self._options = dict(options)
        self._chooses_rows = True
        self._recorded: dict[Any, _Recorded] = {}
        self._replays = Replays()
        self._example = example
        self._for_shapes(Given.of(*example))

    def has_convergence_delta(self) -> bool:
        """False: a compiled explanation has its maps alone."""
        return False

    def __call__(self, inputs: Any, target: Any = None, additional_forward_args: Any = None) -> Any:
        """Explain one target for each example of a batch, as :meth:`attribute` does."""
        return self.attribute(inputs, target, additional_forward_args)

    @captum_method
    def attribute(
        self, inputs: Any, target: Any = None, additional_forward_args: Any = None
    ) -> Any:
        """Explain one target for each example of a batch.

        Takes and returns what ``attribute`` of the method does, but for its options, which were
        given to ``compile``.  The method itself explains a target that is a function.
        """
        if callable(target):
            return self._by_method(target, inputs, additional_forward_args)
        given = Given.of(inputs, additional_forward_args)
        recorded = self._for_shapes(given)
        index = _flat_index(recorded.output, target).to(given.tensors[0].device)
        results, differs = recorded.results(given.tensors, index)
        if differs == ROWS:
            self._chooses_rows = False
            self._recorded.clear()
            return self.attribute(inputs, target, additional_forward_args)
        if differs:
            warnings.warn(
                f"explained without the compiled graph: {differs} decides otherwise for these "
                "inputs than for those that the graph was recorded with",
                stacklevel=3,
            )
            return self._by_method(target, inputs, additional_forward_args)
        return pytree.tree_unflatten(results, recorded.trace.structure)

    def _for_shapes(self, given: Given) -> _Recorded:
        """The recorded explanation for arguments of these shapes."""
        key = given.key
        found = self._recorded.get(key)
        if found is None or found.weights.changed():
            self._recorded.pop(key, None)
            self._recorded[key] = found = self._record(given)
            if len(self._recorded) > MOST_SHAPES:
                del self._recorded[next(iter(self._recorded))]
        return found

    def _record(self, given: Given) -> _Recorded:
        """Record an explanation, and make sure that its program computes what the method does."""
        inductor = self._backend == "inductor"
        with torch.inference_mode(False):
            trace, output, tensors = self._traced(given, chooses_rows=self._chooses_rows)
            compiler = by_inductor if inductor else as_it_is
            program = Program(trace.graph, tensors, compiler, chooses_products=inductor)
            run = self._replays.of(program, tensors)
            weights = Weights(self.forward_func, trace.weights)
            recorded = _Recorded(trace, run, output, weights)
            # What came into the graph as a constant shows with other inputs.
            if self._differs(recorded, given.flipped()) and (
                differs := self._differs(recorded, given, trace.found)
            ):
                raise ExplanationError(
                    f"{differs} decides otherwise when the same is computed again, so no graph "
                    "says what it decides: call attribute() of the method itself"
                )
        return recorded

    def _traced(self, given: Given, **options: bool) -> tuple[Trace, Tensor, list[Tensor]]:
        """The graph of an explanation, a tensor like the model's output, and its inputs."""
        outputs: list[Tensor] = []

        def explained(*values: Tensor) -> Any:
            *tensors, index = values

            def chosen(output: Tensor) -> Tensor:
                outputs.append(output)
                return _values_at(output, index)

            return self._by_method(chosen, *given.holding(tensors))

        tensors = [one.clone() if one.is_inference() else one for one in given.tensors]
        tensors.append(_no_class(given))
        trace = traced(explained, tensors, **options)
        return trace, torch.empty_like(outputs[0], device="meta"), tensors

    def _differs(
        self, recorded: _Recorded, given: Given, expected: Sequence[Tensor] | None = None
    ) -> str:
        """Where a decision would be another one; if none, raise for another map than expected."""
        results, differs = recorded.results(given.tensors, _no_class(given))
        if differs:
            return differs
        if expected is None:
            expected = self._predicted(given)
        if not _close(results, expected):
            graph, tensors = recorded.trace.graph, [*given.tensors, _no_class(given)]
            with torch.no_grad():
                uncompiled, other = (
                    one(*tensors)[: len(results)] for one in (graph, nudged(graph))
                )
            moved = [8 * float((one - two).abs().max())
                     for one, two in zip(uncompiled, other, strict=True)]  # fmt: skip
            if not (_close(uncompiled, expected) and _close(results, expected, moved)):
                raise ExplanationError(
                    "the recorded graph returns another map than the method for inputs of the "
                    f"shapes {[tuple(one.shape) for one in given.tensors]}: call attribute() of "
                    'the method itself, or try backend="eager", or export the sizes of the '
                    "example alone"
                )
        return ""

    def _predicted(self, given: Given) -> list[Tensor]:
        """What the method says of the predicted classes."""
        target = partial(_values_at, index=_no_class(given))
        return pytree.tree_leaves(self._by_method(target, *given.holding(given.tensors)))

    def export(
        self,
        path: str | PathLike[str],
        *,
        dynamic_batch: bool = True,
        dynamic_tokens: bool = False,
    ) -> None:
        """Write the explanation into a file.

        The file's program takes the input's tensors, then the tensors among the additional
        arguments, then the target: for each example the class, or −1 for the predicted one, (N,)
        int64.  For an output of more than two dimensions it is the place in the flattened output of
        an example.  It returns attributions like :meth:`attribute`, of the weights as they are
        now, and NaN for inputs that :meth:`attribute` would explain without the graph.

        Args:
            path: a name in ``.pt2`` for a program that ``torch.export.load(path).module()`` runs
                with PyTorch alone, or in ``.onnx`` for ONNX, which needs the package onnxscript.
            dynamic_batch: whether the batch may have any size, or that of the example inputs.
            dynamic_tokens: whether texts may have any length up to that of the example.  The inputs
                are token ids (N, T) or embeddings (N, T, D) then, of three tokens or more.

        Raises:
            ValueError: for another name, and for inputs without tokens.
            ImportError: for ``.onnx``, where onnxscript is missing.
            ExplanationError: for an explanation that computes otherwise for another size.
        """
        given = Given.of(*self._example)
        check_name(Path(path))
        shape = given.tensors[0].shape
        if dynamic_tokens and (len(shape) not in (2, 3) or shape[1] < 3):
            raise ValueError(
                "dynamic_tokens needs token ids (N, T) or embeddings (N, T, D) of three tokens or "
                f"more, found an input of shape {tuple(shape)}"
            )
        axes = given.axes(dynamic_batch, dynamic_tokens)
        sizes = [Size(0, 0, 2)] * dynamic_batch + [Size(0, 1, shape[1] - 1)] * dynamic_tokens
        with torch.inference_mode(False):
            graphs = {}
            for sample in samples(sizes):
                some = given.with_sizes(axes, [one.smaller + (number in sample)
                                               for number, one in enumerate(sizes)])  # fmt: skip
                trace, output, tensors = self._traced(some, chooses_rows=False, shares=not sizes)
                graphs[sample] = trace.graph
            graph = of_any_size(graphs, sizes)
            recorded = _Recorded(trace._replace(graph=graph), graph, output, Weights(None, ()))
            # A size of two graphs says nothing of a third: T // 9 is the same for many.
            lengths = (shape[1], shape[1] // 2, shape[1] // 2 + 1, 2) if dynamic_tokens else (0, 0)
            others = [
                given.with_sizes(axes, [length if one.dim else batch for one in sizes])
                for batch, length in zip((1, 4, 1, 2), lengths, strict=False)
            ]
            differs = [self._differs(recorded, one.flipped()) for one in others]
            differs = [where and self._differs(recorded, one)
                       for where, one in zip(differs, others, strict=True)]  # fmt: skip
            if all(differs):
                raise ExplanationError(
                    f"{differs[0]} decides otherwise for inputs of another size: export the sizes "
                    "of the example alone"
                )
            index_axes = {0: 0} if dynamic_batch else {}
            explanation = self_checking(graph, trace.structure.num_leaves)
            longest = shape[1] if dynamic_tokens else 0
            save(explanation, tensors, [*axes, index_axes], longest, Path(path))

    def _by_method(self, target: Any, inputs: Any, additional: Any) -> Any:
        return self.attribution.attribute(inputs, target, additional, **self._options)


def _close(
    found: Sequence[Tensor], expected: Sequence[Tensor], rounding: Sequence[float] | None = None
) -> bool:
    """Whether maps are the same, but for a thousandth of the largest entry and for rounding."""
    return all(
        one.shape == other.shape
        and bool(((one - other).abs() <= 1e-3 * other.abs().max() + more).all())
        for one, other, more in zip(found, expected, rounding or [0.0] * len(found), strict=True)
    )


def _no_class(given: Given) -> Tensor:
    """The index that stands for the predicted class, for each example."""
    first = given.tensors[0]
    return torch.full((len(first),), -1, device=first.device)


def _values_at(output: Tensor, index: Tensor) -> Tensor:
    """The values (N,) of an output at flat indices; the largest where an index is −1."""
    if output.dim() == 1:
        return output
    flat = output.flatten(1)
    places = torch.where(index < 0, flat.detach().argmax(1), index)
    return flat.gather(1, places.unsqueeze(1)).squeeze(1)


def _flat_index(output: Tensor, target: Any) -> Tensor:
    """For each example the target's place in its flat output, −1 for the predicted class."""
    count, *sizes = output.shape
    if target is None and len(sizes) < 2:
        return torch.full((count,), -1)
    strides = torch.empty(sizes, device="meta").stride()
    return torch.tensor([
        sum(place % size * step for place, size, step in zip(one, sizes, strides, strict=True))
        for one in checked_target(output, target)
    ])  # fmt: skip
