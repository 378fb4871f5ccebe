"""Photos with masks: ImageNet-Segmentation, an ``index.json`` with files, or VOC's folders."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from captum_transformer_lrp.benchmarks.errors import (
    BenchmarkError,
    UnreadableExampleError,
    optional,
)
from captum_transformer_lrp.benchmarks.images import read_rgb
from captum_transformer_lrp.photos import opened

VOID = 255
"""What a mask has where nobody said whether it is object or background."""

IntegerArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class SegmentedImage:
    """A photo with the mask of its object.

    Args:
        photo: RGB.
        mask: uint8 (H, W) of the photo's size: 1 object, 0 background, :data:`VOID` not scored.
        classes: the model's classes that stand for the object; None if the data do not say.
    """

    photo: Image.Image
    mask: IntegerArray
    classes: tuple[int, ...] | None


class SegmentationData(ABC):
    """Photos with masks, read one at a time."""

    tells_classes = False
    """Whether :attr:`SegmentedImage.classes` are known."""

    @abstractmethod
    def identifiers(self) -> list[str]:
        """The examples' names."""

    @abstractmethod
    def __getitem__(self, index: int) -> SegmentedImage:
        """Read one; raises an UnreadableExampleError for a damaged one."""

    def largest_class(self) -> int:
        """The largest class index that an example has; −1 if the data do not say."""
        return -1

    def sha256(self, index: int) -> str:
        """Of an example's pixels, mask and classes; of the reason for one that is damaged."""
        try:
            one = self[index]
        except UnreadableExampleError as error:
            return hashlib.sha256(str(error).encode()).hexdigest()
        parts = (one.photo.size, one.photo.tobytes(), one.mask.tobytes(), one.classes)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def segmentation_data(path: str | Path) -> SegmentationData:
    """What is there: ``gtsegs_ijcv.mat``, an ``index.json``, or Pascal VOC's folders."""
    path = Path(path)
    if path.is_file():
        return ImageNetSegmentation(path)
    if (path / "index.json").is_file():
        return IndexedMasks(path)
    if (path / "JPEGImages").is_dir():
        return VOCMasks(path)
    if not path.exists():
        raise BenchmarkError(f"found nothing at {path}")
    raise BenchmarkError(
        f"found neither index.json nor JPEGImages in {path}: expected gtsegs_ijcv.mat, a folder "
        "with an index.json, or one with JPEGImages and SegmentationClass"
    )


class ImageNetSegmentation(SegmentationData):
    """``gtsegs_ijcv.mat`` of Guillaumin et al., the paper's ImageNet-Segmentation.

    A MATLAB 7.3 file, which is HDF5.  ``value/img[i, 0]`` refers to photo i as (channel, width,
    height), ``value/gt[i, 0]`` to a reference to its mask as (width, height).  It tells synsets,
    but the paper explains the predicted class, and so does the benchmark.
    """

    def __init__(self, file: Path) -> None:
        h5py = optional("h5py", "h5py", str(file))
        try:
            self._file: Any = h5py.File(file, "r")
            self._images, self._masks = self._file["value/img"], self._file["value/gt"]
        except (OSError, KeyError) as error:
            raise BenchmarkError(
                f"cannot read {file} as ImageNet-Segmentation ({error}): expected gtsegs_ijcv.mat, "
                "an HDF5 file with value/img and value/gt"
            ) from error
        if len(self._images) != len(self._masks):
            raise BenchmarkError(
                f"{file} has {len(self._images)} photos and {len(self._masks)} masks, expected one "
                "mask for each photo"
            )

    def identifiers(self) -> list[str]:
        """Their places in the file."""
        return [f"img[{index}]" for index in range(len(self._images))]

    def __getitem__(self, index: int) -> SegmentedImage:
        """Read one."""
        try:
            pixels = np.asarray(self._file[self._images[index, 0]]).T
            outer = self._file[self._masks[index, 0]]
            mask = np.asarray(self._file[outer[0, 0]]).T
            photo = Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
        except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
            raise UnreadableExampleError(f"cannot be read ({error})") from error
        return SegmentedImage(photo, _checked(mask != 0, mask == VOID, photo), None)


