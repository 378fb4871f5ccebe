"""Ctrl-C at any moment leaves nothing active, and backward hooks of the user see no relevance.

A tracing function raises KeyboardInterrupt at the n-th step of the interpreter, as a signal would;
tests go through all n in strides.  Returns, the ends of ``with`` blocks, and generators, which are
closed early, are passed over: Python reports steps there at which it looks for no signal.
"""

from __future__ import annotations

import inspect
import linecache
import random
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from captum.attr import Saliency
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode, _get_current_function_mode_stack

from captum_transformer_lrp import (
    AttentionRollout,
    GenericAttention,
    TransformerAttribution,
    TransformerLRP,
    compare,
)
from captum_transformer_lrp.errors import ExplanationError
from tests.attr.methods import each_once


class Net(nn.Module):
    """An attention between norms; it counts its calls and keeps its last tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.qkv, self.head = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return self.head((x + (q @ k.mT).softmax(-1) @ v)[:, 0])


X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))


EXPLANATIONS: dict[str, Callable[[nn.Module], Any]] = {
    "attribute": lambda net: TransformerAttribution(net).attribute(X, 1),
    "attribute_targets": lambda net: TransformerAttribution(net).attribute_targets(X, [0, 1]),
    "explain": lambda net: TransformerAttribution(net).explain(X, 1),
    "checkpointing": lambda net: TransformerAttribution(net, checkpointing=True).attribute(X, 1),
    "TransformerLRP": lambda net: TransformerLRP(net).attribute(X, 1),
    "compare": lambda net: compare(net, X, [1], ["raw_attention", "saliency"]),
}


class Interrupting:
    """A tracing function that raises KeyboardInterrupt at its n-th step; counts them if n is 0."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.steps = 0
        self.has_raised = False
        self.open: set[tuple[int, int]] = set()
        """The ``with`` blocks that frames are in: a frame's id, and a line's number."""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.steps += 1
        passes = event == "return" or frame.f_code.co_flags & inspect.CO_GENERATOR
        passes = passes or self.ends_a_block(frame, event)
        if self.n and self.steps >= self.n and not passes:
            sys.settrace(None)
            self.has_raised = True
            raise KeyboardInterrupt
        return self

    def ends_a_block(self, frame: FrameType, event: str) -> bool:
        """Python comes back to the line of a ``with`` when its block ends."""
        if event == "return":
            self.open = {place for place in self.open if place[0] != id(frame)}
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
        if event != "line" or not line.startswith("with "):
            return False
        place = (id(frame), frame.f_lineno)
        ends = place in self.open
        self.open ^= {place}
        return ends


def interrupted(explain: Callable[[], Any], n: int) -> tuple[Interrupting, BaseException | None]:
    tracing = Interrupting(n)
    before = sys.gettrace()
    sys.settrace(tracing)
    try:
        explain()
    except BaseException as error:
        return tracing, error
    finally:
        sys.settrace(before)
    return tracing, None


def active() -> dict[str, Any]:
    """What PyTorch keeps for this thread."""
    nesting = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return {
        "modes": _get_current_function_mode_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), nesting),
        "vmap": torch._C._functorch.get_dynamic_layer_stack_depth(),
        "saved tensors": torch._C._autograd._top_saved_tensors_default_hooks(False),
        "random numbers": torch.get_rng_state().tolist(),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "mode"), each_once(["plain", "no_grad", "a mode of the user's"], EXPLANATIONS)
)
def test_ctrl_c_leaves_nothing_active_and_comes_out_as_it_is(name: str, mode: str) -> None:
    net = Net().eval()
    around = {"plain": torch.enable_grad, "no_grad": torch.no_grad}.get(mode, BaseTorchFunctionMode)
    with around():
        EXPLANATIONS[name](net)
        before, attributes = active(), dict(vars(net))
        tracing, error = interrupted(lambda: EXPLANATIONS[name](net), 0)
        assert error is None
        assert tracing.steps > 5000
        # A prime stride, so that different instructions of loops are hit.
        steps = range(1 + 7 * len(mode), tracing.steps, 307)
        has_raised = []
        for n in steps:
            found, error = interrupted(lambda: EXPLANATIONS[name](net), n)
            has_raised.append(found.has_raised)
            if not found.has_raised:
                continue
            assert type(error) is KeyboardInterrupt, (n, error)
            del error
            assert active() == before, n
            assert vars(net) == attributes, n
            assert net.calls.item() == 0, n
        assert all(has_raised[:-1])  # behind the last one may be returns alone


def test_an_interruption_in_each_call_of_the_model() -> None:
    """The n-th call that PyTorch announces raises, for every n."""
    net = Net().eval()
    expected = TransformerAttribution(net).attribute(X, 1)

    class Counting(BaseTorchFunctionMode):
        calls, at = 0, -1

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            Counting.calls += 1
            if Counting.calls == Counting.at:
                raise KeyboardInterrupt
            return super().__torch_function__(func, types, args, kwargs)

    with Counting() as mode:
        TransformerAttribution(net).attribute(X, 1)
        total, before = Counting.calls, active()
        assert total > 50
        for at in range(1, total, 3):
            Counting.calls, Counting.at = 0, at
            with pytest.raises(KeyboardInterrupt):
                TransformerAttribution(net).attribute(X, 1)
            Counting.at = -1
            assert active() == before
            assert before["modes"] == [mode]
    assert torch.equal(TransformerAttribution(net).attribute(X, 1), expected)


