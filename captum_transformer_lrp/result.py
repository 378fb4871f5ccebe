"""What every result can do: a notebook shows it, and a file holds it, whole or not at all."""

from __future__ import annotations

import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_transformer_lrp.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from captum_transformer_lrp.visualization import Section

FIGURE_SUFFIXES = ("png", "jpg", "jpeg", "pdf", "svg", "webp")
PAGE_SUFFIXES = ("html", "htm")
NUMBER_SUFFIXES = ("json", "npz")


class Result(ABC):
    """An explanation that can be shown and written.

    Attributes:
        about: what computed it: model, methods, options and versions, as far as they are known.
        source: the file that was explained; no result is written over it.
    """

    about: Mapping[str, Any] = {}
    source: Path | None = None

    def section(self, title: str = "") -> Section:
        """Itself under a heading, for `visualization.report_html`."""
        # Methods do not know pictures, so those of what they return are drawn by somebody else.
        from captum_transformer_lrp.visualization.explanation import section_of

        return section_of(self, title)

    def figure(self) -> Figure:
        """Itself as a figure of matplotlib."""
        return self.section().pictures[0].figure

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """What `to_json` writes, as dictionaries, lists, texts and numbers."""

    @abstractmethod
    def to_numpy(self) -> dict[str, Any]:
        """Its numbers as arrays, by name."""

    def provenance(self) -> dict[str, Any]:
        """What stands beside the numbers in files; empty where nothing is known."""
        return dict(self.about)

    def to_json(self) -> str:
        """Its numbers and what they are of, as JSON; infinity, which JSON lacks, is null."""
        return json.dumps(without_nan(self.as_dict()))

    def to_html(self, *, lang: str = "en") -> str:
        """A page that needs no other file; everything from outside is escaped.

        Args:
            lang: the language of the texts as a BCP 47 tag.
        """
        from captum_transformer_lrp.visualization import report_html

        footer = as_footer(self.about)
        return report_html([self.section()], title="Explanation", lang=lang, footer=footer)

    def save(self, path: str | Path, *, lang: str = "en") -> None:
        """Write it in the format that the name ends in.

        The file is written whole or not at all. An older file of that name is replaced.

        Args:
            path: ends in ``.html`` (a page), ``.png``, ``.jpg``, ``.pdf``, ``.svg`` or ``.webp``
                (a figure), ``.json`` or ``.npz`` (the numbers; ``numpy.load`` needs no pickle).
            lang: the language of a page.

        Raises:
            ArgumentError: for another ending, what is no file, and the file that was explained.
            OSError: where the file cannot be written.
        """
        path = Path(path)
        if self.source is not None and identities([path]) & identities([self.source]):
            raise ArgumentError(f"{path} is the file that was explained: give another name")
        if path.exists() and not path.is_file():
            raise ArgumentError(f"{path} is no file: give the name of a file")
        suffix = path.suffix.lower().lstrip(".")
        if suffix in PAGE_SUFFIXES:
            write_whole(path, self.to_html(lang=lang))
        elif suffix in FIGURE_SUFFIXES:
            write_figure(path, self.figure())
        elif suffix == "json":
            write_whole(path, self.to_json() + "\n")
        elif suffix == "npz":
            file = io.BytesIO()
            about = self.provenance()
            contents = {"provenance": np.array(json.dumps(about)), **self.to_numpy()}
            np.savez_compressed(file, **(contents if about else self.to_numpy()))
            write_whole(path, file.getvalue())
        else:
            known = (*PAGE_SUFFIXES, *FIGURE_SUFFIXES, *NUMBER_SUFFIXES)
            raise ArgumentError(
                f"{path} ends in {path.suffix or 'no suffix'!r}, expected one of "
                f"{', '.join('.' + one for one in known)}"
            )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from captum_transformer_lrp.visualization.page import render

        return render("fragment.html.jinja", section=self.section())


def without_nan(value: Any) -> Any:
    """JSON has neither NaN nor infinity: they are null."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def as_footer(*found: Mapping[str, Any]) -> dict[str, str]:
    """What computed something, of one model or of several, for the end of a page.

    >>> as_footer({"model": "a", "checkpoint": None, "options": {"device": "cpu"}})
    {'model': 'a', 'options': 'device cpu'}
    """
    footer: dict[str, str] = {}
    for one in found:
        for name, value in one.items():
            if value is None:
                continue
            label, text = name.replace("_", " "), _listed(value)
            if text not in footer.get(label, "").split("; "):
                footer[label] = f"{footer[label]}; {text}" if label in footer else text
    return footer


def _listed(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_listed(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def identities(paths: list[Path]) -> set[tuple[int, int]]:
    """What the file system knows files by, whatever their names; of those that exist."""
    found = set()
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue
        found.add((status.st_dev, status.st_ino))
    return found


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all: beside its place first, then into it.

    Raises:
        OSError: names the file; what was there before is still there.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    target = Path(os.path.realpath(path))  # a link stays a link
    temporary = None
    try:
        with NamedTemporaryFile(
            dir=target.parent, prefix=".", suffix=".part", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(_mode(target))
        temporary.replace(target)
    except OSError as error:
        raise OSError(
            f"cannot write {path} ({error.strerror}): make room, or give another place"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _mode(target: Path) -> int:
    """The permissions that `open` would give or leave; those of a temporary file are private."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure whole or not at all, in the format that its name ends in."""
    file = io.BytesIO()
    figure.savefig(file, format=path.suffix.lower().lstrip("."), dpi=150)
    write_whole(path, file.getvalue())
