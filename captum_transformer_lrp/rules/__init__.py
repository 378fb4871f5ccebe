"""Rules of relevance propagation for the operations that Transformers are made of.

A rule is a subclass of Captum's ``PropagationRule``; the registry says which operation it is for.
"""

from importlib import import_module

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
from captum_transformer_lrp.rules.call import Call
from captum_transformer_lrp.rules.captum import CaptumRule
from captum_transformer_lrp.rules.elementwise import (
    GELURule,
    NormalizationRule,
    PassRule,
    PoolingRule,
    ScaleRule,
    SoftmaxRule,
    TaylorRule,
)
from captum_transformer_lrp.rules.linear import LinearRule
from captum_transformer_lrp.rules.normalization import ConstantDeviationRule
from captum_transformer_lrp.rules.presets import DEFAULT_EPSILON, Preset, preset
from captum_transformer_lrp.rules.registry import register_rule, unregister_rule
from captum_transformer_lrp.rules.stabilizers import AdditiveStabilizer, SignAwareStabilizer
from captum_transformer_lrp.rules.weighted import (
    AlphaBetaRule,
    BoundedRule,
    EpsilonRule,
    GammaRule,
    PositiveRule,
)

__all__ = [
    "DEFAULT_EPSILON",
    "AdditiveStabilizer",
    "AlphaBetaRule",
    "BoundedRule",
    "Call",
    "CaptumRule",
    "ConstantDeviationRule",
    "ConstantGateRule",
    "EpsilonAddRule",
    "EpsilonRule",
    "GELURule",
    "GammaRule",
    "LinearRule",
    "MatmulRule",
    "NormalizationRule",
    "PassRule",
    "PoolingRule",
    "PositiveRule",
    "Preset",
    "ProductRule",
    "Rule",
    "ScaleRule",
    "SignAwareStabilizer",
    "SkipAddRule",
    "SoftmaxRule",
    "TaylorRule",
    "TaylorSoftmaxRule",
    "UniformRule",
    "UnnormalizedAddRule",
    "UnnormalizedMatmulRule",
    "UnnormalizedProductRule",
    "preset",
    "register_rule",
    "transformer_rules",
    "unregister_rule",
]


def __getattr__(name: str) -> object:
    """``transformer_rules``, which is the engine's: it is imported when it is first asked for."""
    if name != "transformer_rules":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("captum_transformer_lrp.engine.stock").transformer_rules
