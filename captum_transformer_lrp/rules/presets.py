"""Sets of rules that belong together, as data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor, nn

from captum_transformer_lrp.rules.attention_aware import (
    ConstantGateRule,
    TaylorSoftmaxRule,
    UniformRule,
)
from captum_transformer_lrp.rules.base import Rule
from captum_transformer_lrp.rules.binary import (
    EpsilonAddRule,
    MatmulRule,
    ProductRule,
    SkipAddRule,
    UnnormalizedAddRule,
    UnnormalizedMatmulRule,
    UnnormalizedProductRule,
)
from captum_transformer_lrp.rules.call import Stabilizer
from captum_transformer_lrp.rules.elementwise import GELURule, PoolingRule
from captum_transformer_lrp.rules.linear import LinearRule
from captum_transformer_lrp.rules.normalization import ConstantDeviationRule
from captum_transformer_lrp.rules.registry import (
    ACTIVATIONS,
    CONVOLUTIONS,
    FUNCTION_RULES,
    LINEARS,
    NORMALIZATIONS,
    POOLINGS,
    PRODUCTS,
    SCALINGS,
    SOFTMAXES,
    SUMS,
    Function,
    Target,
    named_overrides,
    rule_overrides,
)
from captum_transformer_lrp.rules.weighted import (
    AlphaBetaRule,
    BoundedRule,
    EpsilonRule,
    GammaRule,
    PositiveRule,
)

Start: TypeAlias = Literal["one_hot", "logit"]


@dataclass(frozen=True)
class Preset:
    """A table from operations to rules.

    Args:
        name: its name.
        source: where it comes from.
        linear: for linear layers and convolutions.
        skip_add: for ``u + v``.
        matmul: for ``u @ v``, attention included.
        product: for ``u * v``.
        softmax: for softmax; None for the registered rule, as in what follows.
        activation: for GELU and every other activation function.
        normalization: for LayerNorm, RMSNorm and the like.
        pooling: for means, sums and pooling.
        pixels: for the first layer, if that reads pixels; None for the rule of linear layers.
        epsilon: ε of eq. 2, for the rules that have none of their own; None for that of the
            method that uses the preset.
        start: what relevance starts from, ``"one_hot"`` or ``"logit"``.  The rules of the ε kind
            give a product the sign that it has beside the output's.  From 1 all signs would turn
            around where the target's logit is negative.
        overrides: rules that go before all of these, by PyTorch function, by module class or by
            the name of a module, whose calls are then explained as one operation.

    Example:
        >>> from torch import nn
        >>> attnlrp = preset("attnlrp").but(linear=GammaRule(0.1))
        >>> attnlrp = attnlrp.overridden({"head": EpsilonRule(), nn.Conv2d: GammaRule(0.25)})
        >>> print(attnlrp)
        attnlrp (Achtibat et al. 2024)
        linear, convolution    GammaRule(gamma=0.1)
        u + v                  EpsilonAddRule(epsilon=1e-09)
        u @ v                  UniformRule(epsilon=1e-09)
        u * v                  UniformRule(epsilon=1e-09)
        softmax                TaylorSoftmaxRule()
        activation             GELURule()
        normalization          ConstantDeviationRule(epsilon=1e-09)
        pooling                PoolingRule()
        first layer on pixels  GammaRule(gamma=0.1)
        module 'head'          EpsilonRule(epsilon=1e-06)
        Conv2d                 GammaRule(gamma=0.25)
    """

    name: str
    source: str
    linear: Rule = field(default_factory=LinearRule)
    skip_add: Rule = field(default_factory=SkipAddRule)
    matmul: Rule = field(default_factory=MatmulRule)
    product: Rule = field(default_factory=ProductRule)
    softmax: Rule | None = None
    activation: Rule | None = None
    normalization: Rule | None = None
    pooling: Rule | None = None
    pixels: Rule | None = field(default_factory=BoundedRule)
    epsilon: float | None = None
    start: Start = "one_hot"
    overrides: Mapping[Target, PropagationRule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.epsilon is not None:
            check_epsilon(self.epsilon)

    def function_rules(self) -> dict[Function, PropagationRule]:
        """The preset as a table from PyTorch functions to rules."""
        table: dict[Function, PropagationRule] = {
            **dict.fromkeys((*LINEARS, *CONVOLUTIONS), self.linear),
            **dict.fromkeys(SUMS, self.skip_add),
            **dict.fromkeys(PRODUCTS, self.matmul),
            **dict.fromkeys(SCALINGS, self.product),
        }
        for functions, rule in (
            (SOFTMAXES, self.softmax),
            (ACTIVATIONS, self.activation),
            (NORMALIZATIONS, self.normalization),
            (POOLINGS, self.pooling),
        ):
            if rule is not None:
                table.update(dict.fromkeys(functions, rule))
        return {**table, **rule_overrides(self.overrides)[0]}

    def class_rules(self) -> dict[type[nn.Module], PropagationRule]:
        """The rules that override the preset's for module classes."""
        return rule_overrides(self.overrides)[1]

    def module_rules(self) -> dict[str, PropagationRule]:
        """The rules that override the preset's for modules, by name."""
        return named_overrides(self.overrides)

    def but(self, **changes: Any) -> Preset:
        """A copy with some rules changed, by the names of the arguments."""
        return replace(self, **changes)

    def overridden(self, rules: Mapping[Target, PropagationRule | type[PropagationRule]]) -> Preset:
        """A copy with rules that go before the table's.

        Args:
            rules: by PyTorch function, module class or module name.

        Raises:
            TypeError: for anything that is no rule, or no function, class or name.
        """
        rule_overrides(rules)
        instances = {key: rule() if isinstance(rule, type) else rule for key, rule in rules.items()}
        return replace(self, overrides={**self.overrides, **instances})

    def with_input_range(self, low: float | Tensor, high: float | Tensor) -> Preset:
        """The same rules, with the z^B rule for pixels between ``low`` and ``high``."""
        return replace(self, pixels=BoundedRule(low, high))

    def table(self) -> dict[str, PropagationRule]:
        """The rule of each operation, by the operation's name."""
        return {
            "linear, convolution": self.linear,
            "u + v": self.skip_add,
            "u @ v": self.matmul,
            "u * v": self.product,
            "softmax": self.softmax or FUNCTION_RULES[torch.softmax],
            "activation": self.activation or FUNCTION_RULES[F.gelu],
            "normalization": self.normalization or FUNCTION_RULES[F.layer_norm],
            "pooling": self.pooling or FUNCTION_RULES[torch.mean],
            "first layer on pixels": self.pixels or self.linear,
            **{_title(key): rule for key, rule in self.overrides.items()},
        }

    def __str__(self) -> str:
        rows = self.table()
        width = max(map(len, rows))
        lines = [f"{name:<{width}}  {rule}" for name, rule in rows.items()]
        return "\n".join([f"{self.name} ({self.source})", *lines])