class IndexedMasks(SegmentationData):
    """A folder with an ``index.json`` that says which mask is of what.

    It is a list of objects with ``image`` and ``mask``, files in the folder; ``label``; and
    ``imagenet_classes``, the model's classes that mean the label.
    """

    tells_classes = True

    def __init__(self, folder: Path) -> None:
        self._folder, file = folder, folder / "index.json"
        try:
            self._entries = [
                (str(one["image"]), str(one["mask"]), tuple(map(int, one["imagenet_classes"])))
                for one in json.loads(file.read_text(encoding="utf-8"))
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise BenchmarkError(
                f"cannot read {file} ({type(error).__name__}: {error}): expected a list of objects "
                "with image, mask and imagenet_classes"
            ) from error
        if not self._entries:
            raise BenchmarkError(f"{file} lists no photos")
        if without := [mask for _, mask, classes in self._entries if not classes]:
            raise BenchmarkError(f"{file} has no imagenet_classes for {without[0]}")

    def identifiers(self) -> list[str]:
        """The masks' files: a photo may have several."""
        return [mask for _, mask, _ in self._entries]

    def largest_class(self) -> int:
        """The largest class that any entry lists."""
        return max(max(classes) for _, _, classes in self._entries)

    def __getitem__(self, index: int) -> SegmentedImage:
        """Read one."""
        image, mask, classes = self._entries[index]
        photo = read_rgb(self._folder / image)
        inside = _read_mask(self._folder / mask) > 127
        return SegmentedImage(photo, _checked(inside, None, photo), classes)


class VOCMasks(SegmentationData):
    """Pascal VOC's folders: ``JPEGImages/NAME.jpg`` and ``SegmentationClass/NAME.png``.

    Everything that is not background is the object, as in ImageNet-Segmentation: VOC's twenty
    classes are not the model's.  The border, 255, is not scored.
    ``ImageSets/Segmentation/val.txt`` chooses the photos if it is there.
    """

    def __init__(self, folder: Path) -> None:
        self._photos = folder / "JPEGImages"
        masks = (folder / name for name in ("SegmentationClass", "SegmentationObject"))
        found = next((one for one in masks if one.is_dir()), None)
        if found is None:
            raise BenchmarkError(f"found no SegmentationClass or SegmentationObject in {folder}")
        self._masks = found
        chosen = folder / "ImageSets" / "Segmentation" / "val.txt"
        files = [file.stem for file in sorted(self._masks.glob("*.png"))]
        self._names = chosen.read_text(encoding="utf-8").split() if chosen.is_file() else files
        if not self._names:
            raise BenchmarkError(f"found no masks (*.png) in {self._masks}")

    def identifiers(self) -> list[str]:
        """The photos' names."""
        return list(self._names)

    def __getitem__(self, index: int) -> SegmentedImage:
        """Read one."""
        name = self._names[index]
        photo = read_rgb(self._photos / f"{name}.jpg")
        values = _read_mask(self._masks / f"{name}.png")
        return SegmentedImage(photo, _checked(values != 0, values == VOID, photo), None)


def _read_mask(file: Path) -> npt.NDArray[Any]:
    """A mask's values: grey levels, or the numbers of a palette."""
    try:
        with opened(file) as image:
            if image.mode not in ("P", "L", "1", "LA", "RGB", "RGBA"):  # Pillow would clip others
                raise ValueError(f"its mode is {image.mode}, expected 8 bits or a palette")
            return np.asarray(image if image.mode in ("P", "L", "1") else image.convert("L")) * 1
    except ValueError as error:
        reason = str(error).replace(f"read {file}", "be read")
        raise UnreadableExampleError(f"its mask {reason}") from error


def _checked(
    inside: npt.NDArray[np.bool_], void: npt.NDArray[np.bool_] | None, photo: Image.Image
) -> IntegerArray:
    if inside.shape != (photo.height, photo.width):
        raise UnreadableExampleError(
            f"its mask has shape {inside.shape}, expected the photo's {(photo.height, photo.width)}"
        )
    mask = inside.astype(np.uint8)
    if void is not None:
        mask[void] = VOID
    if not (mask == 1).any():
        raise UnreadableExampleError("its mask has no object")
    return mask


def resized_mask(mask: IntegerArray, size: Sequence[int]) -> IntegerArray:
    """The nearest pixels of a mask at another size (H, W).

    >>> resized_mask(np.eye(2, dtype=np.uint8), (4, 4))[0].tolist()
    [1, 1, 0, 0]
    """
    image = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(image)
