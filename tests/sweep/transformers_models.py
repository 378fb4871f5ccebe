"""The suite of transformers: every type of its classification mappings, tiny.

All sequence and image classifiers; of token classification, question answering, masked language
models, audio and video those that :data:`SAMPLES` names.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto import modeling_auto

from captum_transformer_lrp.verification.weights import draw_zero_weights
from tests.sweep.cases import Case, Entry, NotBuilt
from tests.sweep.transformers_configs import (
    NO_SOFTMAX_HERE,
    PLAIN_FLOAT32,
    TARGETS,
    TRAINING,
    tiny_config,
)

TASKS = {
    "sequence classification": "SequenceClassification",
    "image classification": "ImageClassification",
    "token classification": "TokenClassification",
    "question answering": "QuestionAnswering",
    "masked language model": "MaskedLM",
    "audio classification": "AudioClassification",
    "video classification": "VideoClassification",
}

SAMPLES: dict[str, tuple[str, ...]] = {
    "token classification": ("bert", "deberta-v2", "gpt2", "llama", "modernbert", "roberta", "t5"),
    "question answering": ("albert", "bart", "bert", "electra", "mixtral", "mpnet", "xlnet"),
    "masked language model": ("bert", "big_bird", "distilbert", "esm", "longformer", "roberta"),
}

LENGTH, VOCABULARY = 16, 60

KNOWN = {
    "yoso": "its attention is a custom autograd function whose derivative does not go through the "
    "map, so no gradient arrives there and attention moves no mass"
}
"""Why some models cannot pass."""


def entries() -> list[Entry]:
    """Sequence classifiers first."""
    found = []
    for task, suffix in TASKS.items():
        for kind in SAMPLES.get(task, _mapping(suffix)):
            name = kind if task == "sequence classification" else f"{kind}: {task}"
            found.append(Entry(name, kind, task, task == "sequence classification"))
    return found


def build(entry: Entry) -> Case:
    """Build one entry with random weights, in float64 where the model itself can be."""
    kind, suffix = entry.family, TASKS[entry.task]
    if kind in NO_SOFTMAX_HERE:
        raise NotBuilt(NO_SOFTMAX_HERE[kind])
    try:
        config = tiny_config(kind, num_labels=2 if suffix == "QuestionAnswering" else 5)
        model = _class(kind, suffix)(config)
    except ImportError as error:
        raise NotBuilt(str(error).strip().split(".")[0]) from error
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # PyTorch's grouped product knows no float64
    model = model.train() if kind in TRAINING else model.eval()
    model = model if kind in PLAIN_FLOAT32 else model.double()
    draw_zero_weights(model)
    dtype = next(model.parameters()).dtype
    if kind == "imagegpt":  # its pixels are token ids
        return Case(model, torch.randint(0, VOCABULARY - 1, (2, LENGTH)))
    if kind == "siglip2":  # patches come as a list, with their numbers along both axes
        shapes = {
            "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
            "spatial_shapes": torch.tensor([[4, 4], [2, 8]]),
        }
        return Case(model, torch.randn(2, 16, 192).to(dtype), additional_forward_args=shapes)
    if kind == "shieldgemma2":  # a prompt that the picture is a part of
        ids = torch.randint(3, 57, (2, LENGTH))
        ids[:, 2:6] = model.config.image_token_index
        pixels = _pictures(model, suffix).to(dtype)
        return Case(model, (ids, pixels))
    if suffix in ("ImageClassification", "VideoClassification"):
        pictures, target = _pictures(model, suffix).to(dtype), TARGETS.get(kind, 1)
        if kind == "pp_lcnet":  # its logits are called a hidden state
            return Case(model, pictures, forward=lambda x: model(x).last_hidden_state)
        return Case(model, pictures, target)
    if suffix == "AudioClassification":
        return Case(model, _sound(model).to(dtype))
    ids = torch.randint(3, VOCABULARY, (2, LENGTH))
    ids[:, -1] = 2  # where sequence-to-sequence classifiers read
    if suffix == "QuestionAnswering":
        return Case(model, ids, target=3, forward=lambda ids: model(ids).start_logits)
    targets = {"TokenClassification": (3, 1), "MaskedLM": (3, 7)}
    return Case(model, ids, target=TARGETS.get(kind, targets.get(suffix, 1)))


def _class(kind: str, suffix: str) -> Any:
    """The model class of a type; the first, if it has several."""
    name = _mapping(suffix)[kind]
    return getattr(transformers, name if isinstance(name, str) else name[0])


def _mapping(suffix: str) -> dict[str, Any]:
    names = {"MaskedLM": "MASKED_LM"}.get(suffix)
    if names is None:
        words = "".join(f"_{letter}" if letter.isupper() else letter for letter in suffix)
        names = words.upper().lstrip("_")
    return dict(getattr(modeling_auto, f"MODEL_FOR_{names}_MAPPING_NAMES"))


def _pictures(model: Any, suffix: str) -> Tensor:
    config = model.config
    config = getattr(config, "vision_config", config)
    side = getattr(config, "image_size", None) or 64
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    channels = getattr(config, "num_channels", 3)
    if suffix == "ImageClassification":
        return torch.randn(2, channels, height, width)
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", 4)
    return torch.randn(2, frames, channels, height, width)


def _sound(model: Any) -> Tensor:
    """Samples, or the features that the model takes in their place."""
    config = model.config
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
        return torch.randn(2, config.max_length, config.num_mel_bins)
    if hasattr(config, "num_mel_bins"):
        return torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions)
    if model.main_input_name == "input_features":
        return torch.randn(2, 12, config.feature_projection_input_dim)
    return torch.randn(2, 800)
