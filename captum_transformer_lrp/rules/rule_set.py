"""All rules that one explanation goes by: the registered ones, a preset's, and the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from captum.attr._utils.lrp_rules import PropagationRule
from torch import nn

from captum_transformer_lrp.rules.base import Rule
from captum_transformer_lrp.rules.presets import Preset
from captum_transformer_lrp.rules.registry import (
    MODULE_RULES,
    Function,
    named_overrides,
    rule_overrides,
)


@dataclass(frozen=True)
class RuleSet:
    """The rules that one explanation goes by.

    Args:
        functions: rules that replace the registered ones, by function.
        classes: rules of module classes.
        modules: rules of modules, by name.
        pixels: the rule of a linear operation that reads the inputs themselves.
        strict: whether an operation without a rule is an error, or follows eq. 2.
    """

    functions: Mapping[Function, PropagationRule]
    classes: Mapping[type[nn.Module], PropagationRule]
    modules: Mapping[str, PropagationRule] = field(default_factory=dict)
    pixels: Rule | None = None
    strict: bool = True


class UserRules:
    """What a user passes as ``rules``, by function, module class or name of a module.

    Raises:
        TypeError: if something is no rule, or for something that has none.
    """

    def __init__(self, rules: Mapping[Any, PropagationRule | type[PropagationRule]] | None) -> None:
        self._functions, self._classes = rule_overrides(rules)
        self._modules = named_overrides(rules)

    def over(self, preset: Preset | None, *, strict: bool = True) -> RuleSet:
        """These over a preset's; those of classes over what is registered now, too."""
        of_preset: tuple[Any, Any, Any] = ({}, {}, {})
        if preset is not None:
            of_preset = preset.function_rules(), preset.class_rules(), preset.module_rules()
        functions, classes, modules = of_preset
        return RuleSet(
            {**functions, **self._functions},
            {**MODULE_RULES, **classes, **self._classes},
            {**modules, **self._modules},
            preset.pixels if preset is not None else None,
            strict,
        )
