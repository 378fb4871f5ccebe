"""The public names; the package itself imports them from here when the first one is used."""

from captum_transformer_lrp.attr.attcat import AttCat as AttCat
from captum_transformer_lrp.attr.attention_flow import AttentionFlow as AttentionFlow
from captum_transformer_lrp.attr.attention_gradcam import AttentionGradCam as AttentionGradCam
from captum_transformer_lrp.attr.attention_maps import AttentionMaps as AttentionMaps
from captum_transformer_lrp.attr.attention_rollout import AttentionRollout as AttentionRollout
from captum_transformer_lrp.attr.bi_attention import BiAttention as BiAttention
from captum_transformer_lrp.attr.comparison import compare as compare
from captum_transformer_lrp.attr.continuation import explain_continuation as explain_continuation
from captum_transformer_lrp.attr.explanation import Explanation as Explanation
from captum_transformer_lrp.attr.generic_attention import GenericAttention as GenericAttention
from captum_transformer_lrp.attr.legrad import LeGrad as LeGrad
from captum_transformer_lrp.attr.libra_gradient import LibraGradient as LibraGradient
from captum_transformer_lrp.attr.norm_rollout import NormRollout as NormRollout
from captum_transformer_lrp.attr.partial_lrp import PartialLRP as PartialLRP
from captum_transformer_lrp.attr.raw_attention import RawAttention as RawAttention
from captum_transformer_lrp.attr.token_activation_map import (
    TokenActivationMap as TokenActivationMap,
)
from captum_transformer_lrp.attr.transformer_attribution import (
    TransformerAttribution as TransformerAttribution,
)
from captum_transformer_lrp.attr.transformer_lrp import TransformerLRP as TransformerLRP
from captum_transformer_lrp.engine.stock import transformer_rules as transformer_rules
from captum_transformer_lrp.errors import ArgumentError as ArgumentError
from captum_transformer_lrp.errors import ExplanationError as ExplanationError
from captum_transformer_lrp.errors import NoAttentionError as NoAttentionError
from captum_transformer_lrp.errors import UnsupportedOperationError as UnsupportedOperationError
from captum_transformer_lrp.results.generation import GenerationResult as GenerationResult
from captum_transformer_lrp.results.generation import explain_generation as explain_generation
from captum_transformer_lrp.results.image import ImageResult as ImageResult
from captum_transformer_lrp.results.image import explain_image as explain_image
from captum_transformer_lrp.results.text import TextResult as TextResult
from captum_transformer_lrp.results.text import explain_text as explain_text
from captum_transformer_lrp.verification import Check as Check
from captum_transformer_lrp.verification import Verification as Verification
from captum_transformer_lrp.verification import verify as verify
