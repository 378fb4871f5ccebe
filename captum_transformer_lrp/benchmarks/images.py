"""Labelled photos: which files, which classes, and the pixels that the model sees."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from captum_transformer_lrp.benchmark_options import ImageOptions, PhotoOptions
from captum_transformer_lrp.benchmarks.errors import BenchmarkError, UnreadableExampleError
from captum_transformer_lrp.benchmarks.model_benchmark import ModelBenchmark
from captum_transformer_lrp.benchmarks.runner import Example
from captum_transformer_lrp.models import ImageModel
from captum_transformer_lrp.photos import opened, upright

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
_INDEX_FIRST = re.compile(r"(\d+)[_\-. ]")
_SYNSET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class LabelledImage:
    """A photo's name in results, its file, and the index of its true class."""

    identifier: str
    file: Path
    label: int

    def __str__(self) -> str:
        return f"{self.identifier} ({self.label})"


def labelled_images(
    folder: str | Path, class_names: Sequence[str], labels: str | Path | None = None
) -> list[LabelledImage]:
    """Find photos with their classes.

    The classes come from, in this order:

    * ``labels``, a file with a line for each photo, ``photo.jpg 281`` (or a comma or a tab);
    * one folder for each class, as ImageNet and ``torchvision.datasets.ImageFolder`` have them:
      folders that are named by ImageNet's synsets (``n01440764``) have the synsets' classes,
      folders that are named by numbers those classes, and as many folders as the model has
      classes have the classes in alphabetical order;
    * the beginning of the file name: ``0281_tabby.jpg``.

    Args:
        folder: the folder.
        class_names: those of the model, one for each logit.
        labels: the file of labels, if there is one.

    Raises:
        BenchmarkError: for an empty folder, photos without a class, and classes that the model does
            not have.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BenchmarkError(f"found no folder {folder}, expected one with photos")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise BenchmarkError(
            f"the folder {folder} holds no photos, expected files that end in "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    names = [file.relative_to(folder).as_posix() for file in files]
    if labels is not None:
        classes = _from_file(Path(labels), names)
    elif all("/" in name for name in names):
        classes = _from_folders(names, len(class_names))
    else:
        classes = [_from_name(name) for name in names]
    found = [
        LabelledImage(name, file, label)
        for name, file, label in zip(names, files, classes, strict=True)
    ]
    _check_classes(found, len(class_names))
    return found


def _check_classes(data: Sequence[LabelledImage], count: int) -> None:
    for one in data:
        if not 0 <= one.label < count:
            raise BenchmarkError(
                f"{one.identifier} is of class {one.label}, but the model has {count} classes, 0 "
                f"to {count - 1}: the data and the model have different labels"
            )


@dataclass(frozen=True, eq=False)
class ImageBenchmark(ImageOptions, ModelBenchmark[Example]):
    """A benchmark of methods that explain an image classifier."""

    size: tuple[int, int] = field(init=False, repr=False)

    def prepare(self) -> None:
        """Find the size of what the model takes, and say what may be compiled."""
        compiles = None if self.compile is None else (self.classifier, self.compile)
        by_label = {one: replace(of, compiles=compiles) for one, of in self.by_label.items()}
        self.put(by_label=by_label)
        height, width = self.model.preprocess(Image.new("RGB", (64, 64))).shape[-2:]
        self.put(size=(int(height), int(width)))

    def settings(self) -> dict[str, Any]:
        """Everything that the records depend on."""
        about = {"mean": self.model.mean, "std": self.model.std, "input_size": self.size}
        return {**super().settings(), **about}

    def seen(self, photo: Image.Image) -> Tensor:
        """All of a photo as the model sees it, (1, 3, H, W)."""
        return whole_image(photo, self.model, self.size)[None].to(self.device)


@dataclass(frozen=True, eq=False)
class PhotoBenchmark(PhotoOptions, ImageBenchmark[Example]):
    """One of labelled photos: ``data`` is a folder as in :func:`labelled_images`, or the photos."""

    def prepare(self) -> None:
        """Find the photos and their classes."""
        super().prepare()
        self.put(data=photos(self.data, self.model, self.labels))

    def identifiers(self) -> list[str]:
        """The names of the photos, with their classes."""
        return [str(one) for one in self.data]

    def contents(self, index: int) -> str:
        """The photo's, as it is on disk."""
        return file_digest(self.data[index].file)


