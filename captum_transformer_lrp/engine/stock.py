"""Running Captum's own ``LRP`` and ``LayerLRP`` on Transformers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import captum.attr._core.lrp as captum_lrp
from captum.attr import LRP
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captum_transformer_lrp.engine.graph.arguments import Function, tensors_in
from captum_transformer_lrp.engine.graph.marks import Kind
from captum_transformer_lrp.engine.graph.op import Books
from captum_transformer_lrp.engine.graph.tape import Tape
from captum_transformer_lrp.engine.operations import TABLE
from captum_transformer_lrp.engine.phases import Relevance
from captum_transformer_lrp.engine.watch.hooks import REGISTRATIONS
from captum_transformer_lrp.engine.watch.interception import Interception
from captum_transformer_lrp.engine.watch.snapshot import Snapshot
from captum_transformer_lrp.engine.watch.units import calling_frame, calling_modules
from captum_transformer_lrp.rules import Rule
from captum_transformer_lrp.rules.base import engine_propagates
from captum_transformer_lrp.rules.call import Stabilizer
from captum_transformer_lrp.rules.captum import EngineRule
from captum_transformer_lrp.rules.examples import broadcast_examples
from captum_transformer_lrp.rules.presets import Preset, checked_epsilon, epsilon_of
from captum_transformer_lrp.rules.presets import preset as named_preset
from captum_transformer_lrp.rules.registry import Target
from captum_transformer_lrp.rules.rule_set import RuleSet, UserRules
from captum_transformer_lrp.rules.stabilizers import SignAwareStabilizer

_CAPTUM_FORWARD = LRP._forward_fn_wrapper.__code__
_CAPTUM_HOOKS = (PropagationRule.forward_hook.__code__, Rule.forward_hook.__code__)


class StockLRP(TorchFunctionMode):
    """Watches the forward pass whose gradient ``captum.attr.LRP`` takes for relevance.

    Captum seeds the target's output with 1 and multiplies by the output in the end, so its
    backward pass is this library's relevance phase, if only the calls of the forward pass have
    their switches.  Every other PyTorch call in the block goes by untouched.

    Args:
        rules: what the calls go by.
        stabilizer: divides relevance safely.
        epsilon: ε of eq. 2.
    """

    def __init__(self, rules: RuleSet, stabilizer: Stabilizer, epsilon: float) -> None:
        super().__init__()
        self._rules = rules
        self._stabilizer = stabilizer
        self._epsilon = epsilon
        self._books = Books()
        self._frame: FrameType | None = None
        self._interception: _LayerwiseInterception | None = None

    @property
    def absorbed(self) -> dict[str, Tensor]:
        """The share of the output's relevance that each parameter has absorbed, (N,) each."""
        return self._books.found()

    def __torch_function__(
        self,
        func: Function,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        frame = calling_frame(_CAPTUM_FORWARD)
        if frame is None:
            return func(*args, **(kwargs or {}))
        if frame is not self._frame or self._interception is None:
            self._interception = self._begin(frame)
        return self._interception.call(func, tuple(args), dict(kwargs or {}))

    def close(self) -> None:
        """Let go of the last forward pass, but for what was absorbed."""
        self._frame = None
        if self._interception is not None:
            self._interception.close()
            self._interception.tape.clear()

    def _begin(self, frame: FrameType) -> _LayerwiseInterception:
        self.close()
        self._frame = frame
        attribution: LRP = frame.f_locals["self"]
        inputs = [one for one in frame.f_locals["inputs"] if isinstance(one, Tensor)]
        tape = Tape(self._stabilizer, keeps_books=True, epsilon=self._epsilon, phases=[Relevance])
        self._books = Books()
        tape.phase = Relevance(self._books, explicit_zeros=True)
        interception = _LayerwiseInterception(
            tape,
            list(attribution.model.named_modules()),
            inputs[0].shape[0],
            self._rules,
            TABLE,
        )
        interception.context.writes.snapshot = Snapshot(attribution.model).note()
        for index, value in enumerate(inputs):
            interception.context.rules.input_dims[index] = value.dim()
            if value.requires_grad:
                tape.marks[value] = tape.given(interception.context.examples, index, source=index)
        for layer in _explained_layers(attribution):
            if "rule" not in vars(layer):  # a block, which Captum gives no rule
                rule = EngineRule()
                rule.relevance_input = {}
                rule.relevance_output = {}
                layer.rule = rule
                attribution.layers.append(layer)
                attribution.forward_handles.append(layer.register_forward_hook(rule.forward_hook))
        return interception


def _explained_layers(attribution: LRP) -> list[nn.Module]:
    """The layer or layers of a ``LayerLRP``."""
    layer = getattr(attribution, "layer", None)
    if layer is None:
        return []
    return list(layer) if isinstance(layer, (list, tuple)) else [layer]


class _LayerwiseInterception(Interception):
    """Leaves modules with a rule of Captum to Captum's hooks."""

    def call(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if function in REGISTRATIONS and any(map(calling_frame, _CAPTUM_HOOKS)):
            return function(*self._resolved(args), **kwargs)  # no hook of the user's
        for _, module in calling_modules():
            rule = vars(module).get("rule")
            if isinstance(rule, PropagationRule) and not isinstance(rule, Rule):
                return self._by_captum(function, args, kwargs)
        return super().call(function, args, kwargs)

    def _by_captum(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = function(*args, **kwargs)
        active = [value for value in tensors_in((args, kwargs)) if self.tape.mark(value)]
        marks = [mark for value in active if (mark := self.tape.mark(value))]
        for part in tensors_in(result):
            if marks and part.requires_grad and self.tape.mark(part) is None:
                examples = broadcast_examples(marks[0].examples, active[0].shape, part.shape)
                self.tape.marks[part] = self.tape.made(Kind.OTHER, marks, examples)
        return result


@contextlib.contextmanager
def transformer_rules(
    preset: str | Preset = "paper",
    *,
    rules: dict[Target, PropagationRule | type[PropagationRule]] | None = None,
    input_range: tuple[float | Tensor, float | Tensor] | None = None,
    stabilizer: Stabilizer | None = None,
    epsilon: float | None = None,
    strict: bool = True,
) -> Iterator[StockLRP]:
    """Let ``captum.attr.LRP`` and ``captum.attr.LayerLRP`` propagate by this library's rules.

    Inside the ``with`` block, and in its thread alone, Captum's own classes run on unmodified
    Transformers: functional calls and skip connections included, and conserving.  A layer that the
    user has given a rule of Captum (``module.rule = EpsilonRule()``) is Captum's own affair, as
    always.  Outside the block Captum is what it was.

    Captum returns attributions that start from the target's logit, as
    ``TransformerLRP(model, preset=..., start="logit")`` does, and both agree.

    Args:
        preset: the rules, by name or as a :class:`Preset`.
        rules: rules that go before the preset's, by PyTorch function, module class or name of a
            module.
        input_range: as in :class:`~captum_transformer_lrp.TransformerLRP`.
        stabilizer: divides relevance in the place of ``epsilon``; None for ``epsilon``.
        epsilon: ε of eq. 2, as in :class:`~captum_transformer_lrp.TransformerLRP`.
        strict: whether an operation without a rule is an error (the default) or follows eq. 2.

    Yields:
        An object whose ``absorbed`` says, after an ``attribute`` call, which share of the output's
        relevance each parameter has absorbed, (N,) by name: times the target's logit, these
        shares add up to Captum's convergence delta.

    Example:
        >>> import timm, torch
        >>> from captum.attr import LRP
        >>> from captum_transformer_lrp import transformer_rules
        >>> _ = torch.manual_seed(0)
        >>> model = timm.create_model("test_vit", num_classes=10).eval()
        >>> images = torch.randn(1, 3, 160, 160)
        >>> with transformer_rules(preset="paper") as propagation:
        ...     attributions = LRP(model).attribute(images, target=3)
        >>> sorted(propagation.absorbed)  # by attentions, what ε takes
        ['blocks.0.attn', ..., 'cls_token', 'pos_embed']
    """
    chosen = named_preset(preset) if isinstance(preset, str) else preset
    if input_range is not None:
        chosen = chosen.with_input_range(*input_range)
    propagation = StockLRP(
        UserRules(rules).over(chosen, strict=strict),
        stabilizer or SignAwareStabilizer(),
        epsilon_of(checked_epsilon(epsilon, stabilizer), chosen, stabilizer),
    )
    outer = engine_propagates()
    with _captum_tables():
        engine_propagates(True)
        try:
            with propagation:
                yield propagation
        finally:
            engine_propagates(outer)
            propagation.close()


class _EveryLayer(dict[Any, Any]):
    """Captum's table of supported layers: inside the block it knows them all."""

    def keys(self) -> Any:
        return _Everything() if engine_propagates() else super().keys()

    def __getitem__(self, key: Any) -> Any:
        return EngineRule if engine_propagates() else super().__getitem__(key)


class _NoLayer(list[Any]):
    """Captum's list of layers that pass relevance on: inside the block the engine does that."""

    def __contains__(self, item: Any) -> bool:
        return not engine_propagates() and super().__contains__(item)


class _Everything:
    def __contains__(self, item: Any) -> bool:
        return True


_lock = threading.Lock()
_users = 0
_originals: tuple[Any, Any] | None = None


@contextlib.contextmanager
def _captum_tables() -> Iterator[None]:
    """Put tables in Captum's place that answer differently in threads inside a block."""
    global _users, _originals
    with _lock:
        _users += 1
        if _users == 1:
            _originals = (
                captum_lrp.SUPPORTED_LAYERS_WITH_RULES,
                captum_lrp.SUPPORTED_NON_LINEAR_LAYERS,
            )
            captum_lrp.SUPPORTED_LAYERS_WITH_RULES = _EveryLayer(_originals[0])
            captum_lrp.SUPPORTED_NON_LINEAR_LAYERS = _NoLayer(_originals[1])
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0 and _originals is not None:
                captum_lrp.SUPPORTED_LAYERS_WITH_RULES = _originals[0]
                captum_lrp.SUPPORTED_NON_LINEAR_LAYERS = _originals[1]
                _originals = None
