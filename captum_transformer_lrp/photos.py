"""Photos: how they are read, and which part of them a model sees."""

from __future__ import annotations

import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from captum_transformer_lrp.hub import as_address
from captum_transformer_lrp.printing import one_sentence

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 178_956_970
"""What Pillow refuses, too, unless it is told otherwise: half a gigabyte of colours."""

# Not all that Pillow knows: for PostScript, it runs another program.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the photo, counted from its upper left corner."""

# How far the preprocessing may be from a plain crop and resize, as a share of the photo's side.
_TOLERANCE = 0.03


def instead_of_a_file(path: Path) -> str | None:
    """What is there; nothing for a file. Reading a pipe would wait for ever."""
    if address := as_address(path):
        return f"the address {address}; download it first, and give the file"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            return f"a link that leads nowhere ({error.strerror})"
        return f"not there ({error.strerror})"
    if stat.S_ISREG(mode):
        return None
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


@contextmanager
def opened(path: Path, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """An image file; whatever goes wrong with it is a ValueError that names it."""
    found = instead_of_a_file(path)
    if found:
        raise ValueError(f"cannot read {path} as an image: it is {found}")
    Image.init()
    before = Image.MAX_IMAGE_PIXELS
    # Pillow warns above its limit and refuses twice as much, in later pictures of a file, too.
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=[one for one in _FORMATS if one in Image.OPEN]) as image:
                yield image
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"cannot read {path} as an image: it has more than {max_pixels} pixels: make it "
            "smaller, or raise --max-pixels"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot read {path} as an image: its format is unknown") from error
    except Exception as error:  # a damaged file raises whatever its bytes happen to mean
        reason = error.strerror if isinstance(error, OSError) and error.filename else None
        raise ValueError(
            f"cannot read {path} as an image ({reason or one_sentence(error)})"
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def upright(source: Image.Image) -> Image.Image:
    """A picture as RGB with 8 bits each, turned as its camera says.

    Pillow's own conversion clips what has more bits: such numbers are scaled by their whole range.

    Raises:
        ValueError: for numbers of an unknown range, and for a picture without pixels.
    """
    if not source.width * source.height:
        raise ValueError("it has no pixels")
    image = ImageOps.exif_transpose(source)
    if image.mode == "F":
        whole = 1.0
    elif image.mode.startswith("I;16") or (image.mode == "I" and source.format in ("PNG", "PPM")):
        bits = getattr(source, "tag_v2", {}).get(258, (16,))[0]  # of a TIFF, 12 perhaps
        whole = 2.0**bits - 1
    elif image.mode == "I":
        raise ValueError("it holds 32-bit integers of an unknown range: save it with 8 or 16 bits")
    else:
        return image.convert("RGB")
    values = np.asarray(image, dtype=np.float64)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= whole):
        raise ValueError(
            f"its numbers reach from {low:.6g} to {high:.6g}, expected 0 to {whole:.6g}: scale them"
        )
    return Image.fromarray((values / whole * 255).round().astype(np.uint8)).convert("RGB")


def read_photo(
    path: Path, *, frame: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """An image file as RGB with 8 bits each, turned upright as its camera says.

    Numbers of 16 bits and floats are scaled by their whole range.

    Args:
        path: the file.
        frame: which picture of a GIF or TIFF; by default the first, and that it has more is told.
        max_pixels: the most pixels that are read.

    Raises:
        ValueError: where the file is no image, a damaged or too large one, or one whose numbers
            have an unknown range.
    """
    with opened(path, max_pixels) as image:
        # The further pictures in a phone's photo are not for the eye.
        count = getattr(image, "n_frames", 1) if frame is not None or image.format != "MPO" else 1
        if frame is None and count > 1:
            warnings.warn(
                f"{path} holds {count} pictures, and the first is explained: "
                "--frame N takes another, --frame all takes all",
                stacklevel=2,
            )
        if not 0 <= (frame or 0) < count:
            raise ValueError(f"found frame {frame}, expected one of its {count}, 0 to {count - 1}")
        image.seek(frame or 0)
        if image.width * image.height > max_pixels:  # a page of a TIFF has a size of its own
            raise Image.DecompressionBombError
        return upright(image)


def seen_part(see: Callable[[Image.Image], Tensor], size: tuple[int, int]) -> Box | None:
    """The part of a photo that is left by a model's preprocessing.

    It is found by preprocessing a picture whose red says how far right a pixel is, and whose green
    says how far down: no library has to tell how it crops.

    Args:
        see: from a photo to what the model sees, (3, H, W), 0 to 1.
        size: the photo's width and height.

    Returns:
        None where the preprocessing is not a crop and a resize.

    Example:
        >>> import torch
        >>> def right_half(photo):
        ...     cropped = photo.crop((photo.width // 2, 0, photo.width, photo.height))
        ...     return torch.from_numpy(np.asarray(cropped.resize((8, 8))) / 255).movedim(-1, 0)
        >>> [round(side) for side in seen_part(right_half, (100, 50))]
        [50, 0, 100, 50]
    """
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = 255 * (np.arange(width) + 0.5) / width
    picture[..., 1] = (255 * (np.arange(height) + 0.5) / height)[:, None]
    # Half a step of 8 bits, which rounding down takes away.
    seen = see(Image.fromarray(picture)).double().cpu().numpy() + 0.5 / 255
    across = _line(seen[0].mean(0), seen[0].mean(0) - seen[0])
    down = _line(seen[1].mean(1), seen[1].mean(1)[:, None] - seen[1])
    if across is None or down is None:
        return None
    (left, right), (top, bottom) = np.clip(across, 0, 1) * width, np.clip(down, 0, 1) * height
    return float(left), float(top), float(right), float(bottom)


def _line(
    positions: npt.NDArray[np.float64], deviations: npt.NDArray[np.float64]
) -> tuple[float, float] | None:
    """Where a side of what is seen begins and ends, if positions lie on a straight line."""
    centres = np.arange(len(positions)) + 0.5
    slope, start = np.polyfit(centres, positions, 1)
    misfit = np.abs(start + slope * centres - positions).max()
    if max(misfit, np.abs(deviations).max()) > _TOLERANCE or slope <= 0:
        return None
    return start, start + slope * len(positions)