def file_digest(*files: Path) -> str:
    """SHA-256 of the contents of files; a file that cannot be read counts as empty."""
    digest = hashlib.sha256()
    for file in files:
        try:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        except OSError:
            digest.update(b"missing")
    return digest.hexdigest()


def photos(
    data: str | Path | Sequence[LabelledImage], model: ImageModel, labels: str | Path | None = None
) -> Sequence[LabelledImage]:
    """The photos of a folder, or those that were given."""
    if isinstance(data, (str, Path)):
        return labelled_images(data, model.class_names, labels)
    _check_classes(data, len(model.class_names))
    return data


def _from_file(labels: Path, names: Sequence[str]) -> list[int]:
    if not labels.is_file():
        raise BenchmarkError(f"found no file of labels at {labels}")
    found: dict[str, int] = {}
    text = labels.read_bytes().decode("utf-8")
    delimiter = "\t" if "\t" in text else "," if "," in text else " "
    for number, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), start=1):
        if len(row) > 1 and row[-1].strip().isdecimal():
            found[row[0].strip()] = int(row[-1])
        elif row and number > 1:  # the first may be a heading
            raise BenchmarkError(
                f"{labels}, line {number}: found {delimiter.join(row)!r}, expected a file name and "
                "a class index"
            )
    missing = [name for name in names if name not in found]
    if missing:
        raise BenchmarkError(
            f"{labels} has no class for {len(missing)} of {len(names)} photos, such as "
            f"{missing[0]}: add a line for each"
        )
    return [found[name] for name in names]


def _from_folders(names: Sequence[str], count: int) -> list[int]:
    folders = sorted({name.split("/")[0] for name in names})
    if all(_SYNSET.fullmatch(name) for name in folders) and count == 1000:
        from timm.data import ImageNetInfo

        known = {name: index for index, name in enumerate(ImageNetInfo().label_names())}
        unknown = [name for name in folders if name not in known]
        if unknown:
            raise BenchmarkError(
                f"found a folder {unknown[0]}, which is none of the 1000 classes of ImageNet-1k"
            )
        by_folder = {name: known[name] for name in folders}
    elif all(name.isdecimal() for name in folders):
        by_folder = {name: int(name) for name in folders}
    elif len(folders) == count:
        by_folder = {name: index for index, name in enumerate(folders)}
    else:
        raise BenchmarkError(
            f"found {len(folders)} folders of classes ({', '.join(folders[:3])}, …), but the model "
            f"has {count} classes: name the folders by class index or ImageNet's synsets, or give "
            "a file of labels"
        )
    return [by_folder[name.split("/")[0]] for name in names]


def _from_name(name: str) -> int:
    match = _INDEX_FIRST.match(name.split("/")[-1])
    if match is None:
        raise BenchmarkError(
            f"found no class for {name}: begin its name with the class index (0281_{name}), put "
            "all photos into one folder for each class, or give a file of labels"
        )
    return int(match[1])


def read_rgb(file: str | Path) -> Image.Image:
    """A photo as RGB, upright."""
    try:
        with opened(Path(file)) as image:
            return upright(image)
    except ValueError as error:
        reason = str(error).replace(f"read {file}", "be read")
        raise UnreadableExampleError(reason.replace(", or raise --max-pixels", "")) from error


def whole_image(photo: Image.Image, model: ImageModel, size: tuple[int, int]) -> Tensor:
    """All of a photo at the model's input size, nothing cropped, normalised: (3, H, W)."""
    resized = photo.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8)
    return normalised(pixels.view(*size, 3).permute(2, 0, 1).float() / 255, model)


def normalised(pixels: Tensor, model: ImageModel) -> Tensor:
    """Pixels between 0 and 1, (…, 3, H, W), as the model expects them."""
    mean = pixels.new_tensor(model.mean)[:, None, None]
    std = pixels.new_tensor(model.std)[:, None, None]
    return (pixels - mean) / std