def _title(key: Target) -> str:
    return f"module {key!r}" if isinstance(key, str) else str(getattr(key, "__name__", key))


# Small enough to change nothing but what is divided by it.
_EPSILON = 1e-9

_PRESETS: dict[str, Callable[[], Preset]] = {
    "paper": lambda: Preset("paper", "Chefer et al. 2021, eq. 2, 5, 9, 10"),
    "lrp": lambda: Preset(
        "lrp",
        "the baseline of Chefer et al. 2021: eq. 4, and eq. 2 without normalisation",
        linear=PositiveRule(),
        skip_add=UnnormalizedAddRule(),
        matmul=UnnormalizedMatmulRule(),
        product=UnnormalizedProductRule(),
    ),
    "epsilon": lambda: Preset(
        "epsilon",
        "Bach et al. 2015",
        linear=EpsilonRule(),
        skip_add=EpsilonAddRule(1e-6),
        matmul=MatmulRule(),
        pixels=None,
        start="logit",
    ),
    "gamma": lambda: Preset(
        "gamma",
        "Montavon et al. 2019",
        linear=GammaRule(),
        skip_add=UnnormalizedAddRule(),
        matmul=MatmulRule(),
    ),
    "alpha_beta": lambda: Preset(
        "alpha_beta",
        "Bach et al. 2015",
        linear=AlphaBetaRule(),
        skip_add=UnnormalizedAddRule(),
        matmul=MatmulRule(),
    ),
    "attnlrp": lambda: Preset(
        "attnlrp",
        "Achtibat et al. 2024",
        linear=EpsilonRule(_EPSILON),
        skip_add=EpsilonAddRule(_EPSILON),
        matmul=UniformRule(_EPSILON),
        product=UniformRule(_EPSILON),
        softmax=TaylorSoftmaxRule(),
        activation=GELURule(),
        normalization=ConstantDeviationRule(_EPSILON),
        pooling=PoolingRule(),
        pixels=None,
        epsilon=0.0,
        start="logit",
    ),
    # With γ for images: the middle one of the values that the authors' example for ViT tries.
    "attnlrp_gamma": lambda: preset("attnlrp").but(
        name="attnlrp_gamma",
        source="Achtibat et al. 2024, with γ on linear layers",
        linear=GammaRule(0.05),
        pixels=GammaRule(0.25),
        start="one_hot",
    ),
    "cp_lrp": lambda: Preset(
        "cp_lrp",
        "Ali et al. 2022",
        linear=EpsilonRule(_EPSILON),
        skip_add=EpsilonAddRule(_EPSILON),
        matmul=ConstantGateRule(_EPSILON),
        product=ConstantGateRule(_EPSILON),
        activation=GELURule(),
        normalization=ConstantDeviationRule(_EPSILON),
        pooling=PoolingRule(),
        pixels=None,
        epsilon=0.0,
        start="logit",
    ),
    "libra": lambda: Preset(
        "libra",
        "Mehri et al. 2025, as relevance: input times pruned gradient",
        linear=EpsilonRule(0.0),
        skip_add=EpsilonAddRule(),
        matmul=ConstantGateRule(),
        product=UniformRule(),
        activation=GELURule(),
        normalization=ConstantDeviationRule(),
        pooling=PoolingRule(),
        pixels=None,
        epsilon=0.0,
        start="logit",
    ),
}


