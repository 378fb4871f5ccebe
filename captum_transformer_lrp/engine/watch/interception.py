"""Watching a model's forward pass: every PyTorch call that it makes comes by here.

:class:`Interception` is a ``TorchFunctionMode``.  While it is active, in its own thread only,
PyTorch offers it each call — ``nn.Linear`` and ``a + b`` alike, whoever wrote the module.  It
makes the call, puts a switch behind it (see :mod:`captum_transformer_lrp.engine.graph.tape`) and
notes the provenance of the result.  The model is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter, is_not
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from captum_transformer_lrp.engine.graph.arguments import (
    Args,
    Function,
    Kwargs,
    replace_tensors,
    tensors_in,
    title,
)
from captum_transformer_lrp.engine.graph.structure import IGNORED, UPDATES
from captum_transformer_lrp.engine.graph.tape import Tape
from captum_transformer_lrp.engine.graph.unit import Unit
from captum_transformer_lrp.engine.graph.values import raised
from captum_transformer_lrp.engine.watch import hooks, in_place, moves, scatters, unit_calls, writes
from captum_transformer_lrp.engine.watch.call_rules import CallRules
from captum_transformer_lrp.engine.watch.checks import check_modules
from captum_transformer_lrp.engine.watch.constant_calls import ignored, without_activation
from captum_transformer_lrp.engine.watch.context import Context, Table
from captum_transformer_lrp.engine.watch.custom import CustomCalls
from captum_transformer_lrp.engine.watch.eager import as_written
from captum_transformer_lrp.engine.watch.log import Log
from captum_transformer_lrp.engine.watch.names import Names
from captum_transformer_lrp.engine.watch.precision import Precision
from captum_transformer_lrp.engine.watch.refusals import record_unannounced
from captum_transformer_lrp.engine.watch.token_calls import INDEXED, check_indices
from captum_transformer_lrp.engine.watch.units import Modules, calling_modules, is_single_operation
from captum_transformer_lrp.errors import ExplanationError, UnsupportedOperationError
from captum_transformer_lrp.rules.examples import Examples
from captum_transformer_lrp.rules.rule_set import RuleSet
from captum_transformer_lrp.rules.spellings import spelled


class Interception(TorchFunctionMode):
    """Makes a model's calls and writes them on a tape.

    Args:
        tape: where to.
        modules: those of the explained model; None if it is a plain function.
        examples: number of examples in the batch.
        rules: which rule a call goes by.
        table: what is done with each call, but for those that only move elements.
        precision: what is computed in.

    Attributes:
        context: what handlers are given.
        log: where calls are noted, if they are.
    """

    def __init__(
        self,
        tape: Tape,
        modules: Modules | None,
        examples: int,
        rules: RuleSet,
        table: Table,
        *,
        precision: Precision | None = None,
    ) -> None:
        super().__init__()
        self.tape = tape
        self.log: Log | None = None
        of_calls = CallRules(rules, modules)
        self.context = Context(
            self, tape, Examples(examples), of_calls, Names(modules or ()), precision or Precision()
        )
        with_rule = dict.fromkeys(of_calls.functions, table.other)
        functions = {**moves.MOVES, **with_rule, **moves.HANDLERS, **scatters.HANDLERS,
                     **table.functions}  # fmt: skip
        self._table = replace(table, functions=functions)
        self._units = of_calls.units
        self._custom_calls = CustomCalls()
        self._writes = self.context.writes
        self._is_function = modules is None

    # -- entry -----------------------------------------------------------------------------------

    def __torch_function__(
        self,
        func: Function,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if torch.is_inference_mode_enabled():  # explained all the same, as is torch.no_grad()
            with torch.inference_mode(False), torch.enable_grad():
                return self.__torch_function__(func, types, args, kwargs)
        saving = _hooks_on_saved_tensors(False)
        if saving is not None and saving[0] is not _as_it_is:
            with saved_tensors_hooks(_as_it_is, _as_it_is):
                return self.__torch_function__(func, types, args, kwargs)
        if self.log is not None:
            return self._logged_call(self.log, func, tuple(args), dict(kwargs or {}))
        return self.call(func, tuple(args), dict(kwargs or {}))

    def _logged_call(self, log: Log, function: Function, args: Args, kwargs: Kwargs) -> Any:
        """Make a call, and note it; those that a handler makes in its place are not noted."""
        unit = self._units.current() if self._units.present else None
        if unit is not None and log.has_cuts:
            raise ExplanationError(
                f"{self.context.names.caller()} has a rule of its own (module.rule, or rules= by "
                "class or name), which goes by where a call is made from; checkpointing makes "
                "calls again from elsewhere: pass rules by PyTorch function, or checkpointing=False"
            )
        args, kwargs = self._resolved(args, unit), self._resolved(kwargs, unit)
        self.log = None
        try:
            result = self.call(function, args, kwargs)
        finally:
            self.log = log
        log.add(function, args, kwargs, result)
        return result

    def replace(self, target: Tensor, result: Tensor) -> None:
        """From now on ``result`` stands for ``target``, which the model changed in place."""
        in_place.replace(self.context, target, result)

    def call(self, function: Function, args: Args, kwargs: Kwargs) -> Any:
        """Make one call of the model."""
        if not torch.is_grad_enabled() and (custom := self._custom_calls.current()) is not None:
            return self._custom_calls.inside(self.context, custom, function, args, kwargs)
        name = getattr(function, "__name__", "")
        if name == "__get__":
            return moves.get_property(self.context, function, args)
        if function in hooks.REGISTRATIONS:
            return hooks.unregistered()
        writes_into = writes.may_write(function, args, kwargs)
        if name == "__set__" or function in in_place.REPLACEMENTS:
            in_place.check_memory(self.context, function, args)
            if not writes_into:
                return function(*args, **kwargs)
        if writes_into:
            args, kwargs = writes.diverted(self.context, *map(self._resolved, (args, kwargs)))
        if function in IGNORED:
            return ignored(self.context, function, self._resolved(args), self._resolved(kwargs))
        if self._is_function:
            self._learn_caller()
        if function in _RANDOM:
            raise _random(self.context, function)
        if self.context.precision.autocasts():
            with self.context.precision.kept():
                return self.call(function, args, kwargs)
        unit = self._units.current() if self._units.present else None
        if self._writes.replaced or self._units.present:
            args, kwargs = self._resolved(args, unit), self._resolved(kwargs, unit)
        tensors = tensors_in((args, kwargs))
        marks = self.tape.marks
        active = [tensor for tensor in tensors if tensor in marks]
        if len(active) < len(tensors) and record_unannounced(self.context, tensors):
            return self.call(function, args, kwargs)
        if function in UPDATES:
            return in_place.updated(self.context, function, args, kwargs)
        if not active:
            return without_activation(self.context, function, args, kwargs)
        if function in INDEXED:
            check_indices(self.context, function, args, kwargs)
        if kwargs.get("out") is not None:
            raise ExplanationError(
                f"{title(function)} in {self.context.names.caller()} writes into out=; "
                "explanations need its result as a new tensor"
            )
        if writes_into and function not in self._table.functions:
            raise writes.unknown(self.context, function)
        precision = active[0].dtype
        if len(active) > 1:
            precision = max((tensor.dtype for tensor in active), key=_item_size)
        prepared = [self._prepared(tensor, precision) for tensor in tensors]
        if any(map(is_not, prepared, tensors)):
            rest = iter(prepared)
            args, kwargs = replace_tensors((args, kwargs), lambda _: next(rest))
        if unit is not None and not is_single_operation(unit.module):
            return unit_calls.inside_unit(self.context, unit, function, args, kwargs, active)
        try:
            return self._table.handler(function)(self.context, function, args, dict(kwargs))
        except UnsupportedOperationError as refusal:
            return self._table.other(self.context, function, args, kwargs, refusal)

    def _learn_caller(self) -> None:
        """Learn the names of the outermost calling module, if it is a new one."""
        outermost = None
        for _, outermost in calling_modules():  # noqa: B007
            pass
        names = self.context.names
        if outermost is not None and not names.knows(outermost):
            check_modules(list(outermost.named_modules()))
            names.learn(list(as_written(outermost).named_modules()), outermost)
            self._writes.snapshot.add(outermost)

    # -- arguments -------------------------------------------------------------------------------

    def _resolved(self, value: Any, unit: Unit | None = None) -> Any:
        """Arguments as the model sees them after its in-place updates and finished units."""
        if not self._writes.replaced and not self._units.present:
            return value
        return replace_tensors(value, lambda tensor: self.resolve(tensor, unit))

    def resolve(self, tensor: Tensor, unit: Unit | None = None) -> Tensor:
        """The tensor that stands for ``tensor`` now."""
        replaced = self._writes.replaced.get(tensor)
        if replaced is not None:
            if tensor.grad_fn is not None and self._custom_calls.returns(tensor):
                self._custom_calls.leave(self.context, tensor, self.resolve(replaced, unit))
            return self.resolve(self._writes.replaced[tensor], unit)
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return tensor  # inside vmap, which masks are made with; it has no memory of its own
        if self._writes.memory and tensor.untyped_storage()._cdata in self._writes.memory:
            return in_place.view_made_again(self.context, tensor)
        mark = self.tape.mark(tensor)
        if mark is None:
            return tensor
        if mark.node.unit is not None and mark.node.unit is not unit:
            return unit_calls.leave_unit(self.context, tensor, mark)
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
        names = self.context.names
        own = _without_gradient(tensor)
        prepared = raised(own, precision)
        if prepared is not own:
            self.tape.originals[prepared] = own
        if prepared is not tensor:
            names.inherit(prepared, tensor)
        return prepared

    def close(self) -> None:
        """Forget everything that was needed only while the model ran."""
        self.log = None
        self._units.close()
        self._custom_calls.close()
        self._writes.replaced.clear()
        self.context.names.constants.clear()
        self.context.look_ups.ids.clear()


_item_size = attrgetter("itemsize")

_RANDOM = frozenset(
    spelled(
        "bernoulli", "bernoulli_", "rand", "randn", "rand_like", "randn_like", "randint",
        "randint_like", "randperm", "normal", "normal_", "uniform_", "exponential_", "multinomial",
        "poisson",
    )
)  # fmt: skip


def _without_gradient(tensor: Tensor) -> Tensor:
    own = tensor.detach() if tensor.requires_grad else tensor
    return own.clone() if own.is_inference() else own


def _random(watch: Context, function: Function) -> ExplanationError:
    return ExplanationError(
        f"{watch.names.caller()} draws random numbers ({title(function)}), so its output has no "
        "one explanation: call model.eval() first"
    )


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
