"""Vision-language families of transformers: words and pixels explain what they write."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from captum_transformer_lrp import explain_generation
from tests.results.seeing_families import FAMILIES, SIDE, built

QUICK = ("idefics3", "paligemma")
"""One with tokens around its image, and one that reads a prompt in both directions."""

PROMPT = "what is on the table"


def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def of_generate(model: Any, processor: Any, prompt: str, count: int) -> tuple[list[int], list[Any]]:
    """What the model writes by its own means, with a cache, and the probabilities of each token."""
    batch = processor(text=prompt, images=[photo()], return_tensors="pt")
    batch.pop("labels", None)
    written = model.generate(
        **batch, do_sample=False, max_new_tokens=count, output_logits=True, eos_token_id=None,
        return_dict_in_generate=True, pad_token_id=0,
    )  # fmt: skip
    ids = written.sequences[0, -count:].tolist()
    return ids, [one[0].float().softmax(-1) for one in written.logits]


@pytest.mark.parametrize(
    "family",
    [pytest.param(one, marks=[] if one in QUICK else pytest.mark.slow) for one in FAMILIES],
)
def test_a_family_that_sees_is_explained(family: str) -> None:
    model, processor = built(family)
    found = explain_generation(
        model, processor, PROMPT, images=photo(), continuation="a cat", of="log_probability"
    )
    assert [word.text for word in found.words] == [*PROMPT.split(), "a", "cat"]
    for seen, pixels in zip(found.pictures, found.pixels, strict=True):
        assert pixels.shape == (2, *seen.shape[:2])
        assert (np.abs(pixels).reshape(2, -1).max(1) > 0).all(), "a written word sees nothing"
    # The model's own way from token to token, with its cache, finds the same probabilities.
    own = explain_generation(
        model, processor, PROMPT, images=photo(), max_new_tokens=3, granularity="piece",
        special_tokens=True, generation={"eos_token_id": None},
    )  # fmt: skip
    image = "" if family == "blip_2" else processor.image_token
    image = getattr(processor, "boi_token", image) if family == "gemma3" else image
    ids, chances = of_generate(model, processor, image + PROMPT, 3)
    assert list(own.ids[own.start :]) == ids
    expected = [float(chance[token]) for chance, token in zip(chances, ids, strict=True)]
    # float32, and a cache that adds up in another order.
    np.testing.assert_allclose(own.probabilities, expected, rtol=1e-4)
