"""Damaged files of a benchmark's folder are read, or refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from captum_transformer_lrp.benchmarks.errors import BenchmarkError
from captum_transformer_lrp.benchmarks.records import Record, RecordFolder
from tests.fuzz.mutants import DURATIONS, fuzz, read_or_refused

RECORDS = [
    Record(0, "a.jpg", {"label": 3}, {"lrp": {"auc": [0.5, 1.0]}}, {"lrp": 0.25}),
    Record(1, "b.jpg", skipped="truncated"),
    Record(2, "naïve \u202e.jpg", {}, {"lrp": {}}, {}),
]


def folder_at(path: Path) -> RecordFolder:
    return RecordFolder(path, {"seed": 0}, [record.identifier for record in RECORDS])


def check(data: bytes, path: Path, name: str) -> None:
    (path / name).write_bytes(data)
    folder = folder_at(path)
    with read_or_refused(BenchmarkError, path):
        folder.prepare()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a line is run again
            folder.repair(lambda index: "")
        folder.done()
        for record in folder.records():
            assert record.as_line()
        with folder.shard(0, 1):
            pass


@DURATIONS
def test_a_damaged_record_file_is_read_or_refused_by_name(tmp_path: Path, seconds: float) -> None:
    folder_at(tmp_path).write_settings()
    settings = folder_at(tmp_path).settings_file.read_bytes()
    lines = "".join(record.as_line() for record in RECORDS).encode()
    fuzz(lambda data: check(data, tmp_path, "records-0-of-1.jsonl"), [lines], seconds * 3 / 4)
    check(lines, tmp_path, "records-0-of-1.jsonl")
    fuzz(lambda data: check(data, tmp_path, "settings.json"), [settings], seconds / 4)


@pytest.mark.parametrize(
    "line",
    [
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b'{"index": 1e999, "id": "a.jpg"}',
        b'{"index": true, "id": "b.jpg"}',
        b'{"index": 0, "id": "a.jpg", "values": {"auc": NaN}}',
        b'{"index": 0, "id": "a.jpg", "values": {"auc": 1e999}}',
        b'{"index": 0, "id": "a.jpg", "methods": []}',
        b'{"index": 0, "id": "a.jpg", "methods": {"lrp": 1}}',
        b'{"index": 0, "id": "a.jpg", "skipped": []}',
    ],
)
def test_a_damaged_line_is_named_with_its_number_and_taken_out(tmp_path: Path, line: bytes) -> None:
    folder = folder_at(tmp_path)
    folder.prepare()
    good = RECORDS[1].as_line().encode()
    (tmp_path / "records-0-of-1.jsonl").write_bytes(good + line + b"\n")
    with pytest.warns(UserWarning, match=r"records-0-of-1\.jsonl, line 2: the line is damaged"):
        folder.repair(lambda index: "")
    assert (tmp_path / "records-0-of-1.jsonl").read_bytes() == good
    # What a killed process left, half a letter at its end, is taken out, too.
    (tmp_path / "records-0-of-1.jsonl").write_bytes(good + line)
    assert [record.index for record in folder.records()] == [1]
    with pytest.warns(UserWarning, match=r"line 2: the line is not finished: run again"):
        folder.repair(lambda index: "")
    assert (tmp_path / "records-0-of-1.jsonl").read_bytes() == good


@pytest.mark.parametrize("content", [b"\xff", b"[" * 100_000, b"[]", b"1", b"null"])
def test_damaged_settings_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(BenchmarkError, match=r"settings\.json is damaged"):
        folder_at(tmp_path).prepare()
