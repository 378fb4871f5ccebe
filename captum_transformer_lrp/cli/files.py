"""The files that commands read and write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from PIL import Image, ImageOps

from captum_transformer_lrp.cli.errors import UsageError, warn

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")
TEXT_SUFFIXES = ("txt",)
FIGURE_SUFFIXES = ("png", "jpg", "jpeg", "pdf", "svg", "webp")
PAGE_SUFFIXES = ("html", "htm")


def has_suffix(path: Path, suffixes: Sequence[str]) -> bool:
    """Whether a file's name ends in one of these.

    >>> has_suffix(Path("photo.JPG"), IMAGE_SUFFIXES)
    True
    """
    return path.suffix.lower().lstrip(".") in suffixes


def gather(paths: Sequence[Path], suffixes: Sequence[str], what: str) -> list[Path]:
    """The files among some paths, and those with the right endings in the folders among them.

    What is left out of a folder is named on stderr.

    Raises:
        UsageError: for a path that does not exist, or a folder with none of them.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            if not path.is_file():
                raise UsageError(f"found no {what} file at {path}")
            found.append(path)
            continue
        files = sorted(file for file in path.iterdir() if file.is_file())
        inside = [file for file in files if has_suffix(file, suffixes)]
        if not inside:
            raise UsageError(
                f"found no {what} files in the folder {path}, expected names that end in "
                f"{', '.join('.' + suffix for suffix in suffixes)}"
            )
        others = [file.name for file in files if file not in inside]
        if others:
            more = ", …" if len(others) > 3 else ""
            warn(f"note: left out of {path}: {', '.join(others[:3])}{more}")
        found += inside
    return list(dict.fromkeys(found))


def check_output(path: Path, suffixes: Sequence[str], inputs: Sequence[Path] = ()) -> None:
    """Refuse an output file before the work is done, rather than after it."""
    if not has_suffix(path, suffixes):
        raise UsageError(
            f"--output {path} ends in {path.suffix or 'no suffix'!r}, expected one of "
            f"{', '.join('.' + suffix for suffix in suffixes)}"
        )
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder, expected the name of a file")
    if path.resolve() in {one.resolve() for one in inputs}:
        raise UsageError(f"--output {path} is an input, which would be lost: give another name")
    _check_writable(path, path.parent)


def check_output_folder(path: Path, inputs: Sequence[Path] = ()) -> None:
    """The same for a folder of outputs, which is made."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output {path} is a file, expected a folder")
    if path.resolve() in {one.resolve() for one in inputs}:
        raise UsageError(
            f"--output {path} is the folder of the inputs: give another, so that they stay apart"
        )
    _check_writable(path, path)


def _check_writable(output: Path, folder: Path) -> None:
    """Make the folder, and write into it what vanishes again."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"--output {output} cannot be written ({error.strerror}): give another place"
        ) from error


def read_photo(path: Path) -> Image.Image:
    """An image file as RGB, turned upright as its camera says.

    Raises:
        UsageError: where there is no such file.
        ValueError: where the file is no image, or a damaged one.
    """
    if not path.is_file():
        raise UsageError(f"found no image file at {path}")
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path} as an image ({error})") from error


def read_text(path: Path) -> str:
    """A text file in UTF-8.

    Raises:
        ValueError: where the file is no such text, or an empty one.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {path} as text in UTF-8 ({error})") from error
    if not text:
        raise ValueError(f"{path} is empty, expected at least one word")
    return text
