"""The files that commands write: checked before the work, and never an input; and their models."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, TypeVar

from captum_transformer_lrp.cli.errors import UsageError
from captum_transformer_lrp.cli.files import has_suffix
from captum_transformer_lrp.cli.options import MapFormat
from captum_transformer_lrp.result import Result, identities

if TYPE_CHECKING:
    import torch

    from captum_transformer_lrp.models import ImageModel, LanguageModel, TextModel

Loaded = TypeVar("Loaded", "ImageModel", "LanguageModel", "TextModel")


def ready(loaded: Loaded, device: torch.device | None, checkpoint: Path | None = None) -> Loaded:
    """The model on its device, with what results are to say of its weights.

    `weights_sha256` is of the loaded model's names and numbers, however they were stored.
    """
    from captum_transformer_lrp.benchmarks.runner import weights_digest

    about = {
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "weights_sha256": weights_digest(loaded.model),
    }
    loaded.model.to(device)
    return replace(loaded, about=about)


def maps_beside(output: Path, wanted: MapFormat | None) -> list[Path]:
    """The file of an output's numbers, if they are wanted.

    >>> maps_beside(Path("cat.png"), "npz")
    [PosixPath('cat.npz')]
    """
    return [] if wanted is None else [output.with_suffix(f".{wanted}")]


def save(found: Result, output: Path, maps: MapFormat | None, lang: str = "en") -> None:
    """Write a result, and its numbers beside it if they are wanted."""
    for file in [output, *maps_beside(output, maps)]:
        found.save(file, lang=lang)


def check_output(path: Path, suffixes: Sequence[str], inputs: Iterable[Path | None] = ()) -> None:
    """Refuse an output file before the work is done, rather than after it.

    Raises:
        UsageError: for another ending, for what is no file or one of the inputs under any name,
            and for a place that cannot be written.
    """
    if not has_suffix(path, suffixes):
        raise UsageError(
            f"--output {path} ends in {path.suffix or 'no suffix'!r}, expected one of "
            f"{', '.join('.' + suffix for suffix in suffixes)}"
        )
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder, expected the name of a file")
    if path.exists() and not path.is_file():
        raise UsageError(f"--output {path} is a device or a pipe, expected the name of a file")
    check_no_input([path], inputs)
    _check_writable(path, path.parent)


def check_output_folder(path: Path, inputs: Iterable[Path] = ()) -> None:
    """The same for a folder of outputs, which is made."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output {path} is a file, expected a folder")
    if identities([path]) & identities(list(inputs)):
        raise UsageError(
            f"--output {path} is the folder of the inputs: give another, so that they stay apart"
        )
    _check_writable(path, path)


def planned(
    output: Path | None,
    suffixes: Sequence[str],
    folder_of: Sequence[tuple[Path, str]],
    inputs: Sequence[Path | None],
    maps: MapFormat | None,
) -> tuple[Path, list[Path]]:
    """Where everything is written, checked before the work is done.

    Args:
        output: the file or folder that was asked for, if any.
        suffixes: what a file's name may end in; the first is that of files in a folder.
        folder_of: for a folder, each input's file and the name of what is made of it.
        inputs: files that must stay as they are.
        maps: the format of numbers beside each file.

    Returns:
        The file or folder, and the files: one, or in a folder one for each input.
    """
    if folder_of:
        output = output or Path("explanations")
        check_output_folder(output, [path.parent for path, _ in folder_of])
        files = [output / f"{name}.{suffixes[0]}" for name in output_names(folder_of)]
    else:
        output = output or Path(f"explanation.{suffixes[0]}")
        check_output(output, suffixes, inputs)
        files = [output]
    check_no_input([*files, *(one for file in files for one in maps_beside(file, maps))], inputs)
    return output, files


def check_no_input(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Refuse an output that is an input, also under another name: a link, or another case."""
    taken = identities([one for one in inputs if one is not None])
    for path in outputs:
        if identities([path]) & taken:
            raise UsageError(f"--output {path} is an input, which would be lost: give another name")


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


def output_names(inputs: Sequence[tuple[Path, str]]) -> list[str]:
    """A name for what is made of each input, no two alike, on any file system.

    Args:
        inputs: each one's file, and the name that it should have.

    >>> output_names([(Path("cat/1.png"), "1.png"), (Path("dog/1.png"), "1.png")])
    ['cat-1.png', 'dog-1.png']
    >>> output_names([(Path("a.png"), "a.png"), (Path("A.png"), "A.png")])[0] != "a.png"
    True
    """

    def folded(name: str) -> str:
        return unicodedata.normalize("NFC", name).casefold()

    wanted = Counter(folded(name) for _, name in inputs)
    names: list[str] = []
    taken: set[str] = set()
    for file, name in inputs:
        unique = wanted[folded(name)] == 1
        stem = name if unique else f"{file.absolute().parent.name}-{name}"
        candidate, number = stem, 1
        while folded(candidate) in taken:
            number += 1
            candidate = f"{stem}-{number}"
        taken.add(folded(candidate))
        names.append(candidate)
    return names
