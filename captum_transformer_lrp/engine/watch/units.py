"""Which module is calling, and which has a rule of its own.

A module's call is read from the interpreter's stack, so that no module is touched.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType, FrameType
from typing import TypeAlias

from captum.attr._utils.lrp_rules import PropagationRule
from torch import nn

from captum_transformer_lrp.engine.graph.tensor_table import HeldTable
from captum_transformer_lrp.engine.graph.unit import Unit
from captum_transformer_lrp.rules import CaptumRule, Rule
from captum_transformer_lrp.rules.captum import EngineRule

Modules: TypeAlias = Sequence[tuple[str, nn.Module]]
"""A model's modules, each with its qualified name, as ``named_modules()`` has them."""

_MODULE_CALL = nn.Module._call_impl.__code__


def calling_modules() -> Iterator[tuple[FrameType, nn.Module]]:
    """The modules whose call is under way in this thread, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _MODULE_CALL:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module):
                yield frame, module
        frame = frame.f_back


def calling_frame(code: CodeType) -> FrameType | None:
    """The innermost frame of a given function in this thread's stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame


class Units:
    """Finds the module with a rule that a PyTorch call belongs to.

    Args:
        modules: those of the explained model, or None if that is a plain function.
        class_rules: rules of module classes.
        module_rules: rules of modules, by name.

    Raises:
        ValueError: for a name that no module of the model has.
    """

    def __init__(
        self,
        modules: Modules | None,
        class_rules: Mapping[type[nn.Module], PropagationRule],
        module_rules: Mapping[str, PropagationRule],
    ) -> None:
        self._class_rules = class_rules
        self._module_rules = _by_module(modules, module_rules)
        self._open: dict[FrameType, Unit] = {}
        # A plain function may call modules that cannot be listed beforehand.
        self.present = bool(class_rules or self._module_rules) or (
            modules is None or any("rule" in vars(module) for _, module in modules)
        )

    def rule_of(self, module: nn.Module) -> Rule | None:
        """The user's rule for a module, set on it or registered for its class."""
        rule = vars(module).get("rule")
        if not isinstance(rule, PropagationRule) or isinstance(rule, EngineRule):
            rule = self._module_rules.get(module) or self._class_rules.get(type(module))
        if rule is None:
            return None
        return rule if isinstance(rule, Rule) else CaptumRule(rule, module)

    def current(self) -> Unit | None:
        """The outermost calling module that has a rule, if any."""
        found: Unit | None = None
        for frame, module in calling_modules():
            rule = self.rule_of(module)
            if rule is None:
                continue
            found = self._open.get(frame)
            if found is None:
                local = frame.f_locals
                found = Unit(module, rule, (local["args"], local["kwargs"]))
                self._open[frame] = found
        return found

    def close(self) -> None:
        """Let go of the interpreter's frames."""
        self._open.clear()


def _by_module(
    modules: Modules | None, rules: Mapping[str, PropagationRule]
) -> HeldTable[PropagationRule]:
    """The rules that modules are given by name."""
    if not rules:
        return HeldTable()
    if modules is None:
        raise ValueError(
            f"there are rules for modules called {', '.join(map(repr, rules))}, but what is "
            "explained is a function: give the model itself, or set module.rule"
        )
    named = dict(modules)
    for name in rules:
        if name not in named:
            nearest = difflib.get_close_matches(name, named, n=1)
            hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
            raise ValueError(f"there is a rule for {name!r}, but no such module{hint}")
    return HeldTable((named[name], rule) for name, rule in rules.items())


def is_single_operation(module: nn.Module) -> bool:
    """Whether the module is one of PyTorch's own that make exactly one call, such as Linear."""
    return (
        type(module).__module__.startswith("torch.nn.modules")
        and not isinstance(
            module, (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
        )
        and not any(True for _ in module.children())
    )
