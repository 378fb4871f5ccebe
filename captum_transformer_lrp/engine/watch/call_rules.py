"""Which rule a call goes by."""

from __future__ import annotations

from captum_transformer_lrp.engine.graph.arguments import Function, title
from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.watch.units import Modules, Units
from captum_transformer_lrp.rules import Rule
from captum_transformer_lrp.rules.registry import CONVOLUTIONS, FUNCTION_RULES
from captum_transformer_lrp.rules.rule_set import RuleSet


class CallRules:
    """Which rule each call of one forward pass goes by.

    Args:
        rules: all that there are.
        modules: those of the explained model; None if it is a plain function.

    Attributes:
        functions: the rules by function, the registered ones as they are now among them.
        strict: whether an operation without a rule is an error, or follows eq. 2.
        units: finds modules with rules of their own.
        input_dims: how many dimensions each float input has.
    """

    def __init__(self, rules: RuleSet, modules: Modules | None) -> None:
        self.functions = {**FUNCTION_RULES, **rules.functions}
        self.strict = rules.strict
        self.units = Units(modules, rules.classes, rules.modules)
        self.input_dims: dict[int, int] = {}
        self._pixel_rule = rules.pixels

    def of_module(self) -> Rule | None:
        """The rule that the calling module has of its own."""
        unit = self.units.current() if self.units.present else None
        return None if unit is None else unit.rule

    def of(self, function: Function, *, reads_pixels: bool = False) -> Rule:
        """The rule for a call: the module's own, the user's for the function, the registry's."""
        own = self.of_module()
        if own is not None:
            return own
        if reads_pixels and self._pixel_rule is not None:
            return self._pixel_rule
        rule = self.functions[function]
        if not isinstance(rule, Rule):
            raise TypeError(
                f"the rule for {title(function)} is {rule!r}, which changes a layer's weights: "
                "set it on a module (module.rule = ...) or use a rule of captum_transformer_lrp"
            )
        return rule

    def reads_pixels(self, mark: Mark, function: Function) -> bool:
        """Whether a linear operation reads raw pixels or samples, rather than embeddings."""
        if mark.node.source is None:
            return False
        return function in CONVOLUTIONS or self.input_dims.get(mark.node.source, 0) >= 4
