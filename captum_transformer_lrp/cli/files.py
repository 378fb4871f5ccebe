"""The files that commands read."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from captum_transformer_lrp.cli.errors import UsageError, one_sentence, warn

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")
TEXT_SUFFIXES = ("txt",)
MAX_PIXELS = 178_956_970
"""What Pillow refuses, too, unless it is told otherwise: half a gigabyte of colours."""

# Not all that Pillow knows: for PostScript, it runs another program.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


@dataclass(frozen=True)
class Photo:
    """A picture in a file.

    Args:
        path: the file.
        frame: which picture of it, where one was asked for.
    """

    path: Path
    frame: int | None = None

    @property
    def name(self) -> str:
        """The file's name, with the frame.

        >>> Photo(Path("photos/a.gif"), 2).name
        'a.gif-frame-2'
        """
        return self.path.name if self.frame is None else f"{self.path.name}-frame-{self.frame}"

    def __str__(self) -> str:
        return str(self.path) if self.frame is None else f"{self.path}, frame {self.frame}"


def has_suffix(path: Path, suffixes: Sequence[str]) -> bool:
    """Whether a file's name ends in one of these.

    >>> has_suffix(Path("photo.JPG"), IMAGE_SUFFIXES)
    True
    """
    return path.suffix.lower().lstrip(".") in suffixes


def gather(paths: Sequence[Path], suffixes: Sequence[str], what: str) -> list[Path]:
    """The files among some paths, and what has the right endings in the folders among them.

    What is left out of a folder is named on stderr. Links to nothing, pipes and devices with the
    right endings are not left out, so that reading them fails and is told.

    Raises:
        UsageError: for a path that does not exist, or a folder with none of them.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            check_given(path, what)
            found.append(path)
            continue
        entries = sorted(path.iterdir())
        inside = [
            entry for entry in entries if has_suffix(entry, suffixes) and not os.path.isdir(entry)
        ]
        if not inside:
            raise UsageError(
                f"found no {what} files in the folder {path}, expected names that end in "
                f"{', '.join('.' + suffix for suffix in suffixes)}"
            )
        others = [entry.name for entry in entries if entry not in inside]
        if others:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            warn(f"note: left out of {path}: {', '.join(others[:3])}{more}")
        found += inside
    return list(dict.fromkeys(found))


def check_given(path: Path, what: str) -> None:
    """Refuse a path on the command line that is no file."""
    found = _instead_of_a_file(path)
    if found:
        raise UsageError(f"found no {what} file at {path}: it is {found}")


def _instead_of_a_file(path: Path) -> str | None:
    """What is there; nothing for a file. Reading a pipe would wait for ever."""
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


def photos_in(
    files: Sequence[Path], frames: Sequence[int] | None, *, max_pixels: int = MAX_PIXELS
) -> list[Photo]:
    """The pictures in some files.

    Args:
        files: image files; reading those that are damaged fails later, by name.
        frames: which pictures of each file; empty for all, None for the first.
        max_pixels: the most pixels that are read.
    """
    if frames is None:
        return [Photo(file) for file in files]
    if frames:
        return [Photo(file, frame) for file in files for frame in frames]
    return [photo for file in files for photo in _all_frames(file, max_pixels)]


def _all_frames(file: Path, max_pixels: int) -> list[Photo]:
    try:
        with _opened(file, max_pixels) as image:
            count = getattr(image, "n_frames", 1)
    except ValueError:
        count = 1
    return [Photo(file, frame) for frame in range(count)] if count > 1 else [Photo(file)]


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
    with _opened(path, max_pixels) as image:
        # The further pictures in a phone's photo are not for the eye.
        count = getattr(image, "n_frames", 1) if frame is not None or image.format != "MPO" else 1
        if frame is None and count > 1:
            warn(
                f"note: {path} holds {count} pictures, and the first is explained: "
                "--frame N takes another, --frame all takes all"
            )
        if not 0 <= (frame or 0) < count:
            raise ValueError(f"found frame {frame}, expected one of its {count}, 0 to {count - 1}")
        image.seek(frame or 0)
        if image.width * image.height > max_pixels:  # a page of a TIFF has a size of its own
            raise Image.DecompressionBombError
        return _rgb(ImageOps.exif_transpose(image), image)


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """An image file; whatever goes wrong with it is a ValueError that names it."""
    found = _instead_of_a_file(path)
    if found:
        raise ValueError(f"cannot read {path} as an image: it is {found}")
    Image.init()
    before = Image.MAX_IMAGE_PIXELS
    # Pillow warns above its limit and refuses twice as much, in later pictures of a file, too.
    Image.MAX_IMAGE_PIXELS = max_pixels / 2  # type: ignore[assignment]
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
    except Exception as error:  # a damaged file raises whatever its bytes happen to mean
        raise ValueError(f"cannot read {path} as an image ({one_sentence(error)})") from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _rgb(image: Image.Image, source: Image.Image) -> Image.Image:
    """Pillow's own conversion clips what has more than 8 bits."""
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


def check_text(text: str) -> None:
    r"""Refuse a text without words, and one whose bytes were no UTF-8: tokenizers take neither.

    >>> check_text("na\udcefve")
    Traceback (most recent call last):
    ...
    captum_transformer_lrp.cli.errors.UsageError: the text is not in UTF-8 at letter 3, ...
    """
    if not text.strip():
        raise UsageError("found an empty text, expected at least one word")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the text is not in UTF-8 at letter {error.start + 1}, {text[error.start]}: "
            "type it again, or save it in UTF-8 and give the file"
        ) from error


def read_text(path: Path) -> str:
    """A text file in UTF-8.

    Raises:
        ValueError: where the file is no such text, or an empty one.
    """
    found = _instead_of_a_file(path)
    if found:
        raise ValueError(f"cannot read {path} as text: it is {found}")
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {path} as text in UTF-8 ({error})") from error
    if not text:
        raise ValueError(f"{path} is empty, expected at least one word")
    return text
