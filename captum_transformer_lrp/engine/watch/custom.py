"""Custom autograd functions: what they compute is watched, how they are derived is theirs.

PyTorch does not announce a call of a ``torch.autograd.Function``, but it announces the calls in its
``forward``, where no gradient is recorded.  The engine records them nevertheless; relevance and
token mass go by them, the gradient goes by the function's own ``backward``, unless it calls modules
or an attention lies inside.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs, replace_tensors
from captum_transformer_lrp.engine.graph.op import Phase
from captum_transformer_lrp.engine.graph.tape import Tape
from captum_transformer_lrp.engine.graph.tensor_table import HeldTable
from captum_transformer_lrp.engine.watch.context import Context
from captum_transformer_lrp.errors import UnsupportedOperationError

_MODULE_CALL = nn.Module._call_impl.__code__


@dataclass(eq=False)
class CustomCall:
    """One call of a custom function that is under way or done.

    Args:
        calls_modules: whether its forward pass calls modules.  Such a function (a reversible
            block, a checkpoint) computes them again in its backward pass, where nobody watches;
            what was recorded is derived instead, as for a function of bitsandbytes, whose own
            derivative is of weights in less than what is computed in.
        attends: whether an attention lies in its forward pass.  Its map has no gradient from the
            function's own backward pass; what was recorded is derived instead.
    """

    calls_modules: bool = False
    attends: bool = False


class CustomCalls:
    """The custom functions of one forward pass."""

    def __init__(self) -> None:
        self._calls: dict[FrameType, CustomCall] = {}
        self._forwards: frozenset[CodeType] | None = None
        self._results: HeldTable[CustomCall] = HeldTable()

    def current(self) -> CustomCall | None:
        """The outermost custom function whose forward pass is calling, if any."""
        if self._forwards is None:
            self._forwards = frozenset(_forwards_of(torch.autograd.Function))
        found: CustomCall | None = None
        module_between = False
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code is _MODULE_CALL:
                module_between = True
            elif frame.f_code in self._forwards:
                found = self._calls.setdefault(frame, CustomCall(_rounds(frame)))
                found.calls_modules |= module_between
            frame = frame.f_back
        return found

    def inside(
        self, watch: Context, custom: CustomCall, function: Function, args: Args, kwargs: Kwargs
    ) -> Any:
        """Record a call in a custom function's forward pass; it sees a result without graph."""
        attentions = len(watch.tape.attentions)
        with torch.enable_grad():
            result = watch.call(function, args, kwargs)
        custom.attends |= len(watch.tape.attentions) > attentions

        def detached(tensor: Tensor) -> Tensor:
            if watch.mark(tensor) is None or self.returns(tensor):
                return tensor
            outside = tensor.detach()
            watch.writes.replaced[outside] = tensor
            self._results[outside] = custom
            return outside

        return replace_tensors(result, detached)

    def returns(self, tensor: Tensor) -> bool:
        """Whether a tensor is what a custom function sees of a recorded call."""
        return tensor in self._results

    def leave(self, watch: Context, result: Tensor, recorded: Tensor) -> None:
        """A result has got the custom function's own derivative."""
        custom = self._results.pop(result)
        if custom.calls_modules:
            return
        if custom.attends:
            for phase in watch.tape.phases:
                if phase.follows_graph:
                    _require_own_derivative(watch, phase(), result, recorded)
            return
        joined: Tensor = _Bridge.apply(watch.tape, result, recorded)
        watch.tape.marks[joined] = watch.tape.marks[recorded]
        watch.writes.replaced[result] = joined

    def close(self) -> None:
        """Let go of the interpreter's frames, and of results."""
        self._results.clear()
        self._calls.clear()


def _require_own_derivative(watch: Context, phase: Phase, result: Tensor, recorded: Tensor) -> None:
    """Raise unless a custom function's backward pass is the derivative of its forward pass."""
    assert result.grad_fn is not None
    below = result.grad_fn.next_functions
    edges = [GradientEdge(node, number) for node, number in below if node is not None]
    seed = torch.linspace(1, 2, result.numel()).to(result).reshape(result.shape)
    with watch.tape.walking(phase):
        pairs = [
            torch.autograd.grad(one, edges, seed, retain_graph=True, allow_unused=True)
            for one in (result, recorded)
        ]
    for own, derived in zip(*pairs, strict=True):
        known = [one.double() for one in (own, derived) if one is not None]
        apart = known[0] - known[1] if len(known) > 1 else sum(known)
        largest = max(float(one.abs().max()) for one in known) if known else 0.0
        if largest and float(torch.as_tensor(apart).abs().max()) > 1e-2 * largest:
            raise UnsupportedOperationError(
                f"{watch.names.caller()} computes attention in a custom autograd function whose "
                "backward is not the derivative of its forward, so that its attention map has no "
                "gradient: write it with PyTorch functions"
            )


def _rounds(frame: FrameType) -> bool:
    """Whether a custom function's own derivative is of rounded weights."""
    return str(frame.f_globals.get("__name__")).startswith("bitsandbytes.")


def _forwards_of(function: type[torch.autograd.Function]) -> Iterator[CodeType]:
    """The code of ``forward`` of every custom function that there is."""
    for kind in function.__subclasses__():
        code = getattr(kind.forward, "__code__", None)
        if code is not None:
            yield code
        yield from _forwards_of(kind)


class _Bridge(torch.autograd.Function):
    """One tensor of a custom function's result and of what was recorded inside it.

    Gradient to the function's own backward pass, everything else to what was recorded.
    """

    @staticmethod
    def forward(ctx: Any, tape: Tape, result: Tensor, recorded: Tensor) -> Tensor:
        ctx.tape = tape
        ctx.set_materialize_grads(False)
        return recorded.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if ctx.tape.phase.follows_graph:
            return None, grad, None
        return None, None, grad
