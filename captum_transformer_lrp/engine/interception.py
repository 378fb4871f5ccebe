"""Watching a model's forward pass: every PyTorch call that it makes comes by here.

:class:`Interception` is a ``TorchFunctionMode``.  While it is active, in its own thread only,
PyTorch offers it each call — ``nn.Linear`` and ``a + b`` alike, whoever wrote the module — and it
makes the call, puts a switch behind it (see :mod:`captum_transformer_lrp.engine.tape`) and notes
the provenance of the result.  The model is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, is_not
from typing import Any

import torch
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from captum_transformer_lrp.engine import flows
from captum_transformer_lrp.engine.arguments import (
    Args,
    Function,
    Kwargs,
    first_tensor,
    node_name,
    replace_tensors,
    tensors_in,
    title,
    with_first,
)
from captum_transformer_lrp.engine.books import report_constants
from captum_transformer_lrp.engine.checks import check_model
from captum_transformer_lrp.engine.custom import CustomCall, CustomCalls, bridged
from captum_transformer_lrp.engine.eager import as_written
from captum_transformer_lrp.engine.frames import calling_modules, module_name
from captum_transformer_lrp.engine.marks import (
    Mark,
    broadcast_examples,
    merged,
    numbered,
    read_examples,
    rearranged_examples,
    unknown_examples,
)
from captum_transformer_lrp.engine.structure import (
    CASTS,
    COPIES,
    IGNORED,
    JOINS,
    PERMUTATIONS,
    REARRANGEMENTS,
)
from captum_transformer_lrp.engine.tape import Phase, Tape
from captum_transformer_lrp.engine.tensor_table import TensorTable
from captum_transformer_lrp.engine.token_ids import ELEMENTWISE, TokenIds, moved
from captum_transformer_lrp.engine.units import Unit, Units, is_single_operation
from captum_transformer_lrp.errors import ExplanationError, UnsupportedOperationError
from captum_transformer_lrp.rules import Rule, TaylorRule
from captum_transformer_lrp.rules.call import AutogradKernel, Examples, Kernel
from captum_transformer_lrp.rules.registry import CONVOLUTIONS, FUNCTION_RULES
from captum_transformer_lrp.rules.spellings import in_place_spellings, spelled

Handler = Callable[["Interception", Function, Args, Kwargs], Any]

HANDLERS: dict[Function, Handler] = {}
"""What to do with a call of a given function, for calls that take an activation."""

HIGHER_ORDER: dict[str, Handler] = {}
"""The same for PyTorch's higher-order operators, by name."""

IN_PLACE: dict[Function, Function] = dict(in_place_spellings())


