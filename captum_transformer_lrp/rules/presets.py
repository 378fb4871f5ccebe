"""Sets of rules that belong together, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor

from captum_transformer_lrp.rules.base import Rule
from captum_transformer_lrp.rules.binary import (
    MatmulRule,
    SkipAddRule,
    UnnormalizedAddRule,
    UnnormalizedMatmulRule,
)
from captum_transformer_lrp.rules.linear import LinearRule
from captum_transformer_lrp.rules.registry import (
    CONVOLUTIONS,
    LINEARS,
    PRODUCTS,
    SCALINGS,
    SUMS,
    Function,
)
from captum_transformer_lrp.rules.weighted import (
    AlphaBetaRule,
    BoundedRule,
    EpsilonRule,
    GammaRule,
    PositiveRule,
)


@dataclass(frozen=True)
class Preset:
    """One rule for each family of operations; all others keep the registered rule.

    Args:
        name: its name.
        source: where it comes from.
        linear: for linear layers and convolutions.
        skip_add: for ``u + v``.
        matmul: for ``u @ v`` and ``u * v``.
        pixels: for the first layer, if that reads pixels; None for the rule of linear layers.
    """

    name: str
    source: str
    linear: Rule = field(default_factory=LinearRule)
    skip_add: Rule = field(default_factory=SkipAddRule)
    matmul: Rule = field(default_factory=MatmulRule)
    pixels: Rule | None = field(default_factory=BoundedRule)

    def function_rules(self) -> dict[Function, PropagationRule]:
        """The preset as a table from PyTorch functions to rules."""
        return {
            **dict.fromkeys((*LINEARS, *CONVOLUTIONS), self.linear),
            **dict.fromkeys(SUMS, self.skip_add),
            **dict.fromkeys((*PRODUCTS, *SCALINGS), self.matmul),
        }

    def with_input_range(self, low: float | Tensor, high: float | Tensor) -> Preset:
        """The same rules, with the z^B rule for pixels between ``low`` and ``high``."""
        return replace(self, pixels=BoundedRule(low, high))

    def __str__(self) -> str:
        rows = {
            "linear, convolution": self.linear,
            "u + v": self.skip_add,
            "u @ v, u * v": self.matmul,
            "first layer on pixels": self.pixels or self.linear,
            "activations, softmax, norms": "pass unchanged",
            "pooling": "eq. 2",
        }
        width = max(map(len, rows))
        lines = [f"{name:<{width}}  {rule}" for name, rule in rows.items()]
        return "\n".join([f"{self.name} ({self.source})", *lines])


_PRESETS: dict[str, Callable[[], Preset]] = {
    "paper": lambda: Preset("paper", "Chefer et al. 2021, eq. 2, 5, 9, 10"),
    "lrp": lambda: Preset(
        "lrp",
        "the baseline of Chefer et al. 2021: eq. 4, and eq. 2 without normalisation",
        linear=PositiveRule(),
        skip_add=UnnormalizedAddRule(),
        matmul=UnnormalizedMatmulRule(),
    ),
    "epsilon": lambda: Preset(
        "epsilon",
        "Bach et al. 2015",
        linear=EpsilonRule(),
        skip_add=UnnormalizedAddRule(1e-6),
        matmul=MatmulRule(),
        pixels=None,
    ),
    "gamma": lambda: Preset(
        "gamma",
        "Montavon et al. 2019",
        linear=GammaRule(),
        skip_add=UnnormalizedAddRule(1e-6),
        matmul=MatmulRule(),
    ),
    "alpha_beta": lambda: Preset(
        "alpha_beta",
        "Bach et al. 2015",
        linear=AlphaBetaRule(),
        skip_add=UnnormalizedAddRule(1e-6),
        matmul=MatmulRule(),
    ),
}


def preset(name: str) -> Preset:
    """The preset of a name: ``paper``, ``lrp``, ``epsilon``, ``gamma`` or ``alpha_beta``.

    Raises:
        ValueError: for any other name.

    Example:
        >>> print(preset("paper"))
        paper (Chefer et al. 2021, eq. 2, 5, 9, 10)
        linear, convolution          LinearRule()
        u + v                        SkipAddRule()
        u @ v, u * v                 MatmulRule()
        first layer on pixels        BoundedRule(low=None, high=None)
        activations, softmax, norms  pass unchanged
        pooling                      eq. 2
    """
    if name not in _PRESETS:
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(_PRESETS)}")
    return _PRESETS[name]()
