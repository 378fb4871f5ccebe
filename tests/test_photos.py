"""Which part of a photo a model sees, whoever crops it."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from torchvision.transforms import functional
from transformers import ViTImageProcessor

from captum_transformer_lrp.models import load_image_model
from captum_transformer_lrp.photos import seen_part


def tensor_of(photo: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(photo) / 255).movedim(-1, 0)


def test_the_centre_crop_of_timm() -> None:
    config = timm.get_pretrained_cfg("deit_tiny_patch16_224")
    see = create_transform(
        config.input_size, crop_pct=config.crop_pct, interpolation="bicubic", mean=(0,) * 3,
        std=(1,) * 3,
    )  # fmt: skip
    resized = int(224 / config.crop_pct)
    margin = 480 * (resized - 224) / resized / 2
    left = (640 - (480 - 2 * margin)) / 2
    expected = (left, margin, 640 - left, 480 - margin)
    # Within a pixel: the preprocessing rounds sizes to whole pixels, too.
    assert seen_part(see, (640, 480)) == pytest.approx(expected, abs=1)


def test_the_whole_photo_squeezed_by_hugging_face() -> None:
    processor = ViTImageProcessor(do_normalize=False)

    def see(photo: Image.Image) -> torch.Tensor:
        return processor(images=photo, return_tensors="pt")["pixel_values"][0]

    assert seen_part(see, (300, 200)) == pytest.approx((0, 0, 300, 200), abs=1)


def test_the_crop_of_the_bundled_model() -> None:
    bundled = load_image_model("bundled/scenes")
    found = seen_part(lambda photo: bundled.visible(bundled.preprocess(photo)), (100, 400))
    assert found == pytest.approx((0, 150, 100, 250), abs=1)


@pytest.mark.parametrize(
    "see",
    [
        lambda photo: tensor_of(ImageOps.mirror(photo)),
        lambda photo: tensor_of(photo.rotate(10)),
        lambda photo: functional.pad(tensor_of(photo), [40]),
        lambda photo: tensor_of(photo).mean(0, keepdim=True).expand(3, -1, -1),
    ],
    ids=["mirrored", "turned", "padded", "grey"],
)
def test_what_is_no_crop_has_no_part(see: object) -> None:
    assert seen_part(see, (64, 64)) is None  # type: ignore[arg-type]
