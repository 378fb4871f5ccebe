"""Running Captum's own ``LRP`` and ``LayerLRP`` on Transformers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import captum.attr._core.lrp as captum_lrp
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor

from captum_transformer_lrp.rules.base import Rule, engine_propagates
from captum_transformer_lrp.rules.call import Call, Stabilizer
from captum_transformer_lrp.rules.presets import Preset, checked_epsilon, epsilon_of
from captum_transformer_lrp.rules.presets import preset as named_preset
from captum_transformer_lrp.rules.registry import (
    MODULE_RULES,
    Target,
    named_overrides,
    rule_overrides,
)
from captum_transformer_lrp.rules.stabilizers import SignAwareStabilizer

if TYPE_CHECKING:
    from captum_transformer_lrp.engine.stock import StockLRP


class EngineRule(Rule):
    """What Captum finds on a module inside ``transformer_rules()``: the engine sees to it."""

    def relevance(self, call: Call, relevance: Tensor) -> Tensor:
        """Never called: the engine has a rule for each call that the module makes."""
        raise AssertionError("EngineRule stands for the rules of a module's calls")


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
        >>> from captum_transformer_lrp.rules import transformer_rules
        >>> _ = torch.manual_seed(0)
        >>> model = timm.create_model("test_vit", num_classes=10).eval()
        >>> images = torch.randn(1, 3, 160, 160)
        >>> with transformer_rules(preset="paper") as propagation:
        ...     attributions = LRP(model).attribute(images, target=3)
        >>> sorted(propagation.absorbed)  # by attentions, what ε takes
        ['blocks.0.attn', ..., 'cls_token', 'pos_embed']
    """
    from captum_transformer_lrp.engine.stock import StockLRP

    chosen = named_preset(preset) if isinstance(preset, str) else preset
    if input_range is not None:
        chosen = chosen.with_input_range(*input_range)
    functions, classes = rule_overrides(rules)
    propagation = StockLRP(
        function_rules={**chosen.function_rules(), **functions},
        class_rules={**MODULE_RULES, **chosen.class_rules(), **classes},
        module_rules={**chosen.module_rules(), **named_overrides(rules)},
        pixel_rule=chosen.pixels,
        stabilizer=stabilizer or SignAwareStabilizer(),
        epsilon=epsilon_of(checked_epsilon(epsilon, stabilizer), chosen, stabilizer),
        strict=strict,
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
