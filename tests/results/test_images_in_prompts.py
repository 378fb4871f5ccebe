"""Models that see: each written word has its words and its pixels."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from captum_transformer_lrp import ArgumentError, TransformerLRP, explain_generation
from captum_transformer_lrp.results.seen import Seen
from captum_transformer_lrp.results.written import Reader

WORDS = ["[PAD]", "what", "is", "on", "the", "table", "a", "cat", "dog", "<image>"]
IMAGE, SIDE = 9, 32
TEXT = {
    "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip


def tokenizer() -> Any:
    inside = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, "[PAD]"))
    inside.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inside, pad_token="[PAD]")


class Processor:
    """As those of transformers: as many tokens in the place of an image as it has features."""

    image_token, chat_template = "<image>", None
    # As the newer models read; transformers 5.0 knows no such argument.
    marks_kinds = (
        "mm_token_type_ids" in signature(Qwen2VLForConditionalGeneration.forward).parameters
    )

    def __init__(self, image_processor: Any, features: int) -> None:
        self.tokenizer, self.image_processor, self.features = tokenizer(), image_processor, features

    def __call__(self, *, text: str, images: list[Any], return_tensors: str) -> dict[str, Any]:
        seen = self.image_processor(images=images, return_tensors=return_tensors)
        places = f" {self.image_token}" * self.features + " "
        encoded = self.tokenizer(
            text.replace(self.image_token, places), return_tensors=return_tensors
        )
        found = {**encoded, **seen}
        found.pop("token_type_ids", None)
        if "image_grid_thw" in seen and self.marks_kinds:
            found["mm_token_type_ids"] = (found["input_ids"] == IMAGE).int()
        return found


def llava() -> tuple[Any, Any]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision = CLIPVisionConfig(**sizes, num_attention_heads=2, image_size=SIDE, patch_size=8)
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=IMAGE
    )
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(size=size, crop_size=size)
    return LlavaForConditionalGeneration(config).eval(), Processor(images, 16)


def qwen2_vl() -> tuple[Any, Any]:
    image_processor = pytest.importorskip("transformers").Qwen2VLImageProcessor
    torch.manual_seed(0)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    patches = {"patch_size": 4, "temporal_patch_size": 2}
    vision = {
        "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
        "spatial_merge_size": 2, **patches,
    }  # fmt: skip
    config = Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, image_token_id=IMAGE
    )
    size = {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}
    images = image_processor(merge_size=2, size=size, **patches)
    return Qwen2VLForConditionalGeneration(config).eval(), Processor(images, 16)


@pytest.fixture(scope="module", params=[llava, qwen2_vl], ids=["llava", "qwen2_vl"])
def sees(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return request.param()


def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_what_was_seen_is_the_picture_itself(sees: tuple[Any, Any]) -> None:
    found = explain_generation(*sees, "what is on the table", images=photo(), target="cat")
    (seen,) = found.pictures
    np.testing.assert_allclose(seen, np.asarray(photo()) / 255, atol=0.01)


def test_each_written_word_has_its_words_and_its_pixels(
    sees: tuple[Any, Any], tmp_path: Path
) -> None:
    model, processor = sees
    found = explain_generation(
        model, processor, "what is on the table", images=photo(), continuation="a cat"
    )
    assert [word.text for word in found.words] == ["what", "is", "on", "the", "table", "a", "cat"]
    assert found.pixels[0].shape == (2, SIDE, SIDE)
    ids = torch.tensor([found.ids])
    batch = processor(text="<image>what is on the table", images=[photo()], return_tensors="pt")
    given = {name: batch[name] for name in batch if name not in ("input_ids", "attention_mask")}
    pixels = given.pop("pixel_values")
    if "mm_token_type_ids" in given:
        given["mm_token_type_ids"] = (ids == IMAGE).int()

    def logits(ids: Any, pixels: Any) -> Any:
        return model(input_ids=ids, pixel_values=pixels[0], **given).logits

    method = TransformerLRP(logits, preset="attnlrp")
    place = found.start
    of_ids, of_pixels = method.attribute((ids, pixels[None]), (place - 1, found.ids[place]))
    np.testing.assert_allclose(found.maps[0], of_ids[0], rtol=1e-3, atol=1e-5)
    assert found.pixels[0][0].sum() == pytest.approx(float(of_pixels.sum()), rel=1e-3, abs=1e-5)
    for name in ("a.html", "a.npz", "a.png", "a.json"):
        found.save(tmp_path / name)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.count("data-over=") == 2
    assert page.count(" data-photo ") == 1
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["pixels/0"].shape == (2, SIDE, SIDE)
    assert found.spans("a cat")[0].pixels[0].shape == (SIDE, SIDE)


def test_a_patch_that_alone_is_changed_is_found_where_it_lies(sees: tuple[Any, Any]) -> None:
    """Values go back to where the image processor took them from."""
    model, processor = sees
    found = []
    for row, column in [(0, 0), (0, 20), (12, 8), (28, 28), (16, 4)]:
        pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
        pixels[row : row + 4, column : column + 4] = 255
        batch = processor(text="<image>", images=[Image.fromarray(pixels)], return_tensors="pt")
        values = batch.pop("pixel_values")
        seen = Seen(values, batch, {}, processor.image_processor)
        (picture,) = seen.pictures(values)
        bright = picture.sum(0) > picture.sum(0).float().mean() + 1
        found.append(bool((bright.numpy() == (pixels[..., 0] > 0)).all()))
    assert all(found)
    assert Reader(model).config is model.config


def test_a_model_that_sees_writes(sees: tuple[Any, Any]) -> None:
    found = explain_generation(*sees, "what is on the table", images=[photo()], max_new_tokens=3)
    assert found.maps.shape[0] == 3
    contrast = explain_generation(
        *sees, "what is on the table", images=photo(), target="cat", instead_of="dog"
    )
    assert contrast.pixels[0].shape == (1, SIDE, SIDE)
    assert "What the model saw" in contrast.to_html()


def test_what_must_be_changed_is_named(sees: tuple[Any, Any]) -> None:
    model, processor = sees
    with pytest.raises(ArgumentError, match="expected a processor"):
        explain_generation(model, processor.tokenizer, "what", images=photo())
    with pytest.raises(ArgumentError, match="give one of ours"):
        explain_generation(
            model, processor, "what", images=photo(), target="cat", method="saliency"
        )
