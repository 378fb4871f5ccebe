"""All that a handler is given, and what a table of handlers is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol
from weakref import proxy

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

from captum_transformer_lrp.engine.graph import books, switch
from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs, title
from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.graph.role import Flow, Role
from captum_transformer_lrp.engine.graph.tape import Tape
from captum_transformer_lrp.engine.graph.tensor_table import HeldTable
from captum_transformer_lrp.engine.graph.unit import Unit
from captum_transformer_lrp.engine.watch.call_rules import CallRules
from captum_transformer_lrp.engine.watch.names import Names
from captum_transformer_lrp.engine.watch.precision import Precision
from captum_transformer_lrp.engine.watch.snapshot import Snapshot
from captum_transformer_lrp.engine.watch.token_ids import TokenIds
from captum_transformer_lrp.errors import UnsupportedOperationError
from captum_transformer_lrp.rules import Rule
from captum_transformer_lrp.rules.examples import Examples
from captum_transformer_lrp.rules.kernels import Kernel


class Mode(Protocol):
    """What makes the calls, as its context knows it."""

    def call(self, function: Function, args: Args, kwargs: Kwargs) -> Any:
        """Make one call of the model."""

    def resolve(self, tensor: Tensor, unit: Unit | None = None) -> Tensor:
        """The tensor that stands for ``tensor`` now."""

    def replace(self, target: Tensor, result: Tensor) -> None:
        """From now on ``result`` stands for ``target``, which the model changed in place."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> None: ...


class MixedExamplesError(UnsupportedOperationError):
    """A call computes one example's result from another example."""


@dataclass
class Writes:
    """What the model has written in place.

    Args:
        replaced: what stands for a tensor now.
        memory: the storages that have been written to.
        snapshot: which tensors are the user's, whose memory is never written to.
    """

    replaced: HeldTable[Tensor] = field(default_factory=HeldTable)
    memory: set[int] = field(default_factory=set)
    snapshot: Snapshot = field(default_factory=Snapshot)

    def clear(self) -> None:
        """Forget everything."""
        self.replaced.clear()
        self.memory.clear()


@dataclass
class LookUps:
    """Token ids on their way to embeddings.

    Args:
        ids: what is known of tensors of ids.
        leaves: for each look-up the input, the embeddings and the places of their tokens.
    """

    ids: HeldTable[TokenIds] = field(default_factory=HeldTable)
    leaves: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)