@pytest.mark.parametrize("method", [TransformerAttribution, TransformerLRP, AttentionRollout])
def test_ctrl_c_while_a_mode_is_taken_away_comes_out_as_it_is(method: type) -> None:
    """In such a block of ``contextlib`` the watch finds no mode to leave, which is an error of its
    own; and the model is not called again to look for a missing batch."""
    net, calls = Net().eval(), []

    def forward(x: Tensor) -> Tensor:
        calls.append(x)
        net(x)
        torch._C._pop_torch_function_stack()
        raise KeyboardInterrupt

    before = active()
    with pytest.raises(KeyboardInterrupt):
        method(forward).attribute(X, 1)
    assert active() == before
    assert len(calls) == 1


def test_an_error_of_the_model_keeps_what_it_comes_from() -> None:
    def forward(x: Tensor) -> Tensor:
        try:
            raise KeyError("first")
        except KeyError:
            raise RuntimeError("second")  # noqa: B904

    with pytest.raises(RuntimeError, match="second") as caught:
        TransformerAttribution(forward).attribute(X, 1)
    assert isinstance(caught.value.__context__, KeyError)
    assert not caught.value.__suppress_context__


@pytest.mark.slow
def test_signals_at_random_moments_leave_no_mode_active() -> None:
    """Some of 3,000 come while ``contextlib`` enters or leaves a block."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    method = TransformerAttribution(nn.Sequential(layer, nn.Flatten(), nn.Linear(96, 3)).eval())
    x, moments, interrupted_calls = torch.randn(2, 6, 16), random.Random(0), 0

    def ctrl_c(*_: Any) -> None:
        raise KeyboardInterrupt

    handled = signal.signal(signal.SIGALRM, ctrl_c)
    try:
        for _ in range(3000):
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.0005, 0.02))
                    method.attribute(x, 1)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted_calls += 1
            assert _get_current_function_mode_stack() == []
    finally:
        signal.signal(signal.SIGALRM, handled)
    assert interrupted_calls > 300


def test_an_error_after_a_handled_interruption_stays_an_error() -> None:
    """The user catches Ctrl-C, and explains something wrong while at it."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(ValueError, match="target"):
            TransformerAttribution(Net().eval()).attribute(X, 99)


# -- backward hooks -----------------------------------------------------------------------------


def zeros(gradients: Any) -> Any:
    return tuple(None if one is None else one * 0 for one in gradients)


SEEN: list[Any] = []


def hook(module: nn.Module, given: Any, arrived: Any) -> Any:
    SEEN.append(arrived)
    return zeros(given)


def before_hook(module: nn.Module, arrived: Any) -> Any:
    SEEN.append(arrived)
    return zeros(arrived)


class Saving(Net):
    """Keeps the gradient of its attention, as models that were made for an explanation do."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        attention = (q @ k.mT).softmax(-1)
        if attention.requires_grad:
            attention.register_hook(self.keep)
        return self.head((x + attention @ v)[:, 0])

    def keep(self, gradient: Tensor) -> Tensor:
        self.last = gradient
        return gradient * 0


METHODS = [TransformerAttribution, TransformerLRP, GenericAttention, AttentionRollout]

HOOKS: dict[str, Callable[[Net], Any]] = {
    "model": lambda net: net.register_full_backward_hook(hook),
    "norm": lambda net: net.norm.register_full_backward_hook(hook),
    "head": lambda net: net.head.register_full_backward_hook(hook),
    "before": lambda net: net.qkv.register_full_backward_pre_hook(before_hook),
    "before, model": lambda net: net.register_full_backward_pre_hook(before_hook),
    "every module": lambda net: nn.modules.module.register_module_full_backward_hook(hook),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", HOOKS)
def test_backward_hooks_see_no_relevance_and_change_no_map(where: str, method: type) -> None:
    net = Net().eval()
    expected = method(net).attribute(X, 1)
    handle = HOOKS[where](net)
    try:
        SEEN.clear()
        assert torch.equal(method(net).attribute(X, 1), expected)
        assert SEEN == []
        x = X.clone().requires_grad_()
        net(x)[:, 1].sum().backward()  # which calls them as before
        assert SEEN
    finally:
        handle.remove()


@pytest.mark.parametrize("method", METHODS)
def test_a_hook_that_the_model_sets_is_not_called(method: type) -> None:
    net, plain = Saving().eval(), Net().eval()
    assert torch.allclose(method(net).attribute(X, 1), method(plain).attribute(X, 1))
    assert net.last is None


def test_captums_own_methods_still_call_backward_hooks() -> None:
    net = Net().eval()
    handle = net.head.register_full_backward_hook(hook)
    SEEN.clear()
    assert not Saliency(net).attribute(X.clone().requires_grad_(), 1).any()
    assert SEEN
    handle.remove()


def test_hooks_of_the_old_kind_are_refused() -> None:
    net = Net().eval()
    net.head.register_backward_hook(hook)
    with pytest.raises(ExplanationError, match=r"head.*register_full_backward_hook"):
        TransformerAttribution(net).attribute(X, 1)
