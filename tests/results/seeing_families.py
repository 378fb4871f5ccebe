"""Vision-language models of transformers, built small with random weights, with their processors.

Each builder returns a model and the processor that transformers has for it. The tokenizer has a
token for each word, so that nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

WORDS: Final = ["[PAD]", "what", "is", "on", "the", "table", "a", "cat", "dog"]
MARKS: Final = (
    *[
        "<image>",
        "<video>",
        "<boi>",
        "<eoi>",
        "<fake_token_around_image>",
        "<global-img>",
        "<end_of_utterance>",
    ],
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)  # fmt: skip
NAMES: Final = (*WORDS, *MARKS)
SIDE, PATCH = 32, 8
IMAGE: Final = NAMES.index("<image>")

TEXT: Final[dict[str, Any]] = {
    "vocab_size": 1200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "head_dim": 8, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
SEES: Final[dict[str, Any]] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": PATCH,
}  # fmt: skip
SQUARE: Final = {"height": SIDE, "width": SIDE}
SHORT: Final = {"shortest_edge": SIDE}


def tokenizer(**names: str) -> Any:
    inside = Tokenizer(WordLevel({word: place for place, word in enumerate(NAMES)}, "[PAD]"))
    inside.pre_tokenizer = WhitespaceSplit()
    found = PreTrainedTokenizerFast(
        tokenizer_object=inside, pad_token="[PAD]", unk_token="[PAD]", extra_special_tokens=names
    )
    found.add_special_tokens({"additional_special_tokens": list(MARKS)})
    return found


def of(name: str) -> Any:
    return getattr(transformers, name)


def llava(kind: str = "Llava", **options: Any) -> tuple[Any, Any]:
    vision, text = of("CLIPVisionConfig")(**SEES), of("LlamaConfig")(**TEXT)
    config = of(f"{kind}Config")(
        vision_config=vision, text_config=text, image_token_index=IMAGE, **options
    )
    images = of("CLIPImageProcessor")(size=SQUARE, crop_size=SQUARE)
    processor = of("LlavaProcessor")(
        images, tokenizer(), patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return of(f"{kind}ForConditionalGeneration")(config), processor


def vipllava() -> tuple[Any, Any]:
    return llava("VipLlava", vision_feature_layers=[-2, -1])


def llava_next() -> tuple[Any, Any]:
    pinpoints = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    config = of("LlavaNextConfig")(
        vision_config=of("CLIPVisionConfig")(**SEES), text_config=of("LlamaConfig")(**TEXT),
        image_token_index=IMAGE, image_grid_pinpoints=pinpoints,
    )  # fmt: skip
    images = of("LlavaNextImageProcessor")(
        size=SHORT, crop_size=SQUARE, image_grid_pinpoints=pinpoints
    )
    processor = of("LlavaNextProcessor")(
        images, tokenizer(), patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return of("LlavaNextForConditionalGeneration")(config), processor


def llava_onevision() -> tuple[Any, Any]:
    pinpoints = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    config = of("LlavaOnevisionConfig")(
        vision_config=of("SiglipVisionConfig")(**SEES, vision_use_head=False),
        text_config=of("Qwen2Config")(**TEXT),
        image_token_index=IMAGE, image_grid_pinpoints=pinpoints,
        video_token_index=NAMES.index("<video>"),
    )  # fmt: skip
    images = of("LlavaOnevisionImageProcessor")(size=SQUARE, image_grid_pinpoints=pinpoints)
    processor = of("LlavaOnevisionProcessor")(
        images, tokenizer(), of("LlavaOnevisionVideoProcessor")(size=SQUARE),
        num_image_tokens=(SIDE // PATCH) ** 2, vision_feature_select_strategy="full",
    )  # fmt: skip
    return of("LlavaOnevisionForConditionalGeneration")(config), processor


def _qwen(kind: str, vision: dict[str, Any]) -> tuple[Any, Any]:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    patches = {"patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2}
    config = of(f"{kind}Config")(
        text_config={**TEXT, "rope_parameters": rope}, vision_config={**patches, **vision},
        image_token_id=IMAGE, video_token_id=NAMES.index("<video>"),
        vision_start_token_id=NAMES.index("<boi>"), vision_end_token_id=NAMES.index("<eoi>"),
    )  # fmt: skip
    size = {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}
    shape = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "size": size}
    images = of("Qwen2VLImageProcessor")(**shape)
    processor = of("Qwen2VLProcessor")(
        images, tokenizer(image_token="<image>", video_token="<video>"),
        of("Qwen2VLVideoProcessor")(**shape),
    )  # fmt: skip
    return of(f"{kind}ForConditionalGeneration")(config), processor


def qwen2_vl() -> tuple[Any, Any]:
    return _qwen(
        "Qwen2VL",
        {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
    )


def qwen2_5_vl() -> tuple[Any, Any]:
    return _qwen("Qwen2_5_VL", {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
        "out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 16,
    })  # fmt: skip


def qwen3_vl() -> tuple[Any, Any]:
    return _qwen("Qwen3VL", {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
        "out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
    })  # fmt: skip


def gemma3() -> tuple[Any, Any]:
    config = of("Gemma3Config")(
        text_config=of("Gemma3TextConfig")(**TEXT, query_pre_attn_scalar=8, sliding_window=16),
        vision_config=of("SiglipVisionConfig")(**SEES, vision_use_head=False),
        mm_tokens_per_image=4, image_token_index=IMAGE, boi_token_index=NAMES.index("<boi>"),
        eoi_token_index=NAMES.index("<eoi>"),
    )  # fmt: skip
    names = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    processor = of("Gemma3Processor")(
        of("Gemma3ImageProcessor")(size=SQUARE), tokenizer(**names), image_seq_length=4
    )
    model = of("Gemma3ForConditionalGeneration")(config)
    # It starts from zeros, so that the model would be blind.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return model, processor


def paligemma() -> tuple[Any, Any]:
    if transformers.__version__.startswith("5.0."):
        pytest.skip("PaliGemma of transformers 5.0 is refused, as not causal")
    text = {**TEXT, "model_type": "gemma"}
    config = of("PaliGemmaConfig")(
        text_config=text, vision_config={**SEES, "model_type": "siglip_vision_model",
        "vision_use_head": False, "projection_dim": 32},
        image_token_index=IMAGE, projection_dim=32, hidden_size=32,
    )  # fmt: skip
    images = of("SiglipImageProcessor")(size=SQUARE)
    images.image_seq_length = (SIDE // PATCH) ** 2
    words = tokenizer(image_token="<image>")
    words.bos_token = "<boi>"
    processor = of("PaliGemmaProcessor")(images, words)
    return of("PaliGemmaForConditionalGeneration")(config), processor


def _idefics(kind: str, images: Any) -> tuple[Any, Any]:
    config = of(f"{kind}Config")(
        vision_config=SEES, text_config=of("LlamaConfig")(**TEXT), image_token_id=IMAGE,
        scale_factor=2, pad_token_id=0,
    )  # fmt: skip
    processor = of("Idefics3Processor")(images, tokenizer(), image_seq_len=4)
    return of(f"{kind}ForConditionalGeneration")(config), processor


def idefics3() -> tuple[Any, Any]:
    images = of("Idefics3ImageProcessor")(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}
    )
    return _idefics("Idefics3", images)


def smolvlm() -> tuple[Any, Any]:
    # SmolVLM's own wants a package that spells numbers. For one picture Idefics3's does the same.
    images = of("SmolVLMImageProcessor")(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}
    )
    return _idefics("SmolVLM", images)


def internvl() -> tuple[Any, Any]:
    vision = {**SEES, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}
    config = of("InternVLConfig")(
        vision_config=of("InternVLVisionConfig")(**vision), text_config=of("Qwen2Config")(**TEXT),
        image_token_id=IMAGE, downsample_ratio=0.5, image_seq_length=4,
    )  # fmt: skip
    names = {
        "start_image_token": "<boi>", "end_image_token": "<eoi>",
        "context_image_token": "<image>", "video_token": "<video>",
    }  # fmt: skip
    processor = of("InternVLProcessor")(
        of("GotOcr2ImageProcessor")(size=SQUARE, crop_to_patches=False), tokenizer(**names),
        of("InternVLVideoProcessor")(size=SQUARE), image_seq_length=4,
    )  # fmt: skip
    return of("InternVLForConditionalGeneration")(config), processor


def blip_2() -> tuple[Any, Any]:
    config = of("Blip2Config")(
        vision_config=SEES,
        qformer_config={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "encoder_hidden_size": 32, "vocab_size": 8},
        text_config={"model_type": "opt", "vocab_size": 1200, "hidden_size": 32, "ffn_dim": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32,
        "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": None,
        "eos_token_id": None},
        num_query_tokens=4, image_token_index=IMAGE,
    )  # fmt: skip
    images = of("BlipImageProcessor")(size=SQUARE)
    processor = of("Blip2Processor")(images, tokenizer(), num_query_tokens=4)
    return of("Blip2ForConditionalGeneration")(config), processor


def mistral3() -> tuple[Any, Any]:
    text = {**TEXT, "model_type": "mistral"}
    vision = {**SEES, "model_type": "pixtral", "head_dim": 16}
    config = of("Mistral3Config")(
        text_config=text, vision_config=vision, image_token_index=IMAGE, spatial_merge_size=2,
        vision_feature_layer=-1,
    )  # fmt: skip
    images = of("PixtralImageProcessor")(size={"longest_edge": SIDE}, patch_size=2 * PATCH)
    processor = of("PixtralProcessor")(
        images, tokenizer(), patch_size=PATCH, spatial_merge_size=2, image_token="<image>",
        image_break_token="<boi>", image_end_token="<eoi>",
    )  # fmt: skip
    return of("Mistral3ForConditionalGeneration")(config), processor


def aya_vision() -> tuple[Any, Any]:
    config = of("AyaVisionConfig")(
        vision_config=of("SiglipVisionConfig")(**SEES, vision_use_head=False),
        text_config=of("Cohere2Config")(**TEXT, sliding_window=16), image_token_index=IMAGE,
        downsample_factor=2, adapter_layer_norm_eps=1e-6, vision_feature_layer=-1,
    )  # fmt: skip
    processor = of("AyaVisionProcessor")(
        of("GotOcr2ImageProcessor")(size=SQUARE, crop_to_patches=False), tokenizer(),
        patch_size=PATCH, img_size=SIDE, downsample_factor=2, image_token="<image>",
        start_of_img_token="<boi>", end_of_img_token="<eoi>", img_patch_token="<image>",
    )  # fmt: skip
    return of("AyaVisionForConditionalGeneration")(config), processor


FAMILIES: Final[dict[str, Callable[[], tuple[Any, Any]]]] = {
    one.__name__: one
    for one in (
        llava, qwen2_vl, llava_next, qwen2_5_vl, gemma3, paligemma, idefics3, smolvlm, internvl,
        blip_2, vipllava, llava_onevision, qwen3_vl, mistral3, aya_vision,
    )
}  # fmt: skip


def built(name: str) -> tuple[Any, Any]:
    """The model with random weights, and its processor."""
    torch.manual_seed(0)
    model, processor = FAMILIES[name]()
    return model.eval(), processor
