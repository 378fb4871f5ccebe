"""Explains Transformers with relevance propagation, as a Captum plugin.

    >>> from captum_transformer_lrp import TransformerAttribution

After Chefer, Gur and Wolf, *Transformer Interpretability Beyond Attention Visualization*,
CVPR 2021.
"""

from captum_transformer_lrp.attr.explanation import AttentionMaps, Explanation
from captum_transformer_lrp.attr.transformer_attribution import TransformerAttribution
from captum_transformer_lrp.errors import (
    ExplanationError,
    NoAttentionError,
    UnsupportedOperationError,
)

__all__ = [
    "AttentionMaps",
    "Explanation",
    "ExplanationError",
    "NoAttentionError",
    "TransformerAttribution",
    "UnsupportedOperationError",
]
