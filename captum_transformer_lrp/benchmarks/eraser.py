"""Documents with human rationales, in the format of ERASER.

A folder holds `docs/`, one text of whitespace-separated tokens for each document, and
`train.jsonl`, `val.jsonl` and `test.jsonl`, one annotation a line: the document, its class, and the
spans of tokens that people marked as evidence for the class.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captum_transformer_lrp.benchmarks.errors import UnreadableExampleError


class AnnotationError(UnreadableExampleError):
    """An annotation, or the document that it is about, that cannot be used as it is."""


@dataclass(frozen=True)
class AnnotatedDocument:
    """A document with its class, its tokens, and the positions of those that people marked."""

    name: str
    label: str
    tokens: tuple[str, ...]
    rationale: tuple[int, ...]


class EraserDocuments:
    """The annotated documents of one split: ``"train"``, ``"val"`` or ``"test"``.

    An item that cannot be used raises an :class:`AnnotationError` that names it; the others can be
    read all the same.

    Raises:
        FileNotFoundError: where the folder, `docs/` or the split's file is missing.
        ValueError: where the file has no annotation.

    Reference:
        Jay DeYoung et al., *ERASER: A Benchmark to Evaluate Rationalized NLP Models*, ACL 2020.
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        self.folder = Path(folder)
        self.split = split
        self.file = self.folder / f"{split}.jsonl"
        if not self.folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
        if not (self.folder / "docs").is_dir():
            raise FileNotFoundError(
                f"{folder} has no folder docs, expected a corpus in the format of ERASER: docs/ "
                "and train.jsonl, val.jsonl, test.jsonl"
            )
        if not self.file.is_file():
            found = ", ".join(sorted(each.stem for each in self.folder.glob("*.jsonl"))) or "none"
            raise FileNotFoundError(f"there is no {self.file}; the splits there are: {found}")
        self._lines = [line for line in self.file.read_bytes().split(b"\n") if line.strip()]
        if not self._lines:
            raise ValueError(f"{self.file} is empty, expected one annotation a line")

    def __len__(self) -> int:
        """The number of annotations, unusable ones included."""
        return len(self._lines)

    def __getitem__(self, index: int) -> AnnotatedDocument:
        """The document of an annotation, in the order of the file."""
        where = f"{self.file.name}, annotation {range(len(self))[index] + 1}"
        try:
            annotation = json.loads(self._lines[index])
        except ValueError as error:  # UnicodeDecodeError is one, too
            raise AnnotationError(f"{where}: the line is not valid JSON ({error})") from error
        found = type(annotation).__name__
        _expect(isinstance(annotation, dict), f"{where}: found a {found}, expected an object")
        name = _text(annotation, "annotation_id", where)
        where = f"{name} in {self.file.name}"
        groups = annotation.get("evidences")
        _expect(
            isinstance(groups, list) and all(isinstance(group, list) for group in groups),
            f"{where}: expected evidences to be a list of lists of spans",
        )
        # ERASER groups those that only together are evidence.
        spans = [span for group in groups for span in group]
        for span in spans:
            found = f"{where}: found the evidence {span!r}, expected an object"
            _expect(isinstance(span, dict), found)
        names = list(dict.fromkeys(span.get("docid") for span in spans))
        names = names or list(annotation.get("docids") or []) or [name]
        _expect(
            len(names) == 1 and isinstance(names[0], str),
            f"{where}: the evidence is in {names}, expected the name of one document",
        )
        tokens = self._tokens(names[0], where)
        marked = {position for span in spans for position in _span(span, tokens, where)}
        label = _text(annotation, "classification", where)
        return AnnotatedDocument(name, label, tokens, tuple(sorted(marked)))

    def identifiers(self) -> list[str]:
        """The annotations' names, in the order of the file; "line 7" for one that has none."""
        return [name for name, _ in self._overview()]

    def labels(self) -> list[str]:
        """The classes that the annotations have, sorted."""
        return sorted({label for _, label in self._overview() if label})

    def sha256(self) -> str:
        """A fingerprint of the split's file, as hexadecimal digits."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    def _overview(self) -> Iterator[tuple[str, str]]:
        """Name and class of each annotation, as far as they can be read."""
        for number, line in enumerate(self._lines, start=1):
            try:
                annotation = json.loads(line)
                name, label = annotation["annotation_id"], annotation["classification"]
            except (ValueError, KeyError, TypeError):
                name = label = ""
            yield str(name or f"line {number}"), str(label or "")

    def _tokens(self, document: str, where: str) -> tuple[str, ...]:
        # What a data file names is read from its own folder only.
        alone = Path(document).name == document and document not in (".", "..")
        _expect(alone, f"{where}: found document {document!r}, expected a file's name")
        place = f"the document docs/{document}"
        try:
            tokens = tuple((self.folder / "docs" / document).read_text(encoding="utf-8").split())
        except UnicodeDecodeError as error:
            raise AnnotationError(f"{where}: {place} is not UTF-8 (byte {error.start})") from error
        except OSError as error:
            raise AnnotationError(f"{where}: cannot read {place} ({error.strerror})") from error
        _expect(tokens, f"{where}: {place} is empty")
        return tokens


def _expect(holds: object, otherwise: str) -> None:
    if not holds:
        raise AnnotationError(otherwise)


def _text(annotation: Mapping[str, Any], key: str, where: str) -> str:
    value = annotation.get(key)
    _expect(value and isinstance(value, str), f"{where}: found {key} {value!r}, expected a text")
    return str(value)


def _span(span: Mapping[str, Any], tokens: Sequence[str], where: str) -> range:
    """The tokens of one piece of evidence; the end is exclusive, and a span may be empty."""
    start, end, text = span.get("start_token"), span.get("end_token"), span.get("text")
    where = f"{where}: evidence from token {start!r} to {end!r}"
    if type(start) is not int or type(end) is not int:
        raise AnnotationError(f"{where}, expected two integers")
    inside = 0 <= start <= end <= len(tokens)
    _expect(inside, f"{where}, outside of the document's {len(tokens)} tokens")
    found = " ".join(tokens[start:end])
    _expect(
        not isinstance(text, str) or text.split() == found.split(),
        f"{where} is {_short(str(text))!r}, but these tokens of the document are {_short(found)!r}",
    )
    return range(start, end)


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
