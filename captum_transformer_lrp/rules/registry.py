"""Which rule belongs to which operation.

Two tables: one from PyTorch functions to rules, and one from module classes to rules.  Module
classes are also entered in Captum's own tables, so that ``captum.attr.LRP`` knows them too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import captum.attr._core.lrp as captum_lrp
from captum.attr._utils.lrp_rules import PropagationRule
from torch import nn

from captum_transformer_lrp.rules.base import Rule
from captum_transformer_lrp.rules.binary import MatmulRule, ProductRule, SkipAddRule, SolveRule
from captum_transformer_lrp.rules.elementwise import (
    AccumulationRule,
    GELURule,
    NormalizationRule,
    PassRule,
    PoolingRule,
    ScaleRule,
    SoftmaxRule,
)
from captum_transformer_lrp.rules.linear import LinearRule
from captum_transformer_lrp.rules.spellings import spelled, synonyms

Function: TypeAlias = Callable[..., Any]
Target: TypeAlias = Function | type[nn.Module] | str

FUNCTION_RULES: dict[Function, PropagationRule] = {}
"""The rule of every PyTorch function that has one."""

MODULE_RULES: dict[type[nn.Module], PropagationRule] = {}
"""Rules of module classes whose calls are explained as a whole."""


def register_rule(
    target: Function | type[nn.Module], rule: PropagationRule | type[PropagationRule]
) -> PropagationRule | type[PropagationRule]:
    """File a rule for a function or for a module class, for every explanation from now on.

    Args:
        target: a function that PyTorch's ``__torch_function__`` protocol announces — a function
            of PyTorch, under all its spellings at once, or your own decorated with
            :func:`torch.overrides.wrap_torch_function` — or a subclass of ``nn.Module``, whose
            calls are then explained as one operation.  Module classes are also entered in
            Captum's registry.
        rule: a rule or a rule class that takes no arguments.

    Returns:
        ``rule``.

    Raises:
        TypeError: if ``target`` or ``rule`` is something else.

    Example:
        >>> from torch import nn
        >>> from captum_transformer_lrp.rules import PassRule, register_rule, unregister_rule
        >>> class Sharpen(nn.Module):
        ...     def forward(self, x):
        ...         return x * x.sigmoid() ** 2
        >>> _ = register_rule(Sharpen, PassRule)
        >>> unregister_rule(Sharpen)
    """
    if isinstance(rule, type) and issubclass(rule, PropagationRule):
        instance = rule()
    elif isinstance(rule, PropagationRule):
        instance = rule
    else:
        raise TypeError(
            f"a rule must be a captum PropagationRule or a subclass of it, found {rule!r}"
        )
    if isinstance(target, type) and issubclass(target, nn.Module):
        MODULE_RULES[target] = instance
        known = captum_lrp.SUPPORTED_LAYERS_WITH_RULES.get(target)
        non_linear = target in captum_lrp.SUPPORTED_NON_LINEAR_LAYERS
        _CAPTUMS.setdefault(target, (known, non_linear))
        _enter_in_captum(target, instance)
    elif callable(target) and not isinstance(target, type):
        for function in synonyms(target):
            FUNCTION_RULES[function] = instance
    else:
        raise TypeError(
            f"rules are registered for functions and nn.Module classes, found {target!r}"
        )
    return rule


def unregister_rule(target: Function | type[nn.Module]) -> None:
    """Undo :func:`register_rule`; functions of PyTorch fall back to the library's own rule."""
    if isinstance(target, type):
        MODULE_RULES.pop(target, None)
        layer_rule, is_non_linear = _CAPTUMS.pop(target, (None, False))
        layers = captum_lrp.SUPPORTED_LAYERS_WITH_RULES
        layers.pop(target, None)
        if layer_rule is not None:
            layers[target] = layer_rule
        non_linear = captum_lrp.SUPPORTED_NON_LINEAR_LAYERS
        if target in non_linear and not is_non_linear:
            non_linear.remove(target)
        return
    for function in synonyms(target):
        if function in _DEFAULTS:
            FUNCTION_RULES[function] = _DEFAULTS[function]
        else:
            FUNCTION_RULES.pop(function, None)


def rule_overrides(
    rules: Mapping[Any, PropagationRule | type[PropagationRule]] | None,
) -> tuple[dict[Function, PropagationRule], dict[type[nn.Module], PropagationRule]]:
    """Split a user's ``{function or module class: rule}`` into the two tables' form.

    Names of modules are left to :func:`named_overrides`.
    """
    functions: dict[Function, PropagationRule] = {}
    modules: dict[type[nn.Module], PropagationRule] = {}
    for target, rule in (rules or {}).items():
        instance = rule() if isinstance(rule, type) else rule
        if not isinstance(instance, PropagationRule):
            raise TypeError(f"rules[{target!r}] must be a captum PropagationRule, found {rule!r}")
        if isinstance(target, type) and issubclass(target, nn.Module):
            modules[target] = instance
        elif callable(target):
            functions.update(dict.fromkeys(synonyms(target), instance))
        elif not isinstance(target, str):
            raise TypeError(
                f"rules are for functions, nn.Module classes and names of modules, found {target!r}"
            )
    return functions, modules


