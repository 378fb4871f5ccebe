"""The files that commands read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from captum_transformer_lrp.cli.errors import UsageError, warn
from captum_transformer_lrp.photos import MAX_PIXELS, instead_of_a_file, opened

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")
TEXT_SUFFIXES = ("txt",)


@dataclass(frozen=True)
class Photo:
    """A picture in a file; the frame is which of them, where one was asked for."""

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
    found = instead_of_a_file(path)
    if found:
        raise UsageError(f"found no {what} file at {path}: it is {found}")


def photos_in(
    files: Sequence[Path], frames: Sequence[int] | None, *, max_pixels: int = MAX_PIXELS
) -> list[Photo]:
    """These frames of some image files; without a number all of them, for None the first.

    Reading files that are damaged fails later, by name.
    """
    if frames is None:
        return [Photo(file) for file in files]
    if frames:
        return [Photo(file, frame) for file in files for frame in frames]
    return [photo for file in files for photo in _all_frames(file, max_pixels)]


def _all_frames(file: Path, max_pixels: int) -> list[Photo]:
    try:
        with opened(file, max_pixels) as image:
            count = getattr(image, "n_frames", 1)
    except ValueError:
        count = 1
    return [Photo(file, frame) for frame in range(count)] if count > 1 else [Photo(file)]


def read_text(path: Path) -> str:
    """A text file in UTF-8.

    Raises:
        ValueError: where the file is no such text, or an empty one.
    """
    found = instead_of_a_file(path)
    if found:
        raise ValueError(f"cannot read {path} as text: it is {found}")
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {path} as text in UTF-8 ({error})") from error
    if not text:
        raise ValueError(f"{path} is empty, expected at least one word")
    return text
