"""Records of examples on disk: one line of JSON for each, written as soon as it is made."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
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
    """

    index: int
    identifier: str
    values: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    skipped: str | None = None

    def as_line(self) -> str:
        r"""The record as a line of JSON.

        Raises:
            ValueError: for NaN and infinity, which no figure may hide.

        >>> Record(0, "cat.jpg", skipped="truncated").as_line()
        '{"index": 0, "id": "cat.jpg", "skipped": "truncated"}\n'
        """
        line: dict[str, Any] = {"index": self.index, "id": self.identifier}
        if self.skipped is not None:
            line["skipped"] = self.skipped
        else:
            line |= {"values": self.values, "methods": self.methods, "seconds": self.seconds}
        return json.dumps(line, allow_nan=False) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Record:
        """The inverse of :meth:`as_line`.

        Raises:
            TypeError: for a member of another type.
            KeyError: for one that is missing.
            ValueError: for what is no JSON.
        """
        found = json.loads(line)
        record = cls(
            index=found["index"],
            identifier=found["id"],
            values=found.get("values", {}),
            methods=found.get("methods", {}),
            seconds=found.get("seconds", {}),
            skipped=found.get("skipped"),
        )
        if not (
            type(record.index) is int  # True is an integer, too
            and isinstance(record.identifier, str)
            and isinstance(record.skipped, str | None)
            and all(isinstance(one, dict) for one in (record.values, record.methods))
            and all(isinstance(one, dict) for one in (record.seconds, *record.methods.values()))
        ):
            raise TypeError("its members have other types than a record's")
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
        self.selected = range(len(identifiers)) if selected is None else selected
        self._identifiers = identifiers
        # As JSON gives it back: tuples are lists.
        self._settings: dict[str, Any] = json.loads(
            json.dumps(
                {
                    **settings,
                    "examples": len(self.selected),
                    "examples_sha256": _digest(identifiers),
                }
            )
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The settings with a fingerprint of the examples' names."""
        return dict(self._settings)

    @property
    def settings_file(self) -> Path:
        """Where the settings are."""
        return self.folder / "settings.json"

    def prepare(self) -> None:
        """Make the folder, or check that it is of the same settings.

        Raises:
            BenchmarkError: for a folder of other settings or of something else.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise BenchmarkError(f"{self.folder} is a file, expected a folder to write results to")
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.settings_file.exists():
            self.check()
            return
        if any(self.folder.glob("records-*.jsonl")):
            raise BenchmarkError(
                f"{self.folder} holds records without their settings.json: choose another folder"
            )
        self.write_settings()

    def write_settings(self) -> None:
        """Write them, with the number of examples of this run."""
        temporary = self.folder / "settings.json.new"
        temporary.write_text(json.dumps(self._settings, indent=1) + "\n", encoding="utf-8")
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
        except (ValueError, RecursionError) as error:
            raise BenchmarkError(f"{self.settings_file} is not valid JSON ({error})") from error
        if not isinstance(found, dict):
            raise BenchmarkError(
                f"{self.settings_file} holds a {type(found).__name__}, expected an object: choose "
                "another output folder"
            )
        names = sorted({*found, *self._settings})
        differing = [name for name in names if found.get(name) != self._settings.get(name)]
        if differing in ([], ["examples"]):
            return
        differing = [
            f"{name} {_short(found.get(name))} instead of {_short(self._settings.get(name))}"
            for name in differing
        ]
        raise BenchmarkError(
            f"{self.folder} holds records made with other settings ({'; '.join(differing)}): "
            "choose another output folder, or remove that one"
        )

    def done(self) -> bytearray:
        """For each example, 1 if there is a record of it."""
        found = bytearray(len(self._identifiers))
        for record in self.records():
            found[record.index] = 1
        return found

    def records(self) -> Iterator[Record]:
        """All records, one at a time, in no particular order.

        The beginning of a line at a file's end is what a killed process left; it is passed over.

        Raises:
            BenchmarkError: for a damaged line, and for two records of the same example.
        """
        seen = bytearray(len(self._identifiers))
        used = frozenset(self.selected)
        for file in sorted(self.folder.glob("records-*.jsonl")):
            # As bytes, so that a line that is no UTF-8 is a damaged line.
            with file.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.endswith(b"\n"):
                        break
                    record = self._parsed(line, file, number)
                    if seen[record.index]:
                        raise BenchmarkError(
                            f"{file}, line {number}: a second record of {record.identifier!r}: "
                            "remove the line"
                        )
                    seen[record.index] = 1
                    if record.index in used:
                        yield record

    def _parsed(self, line: bytes, file: Path, number: int) -> Record:
        try:
            record = Record.from_line(line.decode("utf-8"))
            if self._identifiers[record.index] != record.identifier or record.index < 0:
                raise ValueError(f"example {record.index} is not {record.identifier!r}")
            record.as_line()  # which no NaN survives
        except Exception as error:  # a damaged line raises whatever its bytes happen to mean
            raise BenchmarkError(
                f"{file}, line {number}, is damaged ({error}): remove the line, and the example "
                "will be run again"
            ) from error
        return record

    def shard(self, rank: int, world: int) -> IO[str]:
        """The file that a process appends its records to, without a broken line at its end."""
        file = self.folder / f"records-{rank}-of-{world}.jsonl"
        if file.exists():
            _drop_broken_line(file)
        return file.open("a", encoding="utf-8", newline="\n")


def _drop_broken_line(file: Path) -> None:
    with file.open("rb+") as stream:
        size = stream.seek(0, os.SEEK_END)
        end = size
        while end:
            start = max(0, end - 65536)
            stream.seek(start)
            found = stream.read(end - start).rfind(b"\n")
            if found >= 0:
                stream.truncate(start + found + 1)
                return
            end = start
        stream.truncate(0)


def _digest(identifiers: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for identifier in identifiers:
        digest.update(identifier.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _short(value: Any, most: int = 80) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else text[:most] + "…"
