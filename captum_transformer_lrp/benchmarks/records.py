"""Records of examples on disk: one line of JSON for each, written as soon as it is made."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from captum_transformer_lrp.benchmarks.errors import BenchmarkError


@dataclass(frozen=True)
class Record:
    """What was found out about one example.

    Args:
        index: its place in the data.
        identifier: its name, such as a file name.
        values: what is the same for all methods.
        methods: for each method, what the benchmark notes of it.
        seconds: for each method, the time that the example took.
        skipped: why the example could not be read; None if it could.
        sha256: of the example's contents; empty where only its name is known.
    """

    index: int
    identifier: str
    values: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    skipped: str | None = None
    sha256: str = ""

    def as_line(self) -> str:
        r"""The record as a line of JSON, without NaN and infinity, which no figure may hide.

        >>> Record(0, "cat.jpg", skipped="truncated").as_line()
        '{"index": 0, "id": "cat.jpg", "skipped": "truncated"}\n'
        """
        line: dict[str, Any] = {"index": self.index, "id": self.identifier}
        if self.skipped is not None:
            line["skipped"] = self.skipped
        else:
            line |= {"values": self.values, "methods": self.methods, "seconds": self.seconds}
        if self.sha256:
            line["sha256"] = self.sha256
        return json.dumps(line, allow_nan=False) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Record:
        """The inverse of :meth:`as_line`; raises whatever a damaged line happens to mean."""
        found = json.loads(line)
        names = ("values", "methods", "seconds", "skipped", "sha256")
        given = {name: found[name] for name in names if name in found}
        record = cls(found["index"], found["id"], **given)
        mappings = (record.values, record.methods, record.seconds, *record.methods.values())
        if not (
            type(record.index) is int  # True is an integer, too
            and record.index >= 0
            and isinstance(record.identifier, str)
            and isinstance(record.skipped, str | None)
            and isinstance(record.sha256, str)
            and all(isinstance(one, dict) for one in mappings)
        ):
            raise TypeError("its members have other types than a record's")
        record.as_line()  # which no NaN survives
        return record


class RecordFolder:
    """The folder of a run, with its settings and one file of records for each process.

    Args:
        folder: the folder; it need not exist yet.
        settings: everything that the records depend on.  A folder holds records of one setting.
        identifiers: the names of all examples, in their order.
        selected: the places of those that are used; None for all.  Records of others are kept, and
            passed over.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        identifiers: Sequence[str],
        selected: Sequence[int] | None = None,
    ) -> None:
        self.folder = folder
        self.settings_file = folder / "settings.json"
        self.selected = range(len(identifiers)) if selected is None else selected
        self._identifiers = identifiers
        names = b"".join(name.encode("utf-8", "surrogatepass") + b"\0" for name in identifiers)
        about = {
            "examples": len(self.selected),
            "examples_sha256": hashlib.sha256(names).hexdigest(),
        }
        # As JSON gives it back: tuples are lists.
        self.settings: dict[str, Any] = json.loads(json.dumps({**settings, **about}))

    def prepare(self) -> None:
        """Make the folder, or raise for one of other settings or of something else."""
        if self.folder.exists() and not self.folder.is_dir():
            raise BenchmarkError(f"{self.folder} is a file, expected a folder to write results to")
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.settings_file.exists():
            self.check()
        elif self._files():
            raise BenchmarkError(
                f"{self.folder} holds records without their settings.json: choose another folder"
            )

    def write_settings(self) -> None:
        """Write them, with the number of examples of this run."""
        temporary = self.folder / "settings.json.new"
        temporary.write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.settings_file)

    def check(self) -> None:
        """Raise unless the folder is of the same settings, whatever the limit of examples."""
        if not self.settings_file.exists():
            raise BenchmarkError(
                f"found no {self.settings_file}, which the first process wrote: all processes need "
                "an output folder that they share"
            )
        try:
            found = json.loads(self.settings_file.read_text(encoding="utf-8"))
            names = sorted({*found.keys(), *self.settings})
        except (ValueError, RecursionError, AttributeError) as error:
            raise BenchmarkError(
                f"{self.settings_file} is damaged ({error}): choose another output folder"
            ) from error
        differing = [name for name in names if found.get(name) != self.settings.get(name)]
        if differing not in ([], ["examples"]):
            shown = "; ".join(
                f"{name} {_short(found.get(name))} instead of {_short(self.settings.get(name))}"
                for name in differing
            )
            raise BenchmarkError(
                f"{self.folder} holds records made with other settings ({shown}): choose another "
                "output folder, or remove that one"
            )

    def done(self) -> set[int]:
        """The examples that there is a record of."""
        return {record.index for record in self.records()}

    def records(self) -> Iterator[Record]:
        """All sound records, one at a time, in no particular order."""
        used, seen = frozenset(self.selected), set[int]()
        for file in self._files():
            for _, found in self._lines(file, seen, lambda index: None):
                if isinstance(found, Record) and found.index in used:
                    yield found

    def repair(self, contents: Callable[[int], str]) -> None:
        """Take out what is no record of an example as it is, so that the example is run again.

        Such are damaged lines, unfinished ones, those in another encoding, second records of an
        example, and records of contents that have changed since.  Each is named by a warning.
        ``contents`` gives the SHA-256 of an example's contents, by its index.
        """
        seen: set[int] = set()
        for file in self._files():
            bad = set()
            for number, found in self._lines(file, seen, contents):
                if isinstance(found, str):
                    warnings.warn(f"{file}, line {number}: {found}: run again", stacklevel=3)
                    bad.add(number)
            if bad:
                temporary = file.with_suffix(".new")
                with file.open("rb") as old, temporary.open("wb") as new:
                    new.writelines(line for n, line in enumerate(old, start=1) if n not in bad)
                os.replace(temporary, file)

    def shard(self, rank: int, world: int) -> IO[str]:
        """The file that a process appends its records to."""
        file = self.folder / f"records-{rank}-of-{world}.jsonl"
        return file.open("a", encoding="utf-8", newline="\n")

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("records-*.jsonl"))

    def _lines(
        self, file: Path, seen: set[int], contents: Callable[[int], str | None]
    ) -> Iterator[tuple[int, Record | str]]:
        """Each line's number with its record, or what is wrong with the line."""
        with file.open("rb") as lines:  # as bytes: what is no UTF-8 is a damaged line
            for number, line in enumerate(lines, start=1):
                found = self._parsed(line)
                if isinstance(found, Record):
                    now = contents(found.index)
                    if found.index in seen:
                        found = f"a second record of {found.identifier!r}"
                    elif now is not None and now != found.sha256:
                        found = f"the contents of {found.identifier!r} have changed"
                    else:
                        seen.add(found.index)
                yield number, found

    def _parsed(self, line: bytes) -> Record | str:
        if not line.endswith(b"\n"):
            return "the line is not finished"
        try:
            record = Record.from_line(line.decode("utf-8"))
            if self._identifiers[record.index] != record.identifier:
                raise ValueError(f"example {record.index} is not {record.identifier!r}")
        except Exception as error:  # a damaged line raises whatever its bytes happen to mean
            return f"the line is damaged ({error})"
        return record


def _short(value: Any, most: int = 80) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else text[:most] + "…"
