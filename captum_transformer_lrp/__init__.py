"""Explains Transformers with relevance propagation, as a Captum plugin.

    >>> from captum_transformer_lrp import TransformerAttribution

After Chefer, Gur and Wolf, *Transformer Interpretability Beyond Attention Visualization*,
CVPR 2021.
"""

from typing import TYPE_CHECKING

__all__ = [
    "ArgumentError",
    "AttCat",
    "AttentionFlow",
    "AttentionGradCam",
    "AttentionMaps",
    "AttentionRollout",
    "BiAttention",
    "Check",
    "Explanation",
    "ExplanationError",
    "GenerationResult",
    "GenericAttention",
    "ImageResult",
    "LeGrad",
    "LibraGradient",
    "NoAttentionError",
    "NormRollout",
    "PartialLRP",
    "RawAttention",
    "TextResult",
    "TokenActivationMap",
    "TransformerAttribution",
    "TransformerLRP",
    "UnsupportedOperationError",
    "Verification",
    "compare",
    "explain_continuation",
    "explain_generation",
    "explain_image",
    "explain_text",
    "transformer_rules",
    "verify",
]

if TYPE_CHECKING:
    from captum_transformer_lrp.api import *
else:
    _MODULES = ("attr", "benchmarks", "engine", "errors", "examples", "models", "photos",
                "results", "rules", "verification", "visualization")  # fmt: skip

    def __getattr__(name: str) -> object:
        """A public name or a part of the package, imported when it is first used (PEP 562).

        PyTorch takes seconds to import: the command line must print its help without it.
        """
        from importlib import import_module

        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.api"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_MODULES})
