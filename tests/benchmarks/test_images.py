"""Where the classes of photos come from, and what is said when they do not fit."""

from __future__ import annotations

import errno
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo

from captum_transformer_lrp.benchmarks import BenchmarkError, labelled_images
from captum_transformer_lrp.benchmarks.errors import UnreadableExampleError
from captum_transformer_lrp.benchmarks.images import read_rgb, whole_image
from captum_transformer_lrp.models import ImageModel

from .conftest import write_photo

NAMES = ("cat", "dog", "cow")


def labels(folder: Path, names: tuple[str, ...] = NAMES, **options: Path) -> dict[str, int]:
    return {x.identifier: x.label for x in labelled_images(folder, names, **options)}


def test_file_names_begin_with_the_class(tmp_path: Path) -> None:
    for name in ("0001_n02_dog.jpg", "2-cow.PNG", "0.jpeg"):
        write_photo(tmp_path / name, 0)
    (tmp_path / "readme.txt").write_text("not a photo")
    assert labels(tmp_path) == {"0.jpeg": 0, "0001_n02_dog.jpg": 1, "2-cow.PNG": 2}


def test_folders_are_classes_in_alphabetical_order(tmp_path: Path) -> None:
    for name in ("b/1_x.png", "a/2_x.png", "c/0_x.png"):
        write_photo(tmp_path / name, 0)
    assert labels(tmp_path) == {"a/2_x.png": 0, "b/1_x.png": 1, "c/0_x.png": 2}
    shutil.rmtree(tmp_path / "c")
    with pytest.raises(
        BenchmarkError, match=r"found 2 folders of classes .* the model has 3 classes"
    ):
        labels(tmp_path)


def test_folders_named_by_numbers_are_those_classes(tmp_path: Path) -> None:
    write_photo(tmp_path / "2/x.png", 0)
    assert labels(tmp_path) == {"2/x.png": 2}


def test_folders_of_some_synsets_are_the_classes_of_imagenet(tmp_path: Path) -> None:
    thousand = tuple(map(str, range(1000)))
    for name in ("n01440764", "n15075141"):
        write_photo(tmp_path / name / "x.png", 0)
    assert labels(tmp_path, thousand) == {"n01440764/x.png": 0, "n15075141/x.png": 999}
    assert ImageNetInfo().label_names()[999] == "n15075141"
    write_photo(tmp_path / "n00000000/x.png", 0)
    with pytest.raises(BenchmarkError, match="n00000000, which is none of the 1000"):
        labels(tmp_path, thousand)


@pytest.mark.parametrize(
    "text", ["a.png 2\nb.png 0\n", "file,class\na.png,2\nb.png,0\n", "a.png\t2\nb.png\t0\n"]
)
def test_a_file_of_labels_goes_first(tmp_path: Path, text: str) -> None:
    for name in ("a.png", "b.png"):
        write_photo(tmp_path / "data" / name, 0)
    (tmp_path / "labels").write_text(text)
    assert labels(tmp_path / "data", labels=tmp_path / "labels") == {"a.png": 2, "b.png": 0}


def test_a_file_of_labels_must_have_all_photos(tmp_path: Path) -> None:
    write_photo(tmp_path / "data/a.png", 0)
    (tmp_path / "labels").write_text("b.png 1\n")
    with pytest.raises(BenchmarkError, match=r"no class for 1 of 1 photos, such as a.png"):
        labels(tmp_path / "data", labels=tmp_path / "labels")
    (tmp_path / "labels").write_text("a.png 1\na.png one\n")
    with pytest.raises(BenchmarkError, match=r"line 2: found 'a.png one'"):
        labels(tmp_path / "data", labels=tmp_path / "labels")


def test_a_missing_class_index_is_said(tmp_path: Path) -> None:
    write_photo(tmp_path / "tabby.jpg", 0)
    with pytest.raises(BenchmarkError, match=r"no class for tabby.jpg: begin its name"):
        labels(tmp_path)


def test_classes_beyond_the_models_are_said(tmp_path: Path) -> None:
    write_photo(tmp_path / "0281_tabby.jpg", 0)
    with pytest.raises(
        BenchmarkError, match="is of class 281, but the model has 3 classes, 0 to 2"
    ):
        labels(tmp_path)


def test_an_empty_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="holds no photos"):
        labels(tmp_path)
    with pytest.raises(BenchmarkError, match="found no folder"):
        labels(tmp_path / "missing")


def test_the_whole_photo_is_resized_and_normalised(tiny: ImageModel) -> None:
    """As torchvision does it: ToTensor and Normalize of a resized photo."""
    from torchvision.transforms.functional import normalize, to_tensor

    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    expected = normalize(
        to_tensor(photo.resize((40, 20), Image.Resampling.BILINEAR)),
        list(tiny.mean),
        list(tiny.std),
    )
    torch.testing.assert_close(whole_image(photo, tiny, (20, 40)), expected)


@pytest.mark.parametrize("kind", ["16 bits", "PostScript", "a damaged tag"])
def test_photos_are_read_as_by_the_commands(tmp_path: Path, kind: str) -> None:
    """Scaled by their range, or refused; no other program is run to read them."""
    file = tmp_path / "photo.png"
    if kind == "16 bits":
        ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (4, 1))
        Image.fromarray(ramp).save(file)
        assert np.asarray(read_rgb(file))[0, :, 0].tolist() == list(range(256))
        return
    if kind == "PostScript":
        file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n")
    else:
        exif = Image.Exif()
        exif[0x0112], exif[0x011A] = 6, 1.5
        stream = io.BytesIO()
        Image.new("RGB", (8, 8)).save(stream, "JPEG", exif=exif)
        data = bytearray(stream.getvalue())
        data[data.index(b"Exif") + 29] = 0
        file.write_bytes(data)
    with pytest.raises(UnreadableExampleError, match=r"^cannot be read as an image"):
        read_rgb(file)


@pytest.mark.parametrize("content", [b"no photo at all", b"\x89PNG\r\n\x1a\n", None], ids=str)
def test_a_reason_names_no_folder_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "it's \\ a photo.png"
    file.write_bytes(content or b"")
    if content is None:

        def refuse(path: Path, **_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(UnreadableExampleError, match="cannot be read as an image") as caught:
        read_rgb(file)
    assert tmp_path.name not in str(caught.value)
    assert str(file.name) not in str(caught.value)
