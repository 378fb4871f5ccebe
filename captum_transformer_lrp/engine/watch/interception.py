"""Watching a model's forward pass: every PyTorch call that it makes comes by here.

:class:`Interception` is a ``TorchFunctionMode``.  While it is active, in its own thread only,
PyTorch offers it each call — ``nn.Linear`` and ``a + b`` alike, whoever wrote the module — and it
makes the call, puts a switch behind it (see :mod:`captum_transformer_lrp.engine.graph.tape`) and
notes the provenance of the result.  The model is not touched.
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
from captum_transformer_lrp.engine.checkpoints import Log
from captum_transformer_lrp.engine.graph.arguments import (
    Args,
    Function,
    Kwargs,
    first_tensor,
    node_name,
    replace_tensors,
    tensors_in,
    title,
)
from captum_transformer_lrp.engine.graph.books import report_constants
from captum_transformer_lrp.engine.graph.marks import Mark, merged
from captum_transformer_lrp.engine.graph.structure import (
    CASTS,
    IGNORED,
    JOINS,
    REARRANGEMENTS,
)
from captum_transformer_lrp.engine.graph.tape import Flow, Phase, Tape
from captum_transformer_lrp.engine.graph.tensor_table import TensorTable
from captum_transformer_lrp.engine.graph.unit import Unit
from captum_transformer_lrp.engine.graph.values import raised
from captum_transformer_lrp.engine.watch import (
    custom_calls,
    in_place,
    moves,
    token_calls,
    unit_calls,
)
from captum_transformer_lrp.engine.watch.checks import check_model
from captum_transformer_lrp.engine.watch.custom import CustomCall, CustomCalls
from captum_transformer_lrp.engine.watch.eager import as_written
from captum_transformer_lrp.engine.watch.frames import calling_modules, module_name
from captum_transformer_lrp.engine.watch.token_ids import TokenIds
from captum_transformer_lrp.engine.watch.units import Units, is_single_operation
from captum_transformer_lrp.errors import ExplanationError, UnsupportedOperationError
from captum_transformer_lrp.rules import Rule, TaylorRule
from captum_transformer_lrp.rules.examples import Examples, broadcast_examples
from captum_transformer_lrp.rules.kernels import AutogradKernel, Kernel, SoftmaxKernel
from captum_transformer_lrp.rules.registry import CONVOLUTIONS, FUNCTION_RULES
from captum_transformer_lrp.rules.spellings import spelled

Handler = Callable[["Interception", Function, Args, Kwargs], Any]

HANDLERS: dict[Function, Handler] = {}
"""What to do with a call of a given function, for calls that take an activation."""

HIGHER_ORDER: dict[str, Handler] = {}
"""The same for PyTorch's higher-order operators, by name."""


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
        self.log: Log | None = None
        self._rules = function_rules
        self._units = Units(model, class_rules, module_rules)
        self.names: dict[int, str] = {}
        self.state: dict[int, str] = {}
        self.constants: TensorTable[str] = TensorTable()
        self.repeated: TensorTable[bool] = TensorTable()
        self.replaced: dict[int, tuple[Tensor, Tensor]] = {}
        self.overwritten: set[int] = set()
        self._custom_calls = CustomCalls()
        self.custom_results: dict[int, CustomCall] = {}
        self._device_type = device_type
        self._dtype = dtype
        self.given = torch.float32
        self.input_dims: dict[int, int] = {}
        self._is_function = model is None
        if model is not None:
            self._learn_names(model)

    def _learn_names(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            self.names.setdefault(id(module), name)
            prefix = f"{name}." if name else ""
            for own_name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    self.state.setdefault(id(tensor), prefix + own_name)

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
        if (self._keeps_readout or self.log is not None) and not self._is_calling:
            return self._kept_call(func, tuple(args), dict(kwargs or {}))
        return self.call(func, tuple(args), dict(kwargs or {}))

    def _kept_call(self, function: Function, args: Args, kwargs: Kwargs) -> Any:
        """Make a call, and keep it: in the log, or else until the next skip connection."""
        unit = self._units.current() if self._units.present else None
        if unit is not None and self.log is not None:
            raise ExplanationError(
                f"{self.module_name()} has a rule of its own (module.rule, or rules= by class or "
                "name), which goes by where a call is made from; checkpointing makes calls again "
                "from elsewhere: pass rules by PyTorch function, or checkpointing=False"
            )
        args, kwargs = self._resolved(args, unit), self._resolved(kwargs, unit)
        tape = self.tape
        before = len(tape.residuals)
        self._is_calling = True
        try:
            result = self.call(function, args, kwargs)
        finally:
            self._is_calling = False
        if self.log is not None:
            self.log.add(function, args, kwargs, self._with_writing(function, args, result))
        elif len(tape.residuals) > before:
            tape.readout.clear()
        else:
            tape.readout.append((function, args, kwargs, result))
        return result

    def call_again(self, function: Function, args: Args, kwargs: Kwargs) -> Any:
        """Make a call of the log again."""
        self._is_calling = True
        try:
            result = self.call(function, args, kwargs)
        finally:
            self._is_calling = False
        return self._with_writing(function, args, result)

    def forget_writing(self) -> None:
        """What has been written in place so far is of no concern to the calls that follow."""
        self.replaced.clear()
        self.overwritten.clear()

    def _with_writing(self, function: Function, args: Args, result: Any) -> Any:
        """What a call has returned, or for one that writes in place what it has written."""
        return self.resolve(args[0]) if function in in_place.UPDATES and args else result

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
            return moves.get_property(self, function, args)
        if function in IGNORED:
            return function(*self._resolved(args), **self._resolved(kwargs))
        if self._is_function:
            outermost = None
            for _, outermost in calling_modules():  # noqa: B007
                pass
            if outermost is not None and id(outermost) not in self.names:
                check_model(outermost)
                self._learn_names(as_written(outermost))
                self.names.setdefault(id(outermost), "")
        if function in _RANDOM:
            raise ExplanationError(
                f"{self.module_name()} draws random numbers ({title(function)}), so its output "
                "has no one explanation: call model.eval() first"
            )
        if _autocasts(self._device_type):
            with torch.autocast(self._device_type, enabled=False):
                return self.call(function, args, kwargs)
        if not torch.is_grad_enabled() and (custom := self._custom_calls.current()) is not None:
            return custom_calls.inside_custom(self, custom, function, args, kwargs)
        unit = self._units.current() if self._units.present else None
        if self.replaced or self._units.present:
            args, kwargs = self._resolved(args, unit), self._resolved(kwargs, unit)
        if function in in_place.UPDATES:
            return in_place.updated(self, function, args, kwargs)
        tensors = tensors_in((args, kwargs))
        marks = self.tape.marks
        active = [tensor for tensor in tensors if tensor in marks]
        if not active:
            return self.without_activation(function, args, kwargs)
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
            return unit_calls.inside_unit(self, unit, function, args, kwargs, active)
        handler = HANDLERS.get(function)
        if isinstance(function, HigherOrderOperator):
            handler = HIGHER_ORDER.get(function.name())
        if handler is not None:
            return handler(self, function, args, kwargs)
        if function in self._rules or function in FUNCTION_RULES:
            return self._unknown(function, args, kwargs)
        if function in REARRANGEMENTS:
            return moves.rearrange(self, function, args, kwargs)
        if function in JOINS:
            return moves.join(self, function, args, kwargs)
        if function in CASTS:
            return moves.cast(self, function, args, kwargs)
        return self._unknown(function, args, kwargs)

    def raised(self, given: Tensor) -> Tensor:
        """What comes in from outside, in the precision of the tape."""
        if given.dtype == torch.float64:
            self.given = torch.float64
        return given.to(self._dtype) if given.element_size() < self._dtype.itemsize else given

    def loses_precision(self, source: Tensor, result: Tensor) -> bool:
        """Whether a cast is to less than what is computed in.

        Where that is half precision, the model's own casts to it are made as they are.
        """
        smaller = result.is_floating_point() and result.element_size() < source.element_size()
        return smaller and (self._dtype.itemsize > 2 or result.element_size() < 2)

    def raised_constant(self, tensor: Tensor) -> Tensor:
        """A constant of the model, in the precision of the tape."""
        return raised(tensor, self._dtype)

    def module_name(self) -> str:
        """The name of the module that is calling."""
        return module_name(self.names)

    def book_title(self) -> str:
        """What an operation's absorbed relevance is reported under, if anybody keeps the books."""
        return self.module_name() if self.tape.keeps_books else ""

    # -- arguments -------------------------------------------------------------------------------

    def _resolved(self, value: Any, unit: Unit | None = None) -> Any:
        """Arguments as the model sees them after its in-place updates and finished units."""
        if not self.replaced and not self._units.present:
            return value
        return replace_tensors(value, lambda tensor: self.resolve(tensor, unit))

    def resolve(self, tensor: Tensor, unit: Unit | None = None) -> Tensor:
        """The tensor that stands for ``tensor`` now."""
        replaced = self.replaced.get(id(tensor))
        if replaced is not None:
            if tensor.grad_fn is not None and id(tensor) in self.custom_results:
                custom_calls.leave_custom(self, tensor, self.resolve(replaced[1], unit))
            return self.resolve(self.replaced[id(tensor)][1], unit)
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return tensor  # inside vmap, which masks are made with; it has no memory of its own
        if self.overwritten and tensor.untyped_storage()._cdata in self.overwritten:
            return in_place.view_made_again(self, tensor)
        mark = self.tape.mark(tensor)
        if mark is None:
            return tensor
        if mark.unit is not None and mark.unit is not unit:
            return unit_calls.leave_unit(self, tensor, mark)
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
        self.refuse_unannounced(tensor)
        own = tensor.detach() if tensor.requires_grad else tensor
        prepared = raised(own, precision)
        if prepared is not own:
            self.tape.originals[prepared] = own
        if prepared is not tensor:
            name = self.constant_name(tensor)
            if name:
                self.constants[prepared] = name
                if tensor in self.repeated:
                    self.repeated[prepared] = True
        return prepared

    def refuse_unannounced(self, tensor: Tensor) -> None:
        """Raise for a tensor that depends on activations, but on no call that was seen.

        What a model keeps from an earlier call, with the graph of its parameters, is a constant.
        """
        unknown = tensor.requires_grad and not tensor.is_leaf and tensor not in self.constants
        if unknown and self.tape.made(tensor):
            raise UnsupportedOperationError(
                f"{self.module_name()} uses a result of {node_name(tensor)}, a custom operation "
                "that PyTorch does not announce to anybody: write it with PyTorch functions"
            )

    def constant_title(self, value: Any) -> str:
        """What absorbed relevance is reported under."""
        name = self.constant_name(value) if isinstance(value, Tensor) else ""
        return name or f"{self.module_name()} (constant)"

    def constant_name(self, tensor: Tensor) -> str:
        """The name of the parameter or buffer that a constant is or was made from, if any."""
        name = self.state.get(id(tensor))
        if name is None:
            name = self.constants.get(tensor)
        return name or ""

    # -- making calls ----------------------------------------------------------------------------

    def made(self, function: Function, *args: Any, **kwargs: Any) -> Tensor:
        """Make a call, with autograd's graph if anybody will ask for the gradient."""
        if Phase.GRADIENT not in self.tape.phases:
            return self.computed(function, *args, **kwargs)
        result: Tensor = function(*args, **kwargs)
        return result

    def computed(self, function: Function, *args: Any, **kwargs: Any) -> Tensor:
        """Make a call whose derivative the tape knows."""
        with torch.no_grad():
            result: Tensor = function(*args, **kwargs)
            return result

    # -- calls without activation ----------------------------------------------------------------

    def without_activation(self, function: Function, args: Args, kwargs: Kwargs) -> Any:
        """A call on constants or token ids alone."""
        for tensor in tensors_in((args, kwargs)):
            if id(tensor) in self.token_ids:
                return token_calls.with_token_ids(self, function, args, kwargs)
        for tensor in tensors_in((args, kwargs)):
            self.refuse_unannounced(tensor)
        if function not in in_place.UPDATES and self._is_mixed(args, kwargs):
            args, kwargs = replace_tensors((args, kwargs), self.raised_constant)
        with torch.no_grad():
            result = function(*args, **kwargs)
        name = next((n for n in map(self.constant_name, tensors_in((args, kwargs))) if n), "")
        if name:
            for tensor in tensors_in(result):
                if tensor.is_floating_point() and id(tensor) not in self.state:
                    self.constants[tensor] = name
                    if function in _REPEATS:
                        self.repeated[tensor] = True
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
        return constant in self.repeated

    def report_constants(
        self,
        result: Tensor,
        values: Sequence[Tensor],
        again: Callable[[Mapping[int, Tensor]], Tensor],
    ) -> None:
        """Enter what ``result`` got from constants, made by ``again``, in the books, if any."""
        if self.tape.keeps_books:
            report_constants(self.tape, result, values, again, self.constant_title)

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
        flow: Flow = flows.keep,
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
        others = args[1:]  # a kernel that held the first one would keep its memory
        if isinstance(kernel, SoftmaxKernel):
            output = self.computed(function, *args, **kwargs)
        else:
            output = self.made(run or function, *args, **kwargs)
        if output is source or not output.is_floating_point():
            return output
        if event:
            changes["events"] = mark.events | self.tape.new_event()
        mark = mark.but(source=None, channels=0, **changes)
        return self.tape.record(
            function,
            kernel or AutogradKernel(lambda value: function(value, *others, **rest)),
            (source,),
            output,
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

    def starts_log(self, given: Sequence[Tensor]) -> Log:
        """Keep the calls that follow, in the place of what they compute.

        Args:
            given: the model's inputs.
        """
        self.log = Log(self)
        for tensor in given:
            if self.tape.mark(tensor) is not None:
                self.log.give(tensor)
        return self.log

    def close(self) -> None:
        """Forget everything that was needed only while the model ran."""
        self.log = None
        self._units.close()
        self._custom_calls.close()
        self.custom_results.clear()
        self.replaced.clear()
        self.constants.clear()
        self.token_ids.clear()


_item_size = attrgetter("itemsize")

_LARGEST_FLOAT32 = torch.finfo(torch.float32).max

_REPEATS = frozenset(spelled("expand", "expand_as", "broadcast_to", "repeat", "tile"))

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
