"""Which rule a call goes by."""

from __future__ import annotations

from collections.abc import Mapping

from captum.attr._utils.lrp_rules import PropagationRule

from captum_transformer_lrp.engine.graph.arguments import Function, title
from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.watch.units import Units
from captum_transformer_lrp.rules import Rule
from captum_transformer_lrp.rules.registry import CONVOLUTIONS, FUNCTION_RULES


class CallRules:
    """The rules of one forward pass.

    Args:
        function_rules: rules that replace the registry's, by function.
        units: finds modules with rules of their own.
        pixel_rule: the rule of a linear operation that reads the inputs themselves.
        strict: whether an operation without a rule is an error, or follows eq. 2.

    Attributes:
        functions: the registry as it is now, and the user's own over it.
        input_dims: how many dimensions each float input has.
    """

    def __init__(
        self,
        function_rules: Mapping[Function, PropagationRule],
        units: Units,
        *,
        pixel_rule: Rule | None = None,
        strict: bool = True,
    ) -> None:
        self.functions = {**FUNCTION_RULES, **function_rules}
        self.input_dims: dict[int, int] = {}
        self.units = units
        self.strict = strict
        self._pixel_rule = pixel_rule

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
        if mark.source is None:
            return False
        return function in CONVOLUTIONS or self.input_dims.get(mark.source, 0) >= 4