def named_overrides(
    rules: Mapping[Any, PropagationRule | type[PropagationRule]] | None,
) -> dict[str, PropagationRule]:
    """The rules of a user's ``{name of a module: rule}``."""
    return {
        target: rule() if isinstance(rule, type) else rule
        for target, rule in (rules or {}).items()
        if isinstance(target, str)
    }


_CAPTUMS: dict[Any, tuple[Any, bool]] = {}
"""What Captum's tables said of a class before :func:`register_rule`."""


def _enter_in_captum(module_class: type[nn.Module], rule: PropagationRule) -> None:
    if isinstance(rule, PassRule):
        if module_class not in captum_lrp.SUPPORTED_NON_LINEAR_LAYERS:
            captum_lrp.SUPPORTED_NON_LINEAR_LAYERS.append(module_class)
    else:
        captum_lrp.SUPPORTED_LAYERS_WITH_RULES[module_class] = lambda: rule


ACTIVATIONS = spelled(
    "gelu", "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "silu",
    "mish", "hardswish", "hardtanh", "hardsigmoid", "hardshrink", "softshrink", "tanhshrink",
    "softplus", "softsign", "logsigmoid", "sigmoid", "expit", "tanh", "threshold", "erf", "clamp",
    "clip", "clamp_min", "clamp_max", "exp", "exp2", "log", "log1p", "expm1", "sqrt", "rsqrt",
    "square", "abs", "pow", "__pow__", "float_power", "sin", "cos", "atan", "acos", "arccos",
    "neg", "negative", "positive",
    "reciprocal", "nan_to_num", "round", "floor", "ceil", "log_softmax", "erfc",
)  # fmt: skip
"""Functions of one activation, element by element (log-softmax by the paper's softmax rule)."""

NORMALIZATIONS = spelled(
    "layer_norm", "native_layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm",
    "local_response_norm", "normalize",
)  # fmt: skip

SCALES = spelled(
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
    "feature_dropout", "native_dropout",
)  # fmt: skip

POOLINGS = spelled(
    "mean", "sum", "nanmean", "nansum", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "max_pool1d",
    "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "lp_pool1d", "lp_pool2d", "interpolate", "upsample", "grid_sample",
    "amax", "amin", "logsumexp", "cumsum", "var", "std", "norm", "vector_norm", "fold", "col2im",
)  # fmt: skip

CONVOLUTIONS = spelled(
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"
)
LINEARS = spelled("linear", "addmm", "einsum", "grouped_mm", "_grouped_mm")
PRODUCTS = spelled("matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "mv", "baddbmm")
SUMS = spelled("add", "__add__", "__radd__", "sub", "subtract", "__sub__", "__rsub__", "rsub")
SOLVES = spelled("solve_triangular")
ACCUMULATIONS = spelled("index_add", "scatter_add")
SCALINGS = spelled("mul", "multiply", "__mul__", "__rmul__", "div", "divide", "true_divide",
                   "__truediv__", "__div__", "__rtruediv__", "__rdiv__")  # fmt: skip
SOFTMAXES = spelled("softmax", "_safe_softmax", "sparse_softmax")


def _file(functions: Iterable[Function], rule: Rule) -> None:
    FUNCTION_RULES.update(dict.fromkeys(functions, rule))


_file(ACTIVATIONS, GELURule())
_file(NORMALIZATIONS, NormalizationRule())
_file(SCALES, ScaleRule())
_file(POOLINGS, PoolingRule())
_file((*LINEARS, *CONVOLUTIONS), LinearRule())
_file(PRODUCTS, MatmulRule())
_file(SCALINGS, ProductRule())
_file(SUMS, SkipAddRule())
_file(SOLVES, SolveRule())
_file(ACCUMULATIONS, AccumulationRule())
_file(SOFTMAXES, SoftmaxRule())
_DEFAULTS = dict(FUNCTION_RULES)

for _module_class, _rule in (
    *((getattr(nn, name), GELURule()) for name in (
        "GELU", "SiLU", "Mish", "Hardswish", "ReLU6", "LeakyReLU", "ELU", "SELU", "CELU",
        "Sigmoid", "Hardsigmoid", "Softplus",
    )),
    (nn.Softmax, SoftmaxRule()),
    (nn.LayerNorm, NormalizationRule()),
    (nn.GroupNorm, NormalizationRule()),
    (nn.Identity, ScaleRule()),
):  # fmt: skip
    _enter_in_captum(_module_class, _rule)
if hasattr(nn, "RMSNorm"):
    _enter_in_captum(nn.RMSNorm, NormalizationRule())
