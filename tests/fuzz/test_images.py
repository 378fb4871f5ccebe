"""Damaged images are read, or refused by name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captum_transformer_lrp.cli.files import photos_in
from captum_transformer_lrp.photos import read_photo
from tests.fuzz.mutants import DURATIONS, fuzz, read_or_refused


def images() -> list[bytes]:
    """Small ones of every format and of unusual kinds."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x010E] = 6, 1.5, "a photo"
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    frames = {"save_all": True, "append_images": [photo.rotate(90), photo.rotate(180)]}
    saved = [
        *((photo, {"format": kind}) for kind in ("PNG", "BMP", "GIF", "TIFF", "PPM")),
        (photo, {"format": "JPEG", "exif": exif}),
        (photo, {"format": "JPEG", "progressive": True}),
        (photo, {"format": "PNG", "exif": exif}),
        (photo, {"format": "WEBP", "lossless": True, "exif": exif}),
        (photo.convert("CMYK"), {"format": "JPEG"}),
        (photo.convert("RGBA"), {"format": "PNG"}),
        (photo.convert("P"), {"format": "PNG", "transparency": 3}),
        (photo.convert("1"), {"format": "TIFF", "compression": "group4"}),
        (photo, {"format": "TIFF", "compression": "tiff_lzw"}),
        (photo, {"format": "TIFF", "compression": "jpeg"}),
        (deep, {"format": "PNG"}),
        (deep, {"format": "TIFF"}),
        (Image.fromarray(pixels[..., 0].astype(np.float32) / 255), {"format": "TIFF"}),
        *((photo, {"format": kind, **frames}) for kind in ("GIF", "TIFF", "PNG", "WEBP")),
    ]
    files = []
    for image, options in saved:
        file = io.BytesIO()
        image.save(file, **options)
        files.append(file.getvalue())
    return files


def check(data: bytes, path: Path) -> bool:
    path.write_bytes(data)
    image = None
    for photo in photos_in([path], []):  # all frames
        with read_or_refused(ValueError, path):
            image = read_photo(photo.path, frame=photo.frame, max_pixels=1_000_000)
            assert image.mode == "RGB"
    return image is not None


@DURATIONS
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_image_is_read_or_refused_by_name(tmp_path: Path, seconds: float) -> None:
    whole = images()
    assert all(check(data, tmp_path / "image.png") for data in whole)
    assert fuzz(lambda data: check(data, tmp_path / "image.png"), whole, seconds)
