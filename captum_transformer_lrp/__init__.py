"""Explains Transformers with relevance propagation, as a Captum plugin.

    >>> from captum_transformer_lrp import TransformerAttribution

After Chefer, Gur and Wolf, *Transformer Interpretability Beyond Attention Visualization*,
CVPR 2021.
"""

from captum_transformer_lrp.attr.attention_flow import AttentionFlow
from captum_transformer_lrp.attr.attention_gradcam import AttentionGradCam
from captum_transformer_lrp.attr.attention_rollout import AttentionRollout
from captum_transformer_lrp.attr.comparison import compare
from captum_transformer_lrp.attr.continuation import explain_continuation
from captum_transformer_lrp.attr.explanation import AttentionMaps, Explanation
from captum_transformer_lrp.attr.partial_lrp import PartialLRP
from captum_transformer_lrp.attr.raw_attention import RawAttention
from captum_transformer_lrp.attr.transformer_attribution import TransformerAttribution
from captum_transformer_lrp.attr.transformer_lrp import TransformerLRP
from captum_transformer_lrp.errors import (
    ExplanationError,
    NoAttentionError,
    UnsupportedOperationError,
)

__all__ = [
    "AttentionFlow",
    "AttentionGradCam",
    "AttentionMaps",
    "AttentionRollout",
    "Explanation",
    "ExplanationError",
    "NoAttentionError",
    "PartialLRP",
    "RawAttention",
    "TransformerAttribution",
    "TransformerLRP",
    "UnsupportedOperationError",
    "compare",
    "explain_continuation",
]
