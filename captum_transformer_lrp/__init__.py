"""Explains Transformers with relevance propagation, as a Captum plugin.

    >>> from captum_transformer_lrp import TransformerAttribution

After Chefer, Gur and Wolf, *Transformer Interpretability Beyond Attention Visualization*,
CVPR 2021.
"""

from captum_transformer_lrp.attr.attcat import AttCat
from captum_transformer_lrp.attr.attention_flow import AttentionFlow
from captum_transformer_lrp.attr.attention_gradcam import AttentionGradCam
from captum_transformer_lrp.attr.attention_rollout import AttentionRollout
from captum_transformer_lrp.attr.bi_attention import BiAttention
from captum_transformer_lrp.attr.comparison import compare
from captum_transformer_lrp.attr.continuation import explain_continuation
from captum_transformer_lrp.attr.explanation import AttentionMaps, Explanation
from captum_transformer_lrp.attr.generic_attention import GenericAttention
from captum_transformer_lrp.attr.legrad import LeGrad
from captum_transformer_lrp.attr.libra_gradient import LibraGradient
from captum_transformer_lrp.attr.norm_rollout import NormRollout
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
    "AttCat",
    "AttentionFlow",
    "AttentionGradCam",
    "AttentionMaps",
    "AttentionRollout",
    "BiAttention",
    "Explanation",
    "ExplanationError",
    "GenericAttention",
    "LeGrad",
    "LibraGradient",
    "NoAttentionError",
    "NormRollout",
    "PartialLRP",
    "RawAttention",
    "TransformerAttribution",
    "TransformerLRP",
    "UnsupportedOperationError",
    "compare",
    "explain_continuation",
]