def handles(*functions: Function) -> Callable[[Handler], Handler]:
    """Decorator: enter a handler for all of ``functions``."""

    def enter(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return enter


class Interception(TorchFunctionMode):
    """Makes a model's calls and writes them on a tape.

    Args:
        tape: where to.
        model: the explained model, for names and for the rules that its modules carry; None if it
            is a plain function.
        examples: number of examples in the batch.
        function_rules: rules that replace the registry's, by function.
        class_rules: rules of module classes.
        module_rules: rules of modules, by name.
        strict: whether an operation without a rule is an error, or follows eq. 2.
        pixel_rule: the rule of a linear operation that reads the inputs themselves.
        keeps_readout: whether the calls after the last skip connection are kept.
        device_type: where the model runs, ``"cpu"`` or ``"cuda"``.
        dtype: what to compute in, unless the model's own is more precise.
    """

    def __init__(
        self,
        tape: Tape,
        model: nn.Module | None,
        examples: int,
        function_rules: Mapping[Function, PropagationRule],
        class_rules: dict[type[nn.Module], PropagationRule],
        *,
        module_rules: Mapping[str, PropagationRule] | None = None,
        strict: bool = True,
        pixel_rule: Rule | None = None,
        keeps_readout: bool = False,
        device_type: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.tape = tape
        self.examples = Examples(examples)
        self.token_ids: dict[int, TokenIds] = {}
        self.token_leaves: list[tuple[int, Tensor, Tensor]] = []
        self._strict = strict
        self._pixel_rule = pixel_rule
        self._keeps_readout = keeps_readout
        self._is_calling = False
        self._rules = function_rules
        self._units = Units(model, class_rules, module_rules)
        self._names: dict[int, str] = {}
        self._state: dict[int, str] = {}
        self._constants: TensorTable[str] = TensorTable()
        self._repeated: TensorTable[bool] = TensorTable()
        self._bounded: TensorTable[Tensor] = TensorTable()
        self._replaced: dict[int, tuple[Tensor, Tensor]] = {}
        self._overwritten: set[int] = set()
        self._custom_calls = CustomCalls()
        self._custom_results: dict[int, CustomCall] = {}
        self._device_type = device_type
        self._dtype = dtype
        self.given = torch.float32
        self.input_dims: dict[int, int] = {}
        self._is_function = model is None
        if model is not None:
            self._learn_names(model)

    def _learn_names(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            self._names.setdefault(id(module), name)
            prefix = f"{name}." if name else ""
            for own_name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    self._state.setdefault(id(tensor), prefix + own_name)

    # -- entry -----------------------------------------------------------------------------------

    def __torch_function__(
        self,
        func: Function,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        hooks = _hooks_on_saved_tensors(False)
        if hooks is not None and hooks[0] is not _as_it_is:
            with saved_tensors_hooks(_as_it_is, _as_it_is):
                return self.__torch_function__(func, types, args, kwargs)
        if self._keeps_readout and not self._is_calling:
            return self._kept_call(func, tuple(args), dict(kwargs or {}))
        return self.call(func, tuple(args), dict(kwargs or {}))

    def _kept_call(self, function: Function, args: Args, kwargs: Kwargs) -> Any:
        """Make a call, and keep it until the next skip connection."""
        unit = self._units.current() if self._units.present else None
        args, kwargs = self._resolved(args, unit), self._resolved(kwargs, unit)
        tape = self.tape
        before = len(tape.residuals)
        self._is_calling = True
        try:
            result = self.call(function, args, kwargs)
        finally:
            self._is_calling = False
        if len(tape.residuals) > before:
            tape.readout.clear()
        else:
            tape.readout.append((function, args, kwargs, result))
        return result

    def read_out(self, value: Tensor, output: Tensor) -> Tensor:
        """The logits that the model would read from another output of its last skip connection.

        Args:
            value: in the place of the last skip connection's output, and shaped like it.
            output: the model's logits.

        Raises:
            ExplanationError: if they do not follow from it by calls that can be made again.
        """
        start = self.tape.residuals[-1].output
        self.tape.marks[value] = self.tape.marks[start]
        known = {id(start): value}
        for function, args, kwargs, result in list(self.tape.readout):
            change = lambda tensor: known.get(id(tensor), tensor)  # noqa: E731
            again = self.call(function, replace_tensors(args, change),
                              replace_tensors(kwargs, change))  # fmt: skip
            pairs = zip(tensors_in(result), tensors_in(again), strict=True)
            known.update((id(old), new) for old, new in pairs)
        if id(output) not in known:
            raise ExplanationError(
                "it is not known how the model reads its answer from its last tokens: the logits "
                "are not made by calls after its last skip connection alone"
            )
        return known[id(output)]

    def call(self, function: Function, args: Args, kwargs: Kwargs) -> Any:
        """Make one call of the model."""
        if getattr(function, "__name__", "") == "__get__":
            return self._get_property(function, args)
        if function in IGNORED:
            return function(*self._resolved(args), **self._resolved(kwargs))
        if self._is_function:
            outermost = None
            for _, outermost in calling_modules():  # noqa: B007
                pass
            if outermost is not None and id(outermost) not in self._names:
                check_model(outermost)
                self._learn_names(as_written(outermost))
                self._names.setdefault(id(outermost), "")
        if function in _RANDOM:
            raise ExplanationError(
                f"{self.module_name()} draws random numbers ({title(function)}), so its output "
                "has no one explanation: call model.eval() first"
            )
        if _autocasts(self._device_type):
            with torch.autocast(self._device_type, enabled=False):
                return self.call(function, args, kwargs)
        if not torch.is_grad_enabled() and (custom := self._custom_calls.current()) is not None:
            return self._inside_custom(custom, function, args, kwargs)
        unit = self._units.current() if self._units.present else None
        if self._replaced or self._units.present:
            args, kwargs = self._resolved(args, unit), self._resolved(kwargs, unit)
        if function in IN_PLACE or function in _WRITES:
            return self._in_place(function, args, kwargs)
        tensors = tensors_in((args, kwargs))
        marks = self.tape.marks
        active = [tensor for tensor in tensors if tensor in marks]
        if not active:
            return self._without_activation(function, args, kwargs)
        if kwargs.get("out") is not None:
            raise ExplanationError(
                f"{title(function)} in {self.module_name()} writes into out=; "
                "explanations need its result as a new tensor"
            )
        precision = max((tensor.dtype for tensor in active), key=_item_size)
        prepared = [self._prepared(tensor, precision) for tensor in tensors]
        if any(map(is_not, prepared, tensors)):
            rest = iter(prepared)
            args, kwargs = replace_tensors((args, kwargs), lambda _: next(rest))
        if unit is not None and not is_single_operation(unit.module):
            return self._inside_unit(unit, function, args, kwargs, active)
        handler = HANDLERS.get(function)
        if isinstance(function, HigherOrderOperator):
            handler = HIGHER_ORDER.get(function.name())
        if handler is not None:
            return handler(self, function, args, kwargs)
        if function in self._rules or function in FUNCTION_RULES:
            return self._unknown(function, args, kwargs)
        if function in REARRANGEMENTS:
            return self._rearrange(function, args, kwargs)
        if function in JOINS:
            return self._join(function, args, kwargs)
        if function in CASTS:
            return self._cast(function, args, kwargs)
        return self._unknown(function, args, kwargs)

    def raised(self, given: Tensor) -> Tensor:
        """What comes in from outside, in the precision of the tape."""
        if given.dtype == torch.float64:
            self.given = torch.float64
            self.tape.lower = None
        return given.to(self._dtype) if given.element_size() < self._dtype.itemsize else given

    def raised_constant(self, tensor: Tensor) -> Tensor:
        """A constant of the model, in the precision of the tape."""
        lower = tensor.is_floating_point() and tensor.element_size() < self._dtype.itemsize
        return tensor.to(self._dtype) if lower else tensor

    def module_name(self) -> str:
        """The name of the module that is calling."""
        return module_name(self._names)

    def book_title(self) -> str:
        """What an operation's absorbed relevance is reported under, if anybody keeps the books."""
        return self.module_name() if self.tape.keeps_books else ""

    # -- arguments -------------------------------------------------------------------------------

    def _resolved(self, value: Any, unit: Unit | None = None) -> Any:
        """Arguments as the model sees them after its in-place updates and finished units."""
        if not self._replaced and not self._units.present:
            return value
        return replace_tensors(value, lambda tensor: self.resolve(tensor, unit))

    def resolve(self, tensor: Tensor, unit: Unit | None = None) -> Tensor:
        """The tensor that stands for ``tensor`` now."""
        replaced = self._replaced.get(id(tensor))
        if replaced is not None:
            if tensor.grad_fn is not None and id(tensor) in self._custom_results:
                self._leave_custom(tensor, self.resolve(replaced[1], unit))
            return self.resolve(self._replaced[id(tensor)][1], unit)
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return tensor  # inside vmap, which masks are made with; it has no memory of its own
        if self._overwritten and tensor.untyped_storage()._cdata in self._overwritten:
            return self._view_made_again(tensor)
        mark = self.tape.mark(tensor)
        if mark is None:
            return tensor
        if mark.unit is not None and mark.unit is not unit:
            return self._leave_unit(tensor, mark)
        return tensor

    def _prepared(self, tensor: Tensor, precision: torch.dtype) -> Tensor:
        """An argument of a call with activations: constants without gradient, one precision."""
        mark = self.tape.mark(tensor)
        if mark is not None:
            if tensor.dtype is precision:
                return tensor
            if tensor.is_floating_point() and tensor.element_size() < precision.itemsize:
                tensor = tensor.to(precision)
                self.tape.marks[tensor] = mark
            return tensor
        self._refuse_unannounced(tensor)
        prepared = tensor.detach() if tensor.requires_grad else tensor
        if tensor.is_floating_point() and tensor.element_size() < precision.itemsize:
            prepared = prepared.to(precision)
        elif self.tape.lower is not None and tensor.dtype == torch.float64:
            prepared = self._in_range(prepared)
        if prepared is not tensor:
            self.tape.note_lowered(prepared, tensor.detach())
            name = self._constant_name(tensor)
            if name:
                self._constants[prepared] = name
                if tensor in self._repeated:
                    self._repeated[prepared] = True
        return prepared

    def _in_range(self, constant: Tensor) -> Tensor:
        """A constant without numbers that the phases' lower precision would make infinite.

        Models mask scores by the smallest number of their dtype.  A row that is masked entirely,
        as that of padding is, must not become a row of infinities, whose softmax is NaN.
        """
        known = self._bounded.get(constant)
        if known is None:
            known = constant
            if bool(((constant.abs() > _LARGEST_FLOAT32) & constant.isfinite()).any()):
                bounded = constant.clamp(-_LARGEST_FLOAT32, _LARGEST_FLOAT32)
                known = torch.where(constant.isfinite(), bounded, constant)
            self._bounded[constant] = known
        return known

    def _refuse_unannounced(self, tensor: Tensor) -> None:
        """Raise for a tensor that depends on activations, but on no call that was seen.

        What a model keeps from an earlier call, with the graph of its parameters, is a constant.
        """
        unknown = tensor.requires_grad and not tensor.is_leaf and tensor not in self._constants
        if unknown and self.tape.made(tensor):
            raise UnsupportedOperationError(
                f"{self.module_name()} uses a result of {node_name(tensor)}, a custom operation "
                "that PyTorch does not announce to anybody: write it with PyTorch functions"
            )

    def constant_title(self, value: Any) -> str:
        """What absorbed relevance is reported under."""
        name = self._constant_name(value) if isinstance(value, Tensor) else ""
        return name or f"{self.module_name()} (constant)"

    def _constant_name(self, tensor: Tensor) -> str:
        name = self._state.get(id(tensor))
        if name is None:
            name = self._constants.get(tensor)
        return name or ""

    # -- making calls ----------------------------------------------------------------------------

    def made(self, function: Function, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Make a call whose derivative is wanted.

        Returns:
            Its result, and the same in the precision of the phases with autograd's graph, if
            anybody will ask for the gradient.
        """
        tape = self.tape
        if Phase.GRADIENT not in tape.phases:
            return self.computed(function, *args, **kwargs), None
        if tape.lower is None:
            native = function(*args, **kwargs)
            return native, native
        exact = self.computed(function, *args, **kwargs)
        args, kwargs = replace_tensors((args, kwargs), tape.lowered)
        return exact, function(*args, **kwargs)

    def computed(self, function: Function, *args: Any, **kwargs: Any) -> Tensor:
        """Make a call whose derivative the tape knows."""
        with torch.no_grad():
            result: Tensor = function(*args, **kwargs)
            return result

    # -- calls without activation ----------------------------------------------------------------

    def _without_activation(self, function: Function, args: Args, kwargs: Kwargs) -> Any:
        for tensor in tensors_in((args, kwargs)):
            if id(tensor) in self.token_ids:
                return self._with_token_ids(function, args, kwargs)
        for tensor in tensors_in((args, kwargs)):
            self._refuse_unannounced(tensor)
        if function not in IN_PLACE and function not in _WRITES and self._is_mixed(args, kwargs):
            args, kwargs = replace_tensors((args, kwargs), self.raised_constant)
        with torch.no_grad():
            result = function(*args, **kwargs)
        name = next((n for n in map(self._constant_name, tensors_in((args, kwargs))) if n), "")
        if name:
            for tensor in tensors_in(result):
                if tensor.is_floating_point() and id(tensor) not in self._state:
                    self._constants[tensor] = name
                    if function in _REPEATS:
                        self._repeated[tensor] = True
        return result

    @staticmethod
    def _is_mixed(args: Args, kwargs: Kwargs) -> bool:
        """Whether constants made like activations, in the tape's precision, meet the model's own.

        The smallest number of the tape's precision, which masks are multiplied by, is one too.
        """
        kinds = {one.dtype for one in tensors_in((args, kwargs)) if one.is_floating_point()}
        extreme = any(isinstance(one, float) and abs(one) > _LARGEST_FLOAT32 for one in args)
        return len(kinds) > 1 or extreme

    def is_repeated(self, constant: Tensor) -> bool:
        """Whether a parameter was repeated for the examples, as a class token is; no bias is.

        For a batch of one the shapes do not tell them apart.
        """
        return constant in self._repeated

    def _with_token_ids(self, function: Function, args: Args, kwargs: Kwargs) -> Any:
        """A call on token ids: they are moved, computed with, or looked up."""
        found = [self.token_ids.get(id(tensor)) for tensor in tensors_in((args, kwargs))]
        known = {id(one.ids): one for one in found if one is not None}
        first = next(iter(known.values()))
        if function in IN_PLACE or function in _WRITES:
            return self._write_ids(function, args, kwargs, known)
        with torch.no_grad():
            result = function(*args, **kwargs)
        if isinstance(result, Tensor) and result.is_floating_point():
            looked_up = function in _LOOK_UPS and result.shape[:-1] == first.ids.shape
            return self._looked_up(result, first, args, kwargs) if looked_up else result
        parts = list(tensors_in(result))
        if not parts or any(one.is_floating_point() or one.dtype == torch.bool for one in parts):
            return result
        places: list[Tensor] = []
        if function in _MOVES and _joins_one_input(known):
            anyhow = _ANYHOW.get(function, function)
            places = moved(lambda change: _repeated(anyhow, args, kwargs, change), known)
        if parts[0].shape == first.ids.shape and (
            function in ELEMENTWISE or (function in _LOOK_UPS and not any(map(torch.any, places)))
        ):
            places = [first.places]
        for part, place in zip(parts, places, strict=bool(places)):
            self.token_ids[id(part)] = first.become(part, place)
        return result

    def _write_ids(
        self, function: Function, args: Args, kwargs: Kwargs, known: dict[int, TokenIds]
    ) -> Any:
        """Ids that are written into others, as those of a decoder are."""
        target, _ = first_tensor(args, kwargs)
        base = target if target._base is None else target._base
        first = next(iter(known.values()))
        followed = is_laid_out_plainly(base) and not base.is_floating_point()
        if followed and _joins_one_input(known):
            onto = self.token_ids.get(id(base))
            onto = onto or first.become(base, torch.zeros_like(base, dtype=torch.long))

            def run(change: Callable[[Tensor], Tensor]) -> Tensor:
                changed = change(base).clone()
                place = target.shape, target.stride(), int(target.storage_offset())
                onto_view = changed.as_strided(*place)
                _repeated(function, args, kwargs, lambda t: onto_view if t is target else change(t))
                return changed

            (places,) = moved(run, {**known, id(base): onto})
            self.token_ids[id(base)] = first.become(base, places)
            if target is not base:
                of_view = places.as_strided(
                    target.shape, target.stride(), int(target.storage_offset())
                )
                self.token_ids[id(target)] = first.become(target, of_view)
        with torch.no_grad():
            return function(*args, **kwargs)

    def _looked_up(self, embedded: Tensor, ids: TokenIds, args: Args, kwargs: Kwargs) -> Tensor:
        """Embeddings of token ids: here the tape begins."""
        examples = ids.examples
        axis = examples.axis or 0
        leaf = self.raised(embedded.movedim(axis, 0).detach()).requires_grad_()
        self.token_leaves.append((ids.index, leaf, ids.places.movedim(axis, 0)))
        result = leaf.movedim(0, axis)
        self.tape.marks[leaf] = self.tape.marks[result] = Mark(
            examples, origins=1 << ids.index, base=object(), features=-1
        )
        of_input = ids.places > 0
        if not bool(of_input.all()):  # what the model's own ids get is the table's
            own = self.raised(embedded.detach())
            name = next((n for n in map(self._constant_name, tensors_in((args, kwargs))) if n), "")
            self._constants[own] = name or self.module_name()
            return self._join(torch.where, (of_input.unsqueeze(-1), result, own), {})
        return result

    def _get_property(self, function: Function, args: tuple[Any, ...]) -> Any:
        owner = self.resolve(args[0]) if isinstance(args[0], Tensor) else args[0]
        mark = self.tape.mark(owner) if isinstance(owner, Tensor) else None
        if mark is None:
            with torch.no_grad():
                result = function(owner)
            if isinstance(result, Tensor) and (name := self._constant_name(owner)):
                self._constants[result] = name
            return result
        result = function(owner)
        if isinstance(result, Tensor) and result.requires_grad and result is not owner:
            self._note_rearranged(result, mark, owner, lambda value: function(value))
        return result

    # -- calls that move elements ----------------------------------------------------------------

    def _rearrange(self, function: Function, args: Args, kwargs: Kwargs) -> Any:
        source = next(t for t in tensors_in((args, kwargs)) if self.tape.mark(t))
        mark = self.tape.mark(source)
        assert mark is not None
        result = function(*args, **kwargs)
        if function in COPIES:
            self.tape.marks[result] = mark
            return result

        # The stand-in is laid out in memory in its own way, which view() would object to.
        anyhow = _ANYHOW.get(function, function)

        def again(stand_in: Tensor) -> Any:
            if function in _AS_STRIDED:  # reads memory, so it must be laid out alike
                alike = torch.empty_strided(source.shape, source.stride())
                stand_in = alike.copy_(stand_in)
            elif function is torch.view_as_complex:  # needs pairs that lie side by side
                stand_in = stand_in.contiguous()
            change = lambda t: stand_in if t is source else t.cpu()  # noqa: E731
            return anyhow(*replace_tensors(args, change), **replace_tensors(kwargs, change))

        if function in PERMUTATIONS:
            mark = mark.but(stem=False)
        self._note_rearranged(result, mark, source, again)
        return result

    def _note_rearranged(
        self, result: Any, mark: Mark, source: Tensor, again: Callable[[Tensor], Any]
    ) -> None:
        parts = [tensor for tensor in tensors_in(result) if tensor.requires_grad]
        if not parts or all(part is source for part in parts):
            return
        found: Examples | list[Examples] = mark.examples
        if mark.examples.count > 1 and mark.examples.axis is not None:
            twice = (lambda one: again(torch.complex(one, one))) if source.is_complex() else again
            with torch.no_grad():
                found = rearranged_examples(mark.examples, source.shape, twice)
        if isinstance(found, Examples):
            found = [found] * len(parts)
        for part, examples in zip(parts, found, strict=False):
            same_axes = part.dim() == source.dim() and part.shape[:1] == source.shape[:1]
            self.tape.marks[part] = mark.but(
                examples=examples,
                arrangement=object(),
                stem=mark.stem and same_axes,
                features=None,
            )

    def _join(self, function: Function, args: Args, kwargs: Kwargs) -> Any:
        result = function(*args, **kwargs)
        values = list(tensors_in((args, kwargs)))
        active = [t for t in values if self.tape.mark(t)]
        marks = [mark for t in active if (mark := self.tape.mark(t))]
        if isinstance(result, Tensor):
            if result.requires_grad:
                examples = self._joined_examples(function, args, kwargs, active, result)
                if not examples.known and (constants := self._constants_among(active)):
                    change = lambda t: constants.get(id(t), t)  # noqa: E731
                    return self.call(
                        function, replace_tensors(args, change), replace_tensors(kwargs, change)
                    )
                self.tape.marks[result] = _joined(marks, examples)
                self._report_constants(result, values, _again(function, args, kwargs))
            return result
        for part in tensors_in(result):
            if part.requires_grad:
                examples = broadcast_examples(marks[0].examples, active[0].shape, part.shape)
                self.tape.marks[part] = _joined(marks, examples)
        return result

    def _constants_among(self, active: Sequence[Tensor]) -> dict[int, Tensor]:
        """Those parts of activations that hold constants alone, detached, by the id of the part.

        Where class tokens have been joined to activations and are cut out again, they carry the
        examples of the rows that they happened to be cut from, but are made from none of them.
        """
        found = {}
        for part in active:
            mark = self.tape.mark(part)
            if mark is not None and not mark.attentions and not self._depends_on_inputs(part):
                found[id(part)] = part.detach()
                self._constants[found[id(part)]] = f"{self.module_name()} (constant)"
        return found if len(found) < len(active) else {}

    def _depends_on_inputs(self, part: Tensor) -> bool:
        """Whether anything of a part of an activation arrives at the inputs."""
        given = [tensor for tensor, mark in self.tape.marks.items() if mark.source is not None]
        leaves = [leaf for leaf in given if leaf.is_leaf]
        leaves += [leaf for _, leaf, _ in self.token_leaves]
        tape, books = self.tape, dict(self.tape.absorbed)
        phase = next(one for one in (Phase.RELEVANCE, Phase.ROLLOUT, Phase.GRADIENT)
                     if one in tape.phases)  # fmt: skip
        tape.grids.clear()
        arrived = tape.backward(phase, part, torch.ones_like(part), leaves)
        arrived += [grid for grid, _ in tape.grids]
        tape.grids.clear()
        tape.absorbed = books
        return any(bool(one.any()) for one in arrived)

    def _joined_examples(
        self,
        function: Function,
        args: Args,
        kwargs: Kwargs,
        active: Sequence[Tensor],
        result: Tensor,
    ) -> Examples:
        active = [tensor for tensor in active if tensor.numel()] or active
        known = [mark.examples for tensor in active if (mark := self.tape.mark(tensor))]
        if known[0].count == 1:
            return known[0]
        first = active[0]
        stacked = result.dim() == first.dim() + 1
        if not stacked and all(one.axis == known[0].axis for one in known):
            simple = broadcast_examples(known[0], first.shape, result.shape)
            if simple.known and all(one == known[0] for one in known):
                return simple
        if not all(one.known for one in known):
            return unknown_examples(known[0])
        with torch.no_grad():
            stand_ins = {
                id(value): numbered(mark.examples, value.shape)
                if (mark := self.tape.mark(value))
                else torch.zeros(value.shape)
                if value.is_floating_point()
                else value.cpu()
                for value in tensors_in((args, kwargs))
            }
            return read_examples(_again(function, args, kwargs)(stand_ins), known[0].count)

    def _report_constants(
        self,
        result: Tensor,
        values: Sequence[Tensor],
        again: Callable[[Mapping[int, Tensor]], Tensor],
    ) -> None:
        if self.tape.keeps_books:
            report_constants(self.tape, result, values, again, self.constant_title)

    def _cast(self, function: Function, args: Args, kwargs: Kwargs) -> Any:
        source = args[0]
        mark = self.tape.mark(source)
        if mark is None:
            with torch.no_grad():
                return function(*args, **kwargs)
        result = function(*args, **kwargs)
        if result.is_floating_point() and result.element_size() < source.element_size():
            # The tape never loses precision: that the model does is a matter of its speed.
            result = source.to(result.device)
        if result.requires_grad and result is not source:
            self.tape.marks[result] = mark
        return result

    # -- calls with a rule -----------------------------------------------------------------------

    def module_rule(self) -> Rule | None:
        """The rule that the calling module has of its own."""
        unit = self._units.current() if self._units.present else None
        return None if unit is None else unit.rule

    def reads_pixels(self, mark: Mark, function: Function) -> bool:
        """Whether a linear operation reads raw pixels or samples, rather than embeddings."""
        if mark.source is None:
            return False
        return function in CONVOLUTIONS or self.input_dims.get(mark.source, 0) >= 4

    def rule_for(self, function: Function, *, reads_pixels: bool = False) -> Rule:
        """The rule for a call: the module's own, the user's for the function, the registry's."""
        own = self.module_rule()
        if own is not None:
            return own
        if reads_pixels and self._pixel_rule is not None:
            return self._pixel_rule
        rule = self._rules.get(function) or FUNCTION_RULES.get(function)
        if rule is None:
            raise KeyError(function)
        if not isinstance(rule, Rule):
            raise TypeError(
                f"the rule for {title(function)} is {rule!r}, which changes a layer's weights: "
                "set it on a module (module.rule = ...) or use a rule of captum_transformer_lrp"
            )
        return rule

    def elementwise(
        self,
        function: Function,
        args: Args,
        kwargs: Kwargs,
        *,
        flow: flows.Flow = flows.keep,
        event: bool = False,
        kernel: Kernel | None = None,
        run: Function | None = None,
        **changes: Any,
    ) -> Any:
        """A call that maps its first argument to a tensor of the same shape.

        ``run`` is what is called in the place of ``function``, which has the same values.
        """
        source, rest = first_tensor(args, kwargs)
        mark = self.tape.mark(source)
        if mark is None:
            raise self.unsupported(function, "an activation as a second argument")
        output, native = self.made(run or function, *args, **kwargs)
        if output is source or not output.is_floating_point():
            return output
        if event:
            changes["events"] = mark.events | self.tape.new_event()
        mark = mark.but(source=None, channels=0, **changes)
        return self.tape.record(
            function,
            kernel or AutogradKernel(lambda value: function(*with_first(args, value), **rest)),
            (source,),
            output,
            native=native,
            rule=self.rule_for(function),
            flow=flow,
            mark=mark,
            name=self.book_title(),
        )

    def unsupported(self, function: Function, what: str) -> UnsupportedOperationError:
        """The error for a call that cannot be explained."""
        return UnsupportedOperationError(
            f"{title(function)}, called by {self.module_name()}, has no propagation rule for "
            f"{what}: file one with captum_transformer_lrp.rules.register_rule, set module.rule, "
            "or pass strict=False to let it follow the generic rule, eq. 2"
        )

    def _unknown(
        self,
        function: Function,
        args: Args,
        kwargs: Kwargs,
    ) -> Any:
        output = function(*args, **kwargs)
        if isinstance(output, Tensor) and not output.requires_grad:
            return output
        if not any(tensor.requires_grad for tensor in tensors_in(output)):
            return output
        active = [tensor for tensor in tensors_in((args, kwargs)) if self.tape.mark(tensor)]
        rule = self._rules.get(function) or FUNCTION_RULES.get(function)
        if rule is None and self._strict:
            fourier = "fft" in title(function)
            what = "a Fourier transform, which mixes tokens without any attention map"
            raise self.unsupported(function, what if fourier else "activations")
        if not isinstance(output, Tensor):
            raise self.unsupported(function, "more than one output")
        positions = {id(tensor): place for place, tensor in enumerate(active)}

        def run(*values: Tensor) -> Tensor:
            change = lambda t: values[positions[id(t)]] if id(t) in positions else t  # noqa: E731
            result: Tensor = function(
                *replace_tensors(args, change), **replace_tensors(kwargs, change)
            )
            return result

        marks = [mark for tensor in active if (mark := self.tape.mark(tensor))]
        examples = broadcast_examples(marks[0].examples, active[0].shape, output.shape)
        mark = merged(marks, examples).but(
            events=merged(marks, examples).events | self.tape.new_event(),
            source=None,
            base=object(),
            channels=0,
            features=None,
        )
        return self.tape.record(
            function,
            AutogradKernel(run),
            active,
            output,
            rule=self.rule_for(function) if rule is not None else TaylorRule(),
            flow=flows.unknown,
            mark=mark,
            name=self.module_name(),
        )

    # -- in-place updates ------------------------------------------------------------------------

    def _in_place(self, function: Function, args: Args, kwargs: Kwargs) -> Any:
        target, _ = first_tensor(args, kwargs)
        active = any(self.tape.mark(tensor) for tensor in tensors_in((args, kwargs)))
        if not active:
            if id(target) in self._state:
                raise ExplanationError(
                    f"{self.module_name()} changes {self._state[id(target)]} in its forward pass "
                    f"({title(function)}): call model.eval() first"
                )
            return self._without_activation(function, args, kwargs)
        if id(target) in self._state:
            raise ExplanationError(
                f"{self.module_name()} writes activations into {self._state[id(target)]}; an "
                "explanation must leave the model as it is"
            )
        if function in IN_PLACE:
            result = self.call(IN_PLACE[function], args, kwargs)
        else:
            index, value = (..., args[1]) if function is Tensor.copy_ else args[1:]
            result = self._set_item(target, index, value)
        self.replace(target, result)
        return result

    def _set_item(self, target: Tensor, index: Any, value: Any) -> Tensor:
        """``target[index] = value`` (and ``target.copy_(value)``), made out of place."""
        if not isinstance(value, Tensor):
            value = torch.full((), value, dtype=target.dtype, device=target.device)

        def written(onto: Tensor, what: Tensor) -> Tensor:
            changed = onto.to(torch.promote_types(onto.dtype, what.dtype), copy=True)
            changed[index] = what.to(changed.dtype)
            return changed

        def again(replaced: Mapping[int, Tensor]) -> Tensor:
            return written(replaced[id(target)], replaced[id(value)])

        with torch.enable_grad():
            changed = written(target, value)
        of_target, of_value = self.tape.mark(target), self.tape.mark(value)
        if of_target is not None:
            examples = of_target.examples
        else:
            assert of_value is not None
            nothing = torch.zeros(target.shape)
            with torch.no_grad():
                found = rearranged_examples(
                    of_value.examples, value.shape, lambda numbers: written(nothing, numbers)
                )
            examples = found if isinstance(found, Examples) else found[0]
        marks = [mark for mark in (of_target, of_value) if mark is not None]
        self.tape.marks[changed] = _joined(marks, examples)
        self._report_constants(changed, [target, value], again)
        return changed

    def replace(self, target: Tensor, result: Tensor) -> None:
        """From now on ``result`` stands for ``target``, which the model changed in place."""
        if result is target:
            return
        self._replaced[id(target)] = (target, result)
        base = target._base
        if base is not None and base.shape.numel() > 0:
            self._write_through(base, target, result)
        self._overwritten.add(target.untyped_storage()._cdata)

    def _write_through(self, base: Tensor, view: Tensor, result: Tensor) -> None:
        """What was written into a view has been written into the tensor that it is a view of."""
        if not is_laid_out_plainly(base):
            return  # reading it is an error from now on
        place = view.shape, view.stride(), view.storage_offset()
        onto = base
        if base.dtype != result.dtype:
            onto = base.to(result.dtype)
            if (mark := self.tape.mark(base)) is not None:
                self.tape.marks[onto] = mark
        changed = self._join(_written_at, (onto, result, *place), {})
        self._replaced[id(base)] = (base, changed)

    def _view_made_again(self, tensor: Tensor) -> Tensor:
        """A view whose memory was changed since, read from what the memory should be now."""
        base = tensor._base
        found = None if base is None else self._replaced.get(id(base))
        if base is None or found is None or not is_laid_out_plainly(base):
            raise ExplanationError(
                f"{self.module_name()} reads a view of a tensor that was changed in place since; "
                "change the tensor itself, or copy it first"
            )
        now = self.resolve(base)
        place = tensor.shape, tensor.stride(), tensor.storage_offset()
        return self.call(torch.as_strided, (now.contiguous(), *place), {})

    # -- custom autograd functions ---------------------------------------------------------------

    def _inside_custom(
        self, custom: CustomCall, function: Function, args: Args, kwargs: Kwargs
    ) -> Any:
        """Record a call in a custom function's forward pass; it sees a result without graph."""
        with torch.enable_grad():
            result = self.call(function, args, kwargs)

        def detached(tensor: Tensor) -> Tensor:
            if self.tape.mark(tensor) is None or id(tensor) in self._custom_results:
                return tensor
            outside = tensor.detach()
            self._replaced[id(outside)] = (outside, tensor)
            self._custom_results[id(outside)] = custom
            return outside

        return replace_tensors(result, detached)

    def _leave_custom(self, result: Tensor, recorded: Tensor) -> None:
        """Its result has got the custom function's own derivative."""
        custom = self._custom_results.pop(id(result))
        if custom.calls_modules:
            return
        joined = bridged(self.tape, result, recorded)
        self.tape.marks[joined] = self.tape.marks[recorded]
        self._replaced[id(result)] = (result, joined)

    # -- modules with a rule of their own --------------------------------------------------------

    def _inside_unit(
        self,
        unit: Unit,
        function: Function,
        args: Args,
        kwargs: Kwargs,
        active: list[Tensor],
    ) -> Any:
        if not unit.inputs:
            unit.inputs = tuple(
                self.resolve(t) for t in tensors_in(unit.arguments) if self.tape.mark(t)
            )
        result = function(*args, **kwargs)
        marks = [mark for tensor in active if (mark := self.tape.mark(tensor))]
        for tensor in tensors_in(result):
            if tensor.requires_grad and not self.tape.mark(tensor):
                self.tape.marks[tensor] = merged(marks, marks[0].examples).but(unit=unit)
        return result

    def _leave_unit(self, tensor: Tensor, mark: Mark) -> Tensor:
        """Put one switch behind a whole module call, when its result is first used outside."""
        unit = mark.unit
        assert unit is not None
        inputs = unit.inputs
        examples = mark.examples
        marks = [found for value in inputs if (found := self.tape.mark(value))]
        if inputs[0].shape == tensor.shape:
            examples = marks[0].examples
        args, kwargs = unit.arguments
        positions = {
            id(value): place
            for place, value in enumerate(
                t for t in tensors_in(unit.arguments) if self.tape.mark(t)
            )
        }

        def run(*values: Tensor) -> Any:
            change = lambda t: values[positions[id(t)]] if id(t) in positions else t  # noqa: E731
            return unit.module(*replace_tensors(args, change), **replace_tensors(kwargs, change))

        outside = merged(marks, examples)
        switched = self.tape.record(
            type(unit.module).forward,
            AutogradKernel(run),
            inputs,
            tensor,
            rule=unit.rule,
            flow=flows.unit,
            mark=outside.but(
                events=outside.events | self.tape.new_event(),
                unit=None,
                source=None,
                base=object(),
                channels=0,
                features=None,
            ),
            name=self._names.get(id(unit.module)) or type(unit.module).__name__,
        )
        self._replaced[id(tensor)] = (tensor, switched)
        return switched

    def close(self) -> None:
        """Forget everything that was needed only while the model ran."""
        self._units.close()
        self._custom_calls.close()
        self._custom_results.clear()
        self._replaced.clear()
        self._constants.clear()
        self._bounded.clear()
        self.token_ids.clear()


def _written_at(
    onto: Tensor, what: Tensor, size: torch.Size, stride: tuple[int, ...], offset: int
) -> Tensor:
    """``onto``, with ``what`` in the place of a view of its memory.

    The derivative of PyTorch's own ``as_strided_scatter`` is wrong where two such calls follow
    each other (seen in 2.14).
    """
    places = torch.arange(onto.numel(), device=onto.device).as_strided(size, stride, offset)
    return onto.flatten().index_copy(0, places.flatten(), what.flatten()).view(onto.shape)


def is_laid_out_plainly(base: Tensor) -> bool:
    """Whether places in its memory are places in whatever contiguous tensor replaces it."""
    return bool(base.is_contiguous() and base.storage_offset() == 0)


def _joins_one_input(known: Mapping[int, TokenIds]) -> bool:
    return len({one.index for one in known.values()}) == 1


def _repeated(
    function: Function, args: Args, kwargs: Kwargs, change: Callable[[Tensor], Any]
) -> Any:
    """The same call with every tensor changed."""
    return function(*replace_tensors(args, change), **replace_tensors(kwargs, change))


def _again(
    function: Function, args: Args, kwargs: Kwargs
) -> Callable[[Mapping[int, Tensor]], Tensor]:
    """The same call on other tensors, given for each of its own by its id."""

    def call(replaced: Mapping[int, Tensor]) -> Tensor:
        result: Tensor = _repeated(function, args, kwargs, lambda tensor: replaced[id(tensor)])
        return result

    return call


def _joined(marks: list[Mark], examples: Examples) -> Mark:
    """The provenance of elements of several tensors, put side by side."""
    return merged(marks, examples).but(arrangement=object(), channels=0, features=None)


def _pad_with_nobody(input: Tensor, pad: Any, mode: Any = "constant", value: Any = None) -> Tensor:
    """Pad a stand-in: whatever the value is, it is none of an example's."""
    return nn.functional.pad(input, pad, mode if isinstance(mode, str) else "constant")


# What is done to a stand-in in the place of a call.
_ANYHOW: dict[Function, Function] = {
    Tensor.view: Tensor.reshape,
    Tensor.view_as: Tensor.reshape_as,
    nn.functional.pad: _pad_with_nobody,
    torch.constant_pad_nd: _pad_with_nobody,
}

_item_size = attrgetter("itemsize")

_LARGEST_FLOAT32 = torch.finfo(torch.float32).max

_MOVES = REARRANGEMENTS | JOINS | CASTS | frozenset(spelled("masked_fill"))

_LOOK_UPS = frozenset(spelled("embedding", "index_select", "__getitem__"))

_AS_STRIDED = frozenset(spelled("as_strided"))

_REPEATS = frozenset(spelled("expand", "expand_as", "broadcast_to", "repeat", "tile"))

_WRITES = frozenset({Tensor.__setitem__, Tensor.copy_})

_RANDOM = frozenset(
    spelled(
        "bernoulli", "bernoulli_", "rand", "randn", "rand_like", "randn_like", "randint",
        "randint_like", "randperm", "normal", "normal_", "uniform_", "exponential_", "multinomial",
        "poisson",
    )
)  # fmt: skip


def _as_it_is(tensor: Tensor) -> Tensor:
    """A hook on tensors that autograd saves.

    A checkpoint (``torch.utils.checkpoint``) saves nothing and computes its calls again in the
    backward pass, where nobody watches.  An explanation needs several backward passes: the tape
    keeps its tensors.
    """
    return tensor


_hooks_on_saved_tensors: Callable[[bool], Any] = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignores_tracing: None
)


def _autocasts(device_type: str) -> bool:
    return torch.is_autocast_enabled(device_type)
