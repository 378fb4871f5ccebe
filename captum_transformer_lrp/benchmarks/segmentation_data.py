"""Photos with masks: ImageNet-Segmentation, an ``index.json`` with files, or VOC's folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

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

IntegerArray: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class SegmentationData:
    """Photos with masks, read one at a time; ``data[3]`` raises for one that is damaged.

    Args:
        name: in which format they are.
        identifiers: the examples' names.
        read: from an example's place to its photo, and to a mask of the photo's size that is 0 at
            the background and :data:`VOID` where it is not scored.
        classes: for each example the model's classes that stand for the object; None if the data
            do not say.
    """

    name: str
    identifiers: Sequence[str]
    read: Callable[[int], tuple[Image.Image, npt.NDArray[Any]]]
    classes: Sequence[tuple[int, ...]] | None = None

    def __getitem__(self, index: int) -> tuple[Image.Image, IntegerArray]:
        """A photo, RGB, with the mask of its object, uint8 (H, W); or an UnreadableExampleError.

        In the mask 1 is object, 0 background, and :data:`VOID` is not scored.
        """
        photo, values = self.read(index)
        if values.shape != (photo.height, photo.width):
            size = (photo.height, photo.width)
            raise UnreadableExampleError(
                f"its mask has shape {values.shape}, expected the photo's {size}"
            )
        mask = np.where(values == VOID, VOID, values != 0).astype(np.uint8)
        if not (mask == 1).any():
            raise UnreadableExampleError("its mask has no object")
        return photo, mask

    def sha256(self, index: int) -> str:
        """Of an example's pixels, mask and classes; of the reason for one that is damaged."""
        try:
            photo, mask = self[index]
        except UnreadableExampleError as error:
            return hashlib.sha256(str(error).encode()).hexdigest()
        classes = None if self.classes is None else self.classes[index]
        parts = (photo.size, photo.tobytes(), mask.tobytes(), classes)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def segmentation_data(path: str | Path) -> SegmentationData:
    """What is there: ``gtsegs_ijcv.mat``, an ``index.json``, or Pascal VOC's folders."""
    path = Path(path)
    if path.is_file():
        return imagenet_segmentation(path)
    if (path / "index.json").is_file():
        return indexed_masks(path)
    if (path / "JPEGImages").is_dir():
        return voc_masks(path)
    if not path.exists():
        raise BenchmarkError(f"found nothing at {path}")
    raise BenchmarkError(
        f"found neither index.json nor JPEGImages in {path}: expected gtsegs_ijcv.mat, a folder "
        "with an index.json, or one with JPEGImages and SegmentationClass"
    )


def imagenet_segmentation(path: Path) -> SegmentationData:
    """``gtsegs_ijcv.mat`` of Guillaumin et al., the paper's ImageNet-Segmentation.

    A MATLAB 7.3 file, which is HDF5.  ``value/img[i, 0]`` refers to photo i as (channel, width,
    height), ``value/gt[i, 0]`` to a reference to its mask as (width, height).  It tells synsets,
    but the paper explains the predicted class, and so does the benchmark.
    """
    h5py = optional("h5py", "h5py", str(path))
    try:
        file: Any = h5py.File(path, "r")
        images, masks = file["value/img"], file["value/gt"]
    except (OSError, KeyError) as error:
        raise BenchmarkError(
            f"cannot read {path} as ImageNet-Segmentation ({error}): expected gtsegs_ijcv.mat, an "
            "HDF5 file with value/img and value/gt"
        ) from error
    if len(images) != len(masks):
        raise BenchmarkError(
            f"{path} has {len(images)} photos and {len(masks)} masks, expected one mask for each "
            "photo"
        )

    def read(index: int) -> tuple[Image.Image, npt.NDArray[Any]]:
        try:
            pixels = np.asarray(file[images[index, 0]]).T
            mask = np.asarray(file[file[masks[index, 0]][0, 0]]).T
            return Image.fromarray(pixels.astype(np.uint8)).convert("RGB"), mask
        except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
            raise UnreadableExampleError(f"cannot be read ({error})") from error

    names = [f"img[{index}]" for index in range(len(images))]
    return SegmentationData("ImageNetSegmentation", names, read)


def indexed_masks(folder: Path) -> SegmentationData:
    """A folder with an ``index.json`` that says which mask is of what.

    It is a list of objects with ``image`` and ``mask``, files in the folder; ``label``; and
    ``imagenet_classes``, the model's classes that mean the label.  A photo may have several masks.
    """
    file = folder / "index.json"
    try:
        entries = [
            (folder / str(one["image"]), str(one["mask"]), tuple(map(int, one["imagenet_classes"])))
            for one in json.loads(file.read_text(encoding="utf-8"))
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(
            f"cannot read {file} ({type(error).__name__}: {error}): expected a list of objects "
            "with image, mask and imagenet_classes"
        ) from error
    if not entries:
        raise BenchmarkError(f"{file} lists no photos")
    photos, masks, classes = zip(*entries, strict=True)
    if not all(classes):
        without = masks[[bool(one) for one in classes].index(False)]
        raise BenchmarkError(f"{file} has no imagenet_classes for {without}")

    def read(index: int) -> tuple[Image.Image, npt.NDArray[Any]]:
        return read_rgb(photos[index]), _read_mask(folder / masks[index]) > 127

    return SegmentationData("IndexedMasks", masks, read, classes)


def voc_masks(folder: Path) -> SegmentationData:
    """Pascal VOC's folders: ``JPEGImages/NAME.jpg`` and ``SegmentationClass/NAME.png``.

    Everything that is not background is the object, as in ImageNet-Segmentation: VOC's twenty
    classes are not the model's.  The border, 255, is not scored.
    ``ImageSets/Segmentation/val.txt`` chooses the photos if it is there.
    """
    found = [folder / name for name in ("SegmentationClass", "SegmentationObject")]
    found = [one for one in found if one.is_dir()]
    if not found:
        raise BenchmarkError(f"found no SegmentationClass or SegmentationObject in {folder}")
    masks, chosen = found[0], folder / "ImageSets" / "Segmentation" / "val.txt"
    files = [file.stem for file in sorted(masks.glob("*.png"))]
    names = chosen.read_text(encoding="utf-8").split() if chosen.is_file() else files
    if not names:
        raise BenchmarkError(f"found no masks (*.png) in {masks}")

    def read(index: int) -> tuple[Image.Image, npt.NDArray[Any]]:
        photo = read_rgb(folder / "JPEGImages" / f"{names[index]}.jpg")
        return photo, _read_mask(masks / f"{names[index]}.png")

    return SegmentationData("VOCMasks", names, read)


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


def resized_mask(mask: IntegerArray, size: Sequence[int]) -> IntegerArray:
    """The nearest pixels of a mask at another size (H, W).

    >>> resized_mask(np.eye(2, dtype=np.uint8), (4, 4))[0].tolist()
    [1, 1, 0, 0]
    """
    image = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(image)
