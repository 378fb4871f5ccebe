"""Tiny configurations of every architecture in transformers, from the configuration class alone.

Nothing is downloaded: a class's default configuration says which fields there are, and fields that
mean a size get a small value.  What a class needs beyond that is data, in :data:`OVERRIDES`.
"""

from __future__ import annotations

import inspect
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

SMALL: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim"], 32),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers"], 2),
    **dict.fromkeys(["encoder_layers", "decoder_layers", "num_decoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads"], 4),
    **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads"], 2),
    **dict.fromkeys(["intermediate_size", "d_ff", "ffn_dim", "hidden_dim", "d_inner", "dff"], 48),
    **dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim"], 48),
    **dict.fromkeys(["head_dim", "d_kv", "d_head", "v_head_dim", "rotary_dim"], 8),
    **dict.fromkeys(["mamba_d_state", "mamba_d_head", "mamba_headdim"], 8),
    **dict.fromkeys(["qk_rope_head_dim", "qk_nope_head_dim"], 4),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank"], 8),
    **dict.fromkeys(["num_local_experts", "num_experts", "n_routed_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "top_k_experts", "moe_topk"], 2),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 16),
    **dict.fromkeys(["n_group", "topk_group"], 1),
    "vocab_size": 60,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "sliding_window": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "pooler_hidden_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
"""Fields that mean a size, an id or a number of things."""

MISSING = frozenset(["head_dim", "vocab_size", "pad_token_id", "eos_token_id", "bos_token_id"])
"""Those of them that are also given where the default configuration has none."""

LINEAR_ATTENTION = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}

OVERRIDES: dict[str, dict[str, Any]] = {
    "axk1": {"num_key_value_heads": 4},
    "axk2": {"num_key_value_heads": 4, "index_topk": 8, "index_head_dim": 8, "index_n_heads": 4},
    "canine": {"num_hash_buckets": 64},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {"num_key_value_heads": 4, "first_k_dense_replace": 1},
    "esmc": {"num_key_value_heads": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6, "input_size": 32},
    "lilt": {"hidden_size": 96},
    "longformer": {"attention_window": [8, 8]},
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 32},
    "markuplm": {"max_depth": 4, "max_xpath_subs_unit_embeddings": 1002},
    "minicpm3": {"num_key_value_heads": 4},
    "mistral4": {"num_key_value_heads": 4},
    "nemotron": {"num_key_value_heads": 2},
    "perceiver": {
        "d_latents": 32,
        "num_latents": 8,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
    },
    "qwen3_5": {"text_config": LINEAR_ATTENTION, "vision_config": {"out_hidden_size": 32}},
    "qwen3_5_text": LINEAR_ATTENTION,
    "qwen3_next": LINEAR_ATTENTION,
    "reformer": {
        "axial_pos_embds_dim": [8, 24],
        "axial_pos_shape": [4, 4],
        "hidden_dropout_prob": 0,
        "local_attention_probs_dropout_prob": 0,
        "attention_head_size": 8,
        "feed_forward_size": 48,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 16,
        "shape_embed_dim": 16,
        "pronunciation_vocab_size": 20,
        "shape_vocab_size": 20,
    },
    "pvt": {"image_size": 64},  # at 32 its last stage has one token, which is nowhere
    "shieldgemma2": {
        "image_token_index": 59,
        "boi_token_index": 58,
        "eoi_token_index": 57,
        "mm_tokens_per_image": 4,
        "yes_token_index": 7,
        "no_token_index": 8,
    },
    "swiftformer": {"image_size": 64},  # as pvt
    "textnet": {"image_size": 64},
    "timm_wrapper": {"architecture": "test_vit"},
    "videoprism_vision_model": {
        "tubelet_size": (1, 8, 8),
        "num_spatial_layers": 2,
        "num_temporal_layers": 2,
        "num_frames": 4,
    },
    "vjepa2": {
        "crop_size": 32,
        "frames_per_clip": 4,
        "pred_hidden_size": 32,
        "pred_num_attention_heads": 4,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
    },
}
"""What single types need beyond :data:`SMALL`, by type."""


