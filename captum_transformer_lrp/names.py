"""Names that help and completion show: nothing here waits for PyTorch to be imported."""

from __future__ import annotations

from typing import Final

BUNDLED_IMAGE_MODEL: Final = "bundled/scenes"
"""The name of the bundled scene classifier, `examples.scene_classifier`."""

BUNDLED_TEXT_MODEL: Final = "bundled/sentiment"
"""The name of the bundled sentiment classifier, `examples.sentiment_classifier`."""

OF_THE_PAPER: Final = (
    "transformer_attribution",
    "attention_rollout",
    "raw_attention",
    "attention_gradcam",
    "transformer_lrp",
    "partial_lrp",
)
"""The paper's method and those that it is compared with."""

DEFAULT_METHOD: Final = OF_THE_PAPER[0]
WRITTEN_TEXT_METHOD: Final = "attnlrp"
"""What explains a language model where nothing else is asked for: docs/generation.md says why."""
DEFAULT_COMPARISON: Final = (*OF_THE_PAPER, "integrated_gradients")

METHODS: Final = (
    "transformer_attribution",
    "attention_rollout",
    "attention_flow",
    "raw_attention",
    "attention_gradcam",
    "partial_lrp",
    "transformer_lrp",
    "generic_attention",
    "attnlrp",
    "cp_lrp",
    "legrad",
    "attcat",
    "libra_gradient",
    "libra_fullgrad_plus",
    "bi_attention",
    "norm_rollout",
    "alti",
    "saliency",
    "input_x_gradient",
    "integrated_gradients",
    "gradient_shap",
    "deep_lift",
    "deep_lift_shap",
    "occlusion",
    "feature_ablation",
    "shapley_value_sampling",
    "kernel_shap",
    "lime",
)
"""What `attr.comparison.METHODS` knows, which a test compares."""

ALIASES: Final = {"rollout": "attention_rollout"}
"""What people call a method, and its name here."""
