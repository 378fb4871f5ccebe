"""A module with a rule of its own, whose call is explained as one operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from captum_transformer_lrp.rules.base import Rule


@dataclass(eq=False)
class Unit:
    """One call of a module that has a rule.

    Args:
        module: the module.
        rule: its rule.
        arguments: positional and keyword arguments of the call.
    """

    module: nn.Module
    rule: Rule
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    inputs: tuple[Tensor, ...] = ()
