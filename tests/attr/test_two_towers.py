"""Image–text similarity: both towers of CLIP and SigLIP are attributed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from captum_transformer_lrp import TransformerAttribution

GENERATOR = torch.Generator().manual_seed(1)
IMAGES = torch.randn(2, 3, 32, 32, generator=GENERATOR).double()
IDS = torch.tensor([[5, 6, 7, 11, 29], [12, 13, 29, 0, 0]])
MASK = (IDS != 0).long()

TEXT = {
    "vocab_size": 30, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 16, "eos_token_id": 29,
    "bos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


def clip() -> Any:
    torch.manual_seed(0)
    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    return CLIPModel(config).double().eval()


def siglip() -> Any:
    torch.manual_seed(0)
    text = {**TEXT, "projection_size": 24}
    return SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).double().eval()


def similarity(model: Any) -> Callable[..., Tensor]:
    def of_pairs(pixel_values: Tensor, input_ids: Tensor, **more: Any) -> Tensor:
        found = model(pixel_values=pixel_values, input_ids=input_ids, **more)
        pairs: Tensor = (found.image_embeds * found.text_embeds).sum(-1)
        return pairs

    return of_pairs


@pytest.fixture(scope="module", params=[clip, siglip], ids=["clip", "siglip"])
def pairs(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    return similarity(request.param())


def test_both_towers_are_attributed(pairs: Callable[..., Tensor]) -> None:
    found = TransformerAttribution(pairs).explain((IMAGES, IDS), additional_forward_args=masked())
    assert isinstance(found.attributions, tuple)
    of_image, of_text = found.attributions
    assert of_image.shape == IMAGES.shape
    assert of_text.shape == IDS.shape
    assert (of_image.flatten(1).sum(1) > 0).all()
    assert (of_text.sum(1) > 0).all()
    assert torch.allclose(found.total, torch.ones(2).double(), atol=1e-6)
    sums = [one.flatten(1).sum(1).abs() for one in found.relevances]
    assert all((one > 1e-6).all() for one in sums)


def test_the_value_that_is_explained_is_the_similarity(pairs: Callable[..., Tensor]) -> None:
    found = TransformerAttribution(pairs).explain((IMAGES, IDS), additional_forward_args=masked())
    assert torch.allclose(found.output, pairs(IMAGES, IDS, attention_mask=MASK), atol=1e-9)


def test_pairs_do_not_touch_each_other(pairs: Callable[..., Tensor]) -> None:
    method = TransformerAttribution(pairs)
    both = method.attribute((IMAGES, IDS), additional_forward_args=masked())
    for place in range(2):
        cut = slice(place, place + 1)
        arguments = {"attention_mask": MASK[cut]}
        single = method.attribute((IMAGES[cut], IDS[cut]), additional_forward_args=arguments)
        for one, other in zip(both, single, strict=True):
            assert torch.allclose(one[cut], other, atol=1e-9 * float(other.max()))


def test_padding_gets_exactly_zero() -> None:
    found = TransformerAttribution(similarity(clip())).attribute(
        (IMAGES, IDS), additional_forward_args=masked()
    )
    assert not found[1][MASK == 0].any()
    assert (found[1][MASK == 1] > 0).all()


def masked() -> dict[str, Tensor]:
    return {"attention_mask": MASK}