DEFAULT_EPSILON = 1.0
"""ε of eq. 2 where nothing else is asked for: docs/epsilon.md has the measurements."""


def checked_epsilon(epsilon: float | None, stabilizer: Stabilizer | None) -> float | None:
    """ε of eq. 2 as a user gives it.

    Raises:
        ValueError: for an ε that is none, or one beside a stabilizer.
    """
    if epsilon is None:
        return None
    if stabilizer is not None and epsilon != 0:
        raise ValueError(
            f"found both stabilizer={stabilizer!r} and epsilon={epsilon!r}, and each of them keeps "
            "denominators away from zero: choose one of them"
        )
    return check_epsilon(epsilon)


def epsilon_of(
    epsilon: float | None, preset: Preset | None, stabilizer: Stabilizer | None
) -> float:
    """ε of eq. 2: the user's, the preset's, or the default."""
    if epsilon is None and preset is not None:
        epsilon = preset.epsilon
    if epsilon is None:
        epsilon = DEFAULT_EPSILON if stabilizer is None else 0.0
    return epsilon


def is_ill_conditioned(preset: Preset | None) -> bool:
    """Whether rules divide by sums that pass through zero, unless ε keeps them away from it."""
    rules = (SkipAddRule, MatmulRule, UnnormalizedAddRule, UnnormalizedMatmulRule)
    return preset is None or any(isinstance(r, rules) for r in (preset.skip_add, preset.matmul))


def gives_back_sums(preset: Preset | None) -> bool:
    """Whether rules scale relevance to the sum of what they share out (eq. 9–10).

    Where that is zero, nothing is left.
    """
    rules = (SkipAddRule, MatmulRule)
    return preset is None or any(isinstance(r, rules) for r in (preset.skip_add, preset.matmul))


def check_epsilon(epsilon: float) -> float:
    """ε of eq. 2, if it is one.

    Raises:
        ValueError: unless it is a finite number that is not negative.
    """
    is_number = not isinstance(epsilon, bool) and isinstance(epsilon, (int, float))
    if not (is_number and 0 <= epsilon < math.inf):
        raise ValueError(
            f"epsilon must be a finite number, 0 or more, found {epsilon!r}: 0 is eq. 2 as "
            "printed, larger values keep its denominators further away from zero"
        )
    return float(epsilon)


def preset(name: str, *, epsilon: float | None = None) -> Preset:
    """The preset of a name.

    There are ``paper``, ``lrp``, ``epsilon``, ``gamma``, ``alpha_beta``, ``attnlrp``,
    ``attnlrp_gamma``, ``cp_lrp`` and ``libra``.

    Args:
        name: one of these.
        epsilon: ε of eq. 2, for the rules that have none of their own; None for the preset's, or
            else that of the method that uses it.

    Raises:
        ValueError: for any other name, or an ε that is negative or not finite.

    Example:
        >>> print(preset("paper"))
        paper (Chefer et al. 2021, eq. 2, 5, 9, 10)
        linear, convolution    LinearRule()
        u + v                  SkipAddRule()
        u @ v                  MatmulRule()
        u * v                  ProductRule()
        softmax                SoftmaxRule()
        activation             GELURule()
        normalization          NormalizationRule()
        pooling                PoolingRule()
        first layer on pixels  BoundedRule(low=None, high=None)
    """
    if name not in _PRESETS:
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(_PRESETS)}")
    found = _PRESETS[name]()
    return found if epsilon is None else found.but(epsilon=epsilon)