class Context:
    """All that a handler is given.

    As a context manager it lets a handler make calls that are watched in turn.

    Args:
        mode: what makes the calls.
        tape: where they are recorded.
        examples: the examples of the batch, along the first axis.
        rules: which rule a call goes by.
        names: what modules and constants are called.
        precision: what is computed in.

    Attributes:
        mark: returns what is known of an activation; None for anything else.
    """

    def __init__(
        self,
        mode: Mode,
        tape: Tape,
        examples: Examples,
        rules: CallRules,
        names: Names,
        precision: Precision,
    ) -> None:
        self._mode: Mode = proxy(mode)  # it holds this object
        self.tape = tape
        self.mark = tape.mark
        self.examples = examples
        self.rules = rules
        self.names = names
        self.precision = precision
        self.writes = Writes()
        self.look_ups = LookUps()

    def __enter__(self) -> None:
        self._mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)

    def call(self, function: Function, args: Args, kwargs: Kwargs) -> Any:
        """Make one call of the model, in the place of another."""
        return self._mode.call(function, args, kwargs)

    def resolve(self, tensor: Tensor) -> Tensor:
        """The tensor that stands for ``tensor`` now."""
        return self._mode.resolve(tensor)

    def replace(self, target: Tensor, result: Tensor) -> None:
        """From now on ``result`` stands for ``target``, which the model changed in place."""
        self._mode.replace(target, result)

    def made(self, function: Function, *args: Any, **kwargs: Any) -> Tensor:
        """Make a call, with autograd's graph if anybody will ask for the gradient."""
        if not any(phase.follows_graph for phase in self.tape.phases):
            return self.computed(function, *args, **kwargs)
        result: Tensor = function(*args, **kwargs)
        return result

    def computed(self, function: Function, *args: Any, **kwargs: Any) -> Tensor:
        """Make a call whose derivative the tape knows."""
        was_enabled = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # as no_grad() does, in half the time
        try:
            result: Tensor = function(*args, **kwargs)
        finally:
            torch._C._set_grad_enabled(was_enabled)
        return result

    def record(
        self,
        function: Function,
        kernel: Kernel,
        inputs: Sequence[Tensor],
        output: Tensor,
        *,
        rule: Rule,
        role: Role,
        mark: Mark,
        name: str | None = None,
        **more: Any,
    ) -> Tensor:
        """Record a call that has been made (``switch.record``); the result goes on in its place.

        What its rule absorbs is reported under ``name``, or else under the calling module's.
        """
        if mark.columns is not None and (mark.node.softmax or role not in (Flow.KEEP, Flow.MASKED)):
            self.refuse_mixed()
        if name is None:
            name = self.names.caller() if self.tape.keeps_books else ""
        more |= {"rule": rule, "role": role, "mark": mark, "name": name}
        return switch.record(self.tape, function, kernel, inputs, output, **more)

    def report_constants(
        self,
        result: Tensor,
        values: Sequence[Tensor],
        again: Callable[[HeldTable[Tensor]], Tensor],
    ) -> None:
        """Enter what ``result`` got from constants, made by ``again``, in the books, if any."""
        if self.tape.keeps_books:
            books.report_constants(self.tape, result, values, again, self.names.title)

    def refuse_mixed(self) -> NoReturn:
        """Raise for a call whose result at one example depends on another."""
        raise MixedExamplesError(
            f"in {self.names.caller()} the examples of the batch cannot be told apart, so their "
            "relevance cannot be normalised one by one: explain one example at a time"
        )

    def unsupported(self, function: Function, what: str) -> UnsupportedOperationError:
        """The error for a call that cannot be explained."""
        return UnsupportedOperationError(
            f"{title(function)}, called by {self.names.caller()}, has no propagation rule for "
            f"{what}: file one with captum_transformer_lrp.rules.register_rule, or set module.rule"
        )


_OPERATORS = (HigherOrderOperator, OpOverload, OpOverloadPacket)

Handler = Callable[[Context, Function, Args, Kwargs], Any]


class Handlers(dict[Function, Handler]):
    """What to do with calls of given functions."""

    def handles(self, *functions: Function) -> Callable[[Handler], Handler]:
        """Decorator: enter a handler for all of ``functions``."""

        def enter(handler: Handler) -> Handler:
            self.update(dict.fromkeys(functions, handler))
            return handler

        return enter

    def binds(self, *functions: Function) -> Callable[[Function], Function]:
        """Decorator: the same for one that takes the arguments themselves, behind the function."""

        def enter(handler: Function) -> Function:
            @self.handles(*functions)
            def bound(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
                return handler(watch, function, *args, **kwargs)

            return handler

        return enter

    def composes(self, *functions: Function) -> Callable[[Function], Function]:
        """Decorator: ``functions`` are made as another says, whose calls are watched in turn."""

        def enter(composite: Function) -> Function:
            @self.binds(*functions)
            def watched(watch: Context, function: Function, *args: Any, **kwargs: Any) -> Any:
                with watch:
                    return composite(*args, **kwargs)

            return composite

        return enter


@dataclass(frozen=True)
class Table:
    """What to do with the calls of one forward pass, if they take an activation.

    Args:
        functions: handlers by function.
        operators: handlers of higher-order and of other libraries' operators, by name.
        other: the handler of everything else; it is given the error, too, of a handler that has
            refused a call.
    """

    functions: Mapping[Function, Handler]
    operators: Mapping[str, Handler]
    other: Callable[..., Any]

    def handler(self, function: Function) -> Handler:
        """The handler of a call."""
        found = self.functions.get(function)
        if found is None and isinstance(function, _OPERATORS):
            found = self.operators.get(str(function).removesuffix(".default"))
        return found or self.other