PLAIN_FLOAT32 = frozenset(["canine"])
"""Types whose own code cannot run in float64."""

TRAINING = frozenset(["reformer"])
"""Types whose own derivative is defined in training mode alone (here without dropout)."""

HIERARCHICAL: dict[str, dict[str, Any]] = {
    "convnext": {},
    "convnextv2": {},
    "cvt": {},
    "dinat": {},
    "donut-swin": {"image_size": 128, "window_size": 4},
    "efficientnet": {},
    "levit": {},
    "mobilevitv2": {},
    "swin": {"image_size": 128, "window_size": 4},
    "swinv2": {"image_size": 128, "window_size": 4},
}
"""Types whose sizes are lists that fit each other: as they are, on small images."""

TARGETS: dict[str, Any] = {"perceiver": 0, "videoprism_vision_model": (0, 1)}
"""Targets where 1 will not do: others have no evidence for it, or the output has another shape."""

NO_SOFTMAX_HERE = {
    "mra": "its attention is a CUDA kernel; without it transformers returns zeros in its place",
}
"""Types that transformers itself replaces by something else on a CPU."""


def tiny_config(kind: str, **more: Any) -> PretrainedConfig:
    """The configuration of a tiny model of type ``kind``.

    Args:
        kind: a model type, such as ``"bert"``.
        more: further fields, such as ``num_labels``.
    """
    if kind in HIERARCHICAL:
        config = CONFIG_MAPPING[kind]()
        for name, value in {"image_size": 64, **HIERARCHICAL[kind], **more}.items():
            setattr(config, name, value)
        return config
    return _shrunk(CONFIG_MAPPING[kind], more)


def _shrunk(kind: type[PretrainedConfig], more: dict[str, Any]) -> PretrainedConfig:
    default = kind()
    more = {**OVERRIDES.get(default.model_type, {}), **more}
    fields = dict(_small_fields(kind, default))
    fields.update(_short_lists(default, fields))
    for name in more:
        value = more[name]
        if isinstance(value, dict) and isinstance(getattr(default, name, None), PretrainedConfig):
            fields[name] = _shrunk(type(getattr(default, name)), value)
        else:
            fields[name] = value
    if getattr(default, "is_encoder_decoder", False):
        fields.setdefault("decoder_start_token_id", 0)
    if "qk_rope_head_dim" in fields:  # the rotary part alone
        fields.pop("head_dim", None)
    return kind(**fields)


def _small_fields(kind: type[PretrainedConfig], default: PretrainedConfig) -> Any:
    written = default.to_dict()
    for name in (*written, *SMALL):
        if isinstance(inspect.getattr_static(kind, name, None), property):
            continue
        name = default.attribute_map.get(name, name)
        value = getattr(default, name, None)
        if isinstance(value, PretrainedConfig):
            yield name, _shrunk(type(value), {})
        elif name in SMALL and (isinstance(value, int) or (value is None and name in MISSING)):
            yield name, SMALL[name]


def _short_lists(default: PretrainedConfig, fields: dict[str, Any]) -> dict[str, Any]:
    """Lists with one entry for each layer: one layer of each kind is kept."""
    for layers in ("num_hidden_layers", "n_layer", "num_layers"):
        count = getattr(default, layers, None)
        lists = {
            name: list(dict.fromkeys(value))
            for name, value in default.to_dict().items()
            if isinstance(value, (list, tuple))
            and len(value) == count
            and all(isinstance(one, (str, int)) for one in value)
        }
        if lists:
            needed = max(2, *(len(kinds) for kinds in lists.values()))
            found: dict[str, Any] = {
                name: kinds + kinds[-1:] * (needed - len(kinds)) for name, kinds in lists.items()
            }
            return {**found, default.attribute_map.get(layers, layers): needed}
    return {}
