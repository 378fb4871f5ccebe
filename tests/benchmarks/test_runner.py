"""Runs are shared, stopped, gone on with and repeated without a change of a single digit."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import time
import tracemalloc
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from captum_transformer_lrp.benchmarks import BenchmarkError, Result, run
from captum_transformer_lrp.benchmarks.distributed import own_device
from captum_transformer_lrp.benchmarks.runner import seeded, versions

from .conftest import Dice

FORK = multiprocessing.get_context("fork")  # nothing is imported again


def exact(result: Result) -> dict[str, Any]:
    """Everything but the times, as it is written."""
    return result.as_json()


def wait_for_lines(folder: Path, count: int) -> None:
    for _ in range(1000):
        written = [file.read_text() for file in folder.glob("records-*.jsonl")]
        if sum(text.count("\n") for text in written) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"found {written} after 10 s, expected {count} records")


def start_and_kill(folder: Path, after: int) -> None:
    """A run that is killed once `after` examples are recorded."""
    process = FORK.Process(target=run, args=(Dice(pause=0.02), folder))
    process.start()
    wait_for_lines(folder, after)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def one_of_two(rank: int, port: int, folder: Path) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    result = run(Dice(), folder)
    (folder / f"returned-{rank}.json").write_text(json.dumps(result.as_json()))


def run_two_processes(folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [FORK.Process(target=one_of_two, args=(rank, port, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


def test_a_killed_run_goes_on_and_ends_with_the_same_digits(tmp_path: Path) -> None:
    whole = run(Dice(), tmp_path / "whole")
    start_and_kill(tmp_path / "killed", after=3)
    before = sum(file.read_text().count("\n") for file in (tmp_path / "killed").glob("*.jsonl"))
    assert 3 <= before < 12
    assert exact(run(Dice(), tmp_path / "killed")) == exact(whole)
    assert (tmp_path / "killed/results.json").read_bytes() == (
        tmp_path / "whole/results.json"
    ).read_bytes()


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    run(Dice(), tmp_path)
    before = (tmp_path / "records-0-of-1.jsonl").read_bytes()
    run(Dice(), tmp_path)
    assert (tmp_path / "records-0-of-1.jsonl").read_bytes() == before


def test_a_line_that_a_killed_process_began_is_dropped(tmp_path: Path) -> None:
    whole = run(Dice(), tmp_path)
    file = tmp_path / "records-0-of-1.jsonl"
    text = file.read_text()
    for length in (len(text) - 1, len(text) - 40, 5):
        file.write_text(text[:length])
        assert exact(run(Dice(), tmp_path)) == exact(whole)


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    alone = run(Dice(), tmp_path / "alone")
    run_two_processes(tmp_path / "two")
    shards = sorted(file.name for file in (tmp_path / "two").glob("records-*.jsonl"))
    assert shards == ["records-0-of-2.jsonl", "records-1-of-2.jsonl"]
    for file in ("results.json", "returned-0.json", "returned-1.json"):
        assert json.loads((tmp_path / "two" / file).read_text()) == json.loads(
            (tmp_path / "alone/results.json").read_text()
        )
    assert exact(alone) == json.loads((tmp_path / "two/results.json").read_text())


def test_two_processes_go_on_where_one_was_killed(tmp_path: Path) -> None:
    alone = run(Dice(), tmp_path / "alone")
    start_and_kill(tmp_path / "two", after=2)
    run_two_processes(tmp_path / "two")
    assert exact(alone) == json.loads((tmp_path / "two/results.json").read_text())


def test_an_unfinished_run_can_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="found no run in"):
        run(Dice(), tmp_path / "killed", so_far=True)
    start_and_kill(tmp_path / "killed", after=3)
    before = sorted((file.name, file.read_bytes()) for file in (tmp_path / "killed").iterdir())
    result = run(Dice(), tmp_path / "killed", so_far=True)
    assert result.examples + result.pending == 12
    assert 3 <= result.examples == result.figures[0].count < 12
    assert f"{result.pending} still to do" in result.markdown()
    after = sorted((file.name, file.read_bytes()) for file in (tmp_path / "killed").iterdir())
    assert after == before


@pytest.mark.slow
def test_memory_does_not_grow_with_the_examples(tmp_path: Path) -> None:
    """200 more examples note 20 kB each; the peak grows by their names and little else."""

    class Wordy(Dice):
        def describe(self, example: int) -> dict[str, Any]:
            return {"note": f"{example} " * 5000}

    peaks = []
    for count in (50, 250):
        tracemalloc.start()
        result = run(Wordy(count), tmp_path / str(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert result.examples == count
    written = sum(file.stat().st_size for file in (tmp_path / "250").glob("records-*.jsonl"))
    assert written > 4e6
    assert peaks[1] - peaks[0] < 5e5


def test_the_users_random_numbers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run(Dice(), tmp_path)
    assert torch.equal(torch.rand(2), expected)


def test_another_seed_gives_other_numbers_and_needs_another_folder(tmp_path: Path) -> None:
    first = run(Dice(), tmp_path / "0", seed=0)
    other = run(Dice(), tmp_path / "1", seed=1)
    assert first.figures[0].value != other.figures[0].value
    with pytest.raises(BenchmarkError, match=r"other settings \(seed 0 instead of 1\)"):
        run(Dice(), tmp_path / "0", seed=1)


@pytest.mark.parametrize(
    ("first", "then"), [(4, 8), (3, 7), (8, 4), (5, None), (None, 5), (1, 12), (11, 12)]
)
def test_another_limit_goes_on_in_the_same_folder(
    tmp_path: Path, first: int | None, then: int | None
) -> None:
    run(Dice(limit=first), tmp_path / "both")
    benchmark, alone = Dice(limit=then), Dice(limit=then)
    found = run(benchmark, tmp_path / "both")
    expected = run(alone, tmp_path / "alone")
    assert exact(found) == exact(expected)
    known = set(Dice(limit=first).selected)
    assert sorted(benchmark.loaded) == sorted(set(alone.loaded) - known)
    assert exact(run(Dice(limit=then), tmp_path / "both", so_far=True)) == exact(expected)


@pytest.mark.parametrize("limit", [None, 8])
def test_who_stops_a_run_is_told_how_to_go_on(tmp_path: Path, limit: int | None) -> None:
    count = limit or 12
    with pytest.raises(KeyboardInterrupt, match=f"^2 of {count} done, repeat the command to go on"):
        run(Dice(limit=limit, stopped=2), tmp_path)
    again = Dice(limit=limit)
    assert run(again, tmp_path).examples == count
    assert len(again.loaded) == count - 2


def test_other_examples_need_another_folder(tmp_path: Path) -> None:
    run(Dice(12), tmp_path)
    with pytest.raises(BenchmarkError, match="examples 12 instead of 11; examples_sha256"):
        run(Dice(11), tmp_path)


def test_a_damaged_example_is_named_counted_and_left_out(tmp_path: Path) -> None:
    result = run(Dice(damaged=4), tmp_path)
    assert result.skipped == (("example 4", "the file ends too early"),)
    assert result.examples == 12
    assert {figure.count for figure in result.figures} == {11}
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["skipped"] == [{"id": "example 4", "reason": "the file ends too early"}]
    assert "Skipped: `example 4` (the file ends too early)." in result.markdown()


def test_nothing_but_damaged_examples_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"none of 1 examples could be read; .*example 0"):
        run(Dice(1, damaged=0), tmp_path)


def test_no_examples_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="found no examples"):
        run(Dice(0), tmp_path)


def _garble(lines: list[bytes]) -> list[bytes]:
    return [lines[0], b"{broken}\n", *lines[2:]]


def _other_encoding(lines: list[bytes]) -> list[bytes]:
    return ["".join(line.decode() for line in lines).encode("utf-16")]


def _not_a_number(lines: list[bytes]) -> list[bytes]:
    value = json.loads(lines[4])
    value["methods"]["ours"]["value"] = float("nan")
    return [*lines[:4], json.dumps(value).encode() + b"\n", *lines[5:]]


HARMS: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "no JSON": (_garble, "line 2: the line is damaged"),
    "cut": (lambda lines: [*lines[:-1], lines[-1][:20]], "line 12: the line is not finished"),
    "cut in the middle": (lambda lines: [*lines[:3], lines[3][:9], *lines[4:]], "line 4"),
    "no UTF-8": (lambda lines: [lines[0][:-3] + b"\xff\n", *lines[1:]], "line 1: the line is dam"),
    "UTF-16": (_other_encoding, "line 1: the line is damaged"),
    "a second one": (lambda lines: [*lines, lines[3]], "line 13: a second record of"),
    "of another example": (lambda lines: [lines[0].replace(b"example ", b"photo "), *lines[1:]],
                           "is not 'photo"),
    "NaN": (_not_a_number, "line 5: the line is damaged"),
    "an index beyond": (lambda lines: [b'{"index": 99, "id": "example 99"}\n', *lines], "line 1"),
    "a list": (lambda lines: [b"[]\n", *lines], "line 1"),
    "zeros": (lambda lines: [b"\0" * 512 + b"\n", *lines[1:]], "line 1"),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_record_is_named_and_its_example_run_again(tmp_path: Path, harm: str) -> None:
    whole = run(Dice(), tmp_path)
    file = tmp_path / "records-0-of-1.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    change, message = HARMS[harm]
    file.write_bytes(b"".join(change(lines)))
    found = file.read_bytes().splitlines(keepends=True)
    again = Dice()
    with pytest.warns(UserWarning, match=message) as told:
        assert exact(run(again, tmp_path)) == exact(whole)
    kept = {json.loads(line)["index"] for line in lines if line in found}
    assert sorted(again.loaded) == sorted(set(range(12)) - kept)
    assert all("records-0-of-1.jsonl, line" in str(one.message) for one in told)
    quiet = Dice()
    assert exact(run(quiet, tmp_path)) == exact(whole)
    assert not quiet.loaded


class Weighed(Dice):
    """Whose examples have contents."""

    weights: ClassVar[dict[int, str]] = {}

    def contents(self, index: int) -> str:
        return self.weights.get(index, "light")


def test_an_example_whose_contents_have_changed_is_named_and_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(Weighed(), tmp_path)
    monkeypatch.setitem(Weighed.weights, 7, "heavy")
    again = Weighed()
    with pytest.warns(UserWarning, match="the contents of 'example 7' have changed: run again"):
        run(again, tmp_path)
    assert again.loaded == [7]
    lines = (tmp_path / "records-0-of-1.jsonl").read_text().splitlines()
    assert {json.loads(x)["index"]: json.loads(x)["sha256"] for x in lines} == {
        index: "heavy" if index == 7 else "light" for index in range(12)
    }


def test_damaged_settings_are_told(tmp_path: Path) -> None:
    run(Dice(), tmp_path)
    for text in ("{", "[]", '"x"'):
        (tmp_path / "settings.json").write_text(text)
        with pytest.raises(BenchmarkError, match=r"settings.json is damaged"):
            run(Dice(), tmp_path)


def test_two_runs_in_one_folder_wait_for_each_other(tmp_path: Path) -> None:
    alone = run(Dice(), tmp_path / "alone")
    first = FORK.Process(target=run, args=(Dice(pause=0.02), tmp_path / "both"))
    first.start()
    wait_for_lines(tmp_path / "both", 2)
    second = Dice()
    with pytest.warns(UserWarning, match="another run is writing to .*both: waiting for it"):
        assert exact(run(second, tmp_path / "both")) == exact(alone)
    first.join()
    assert first.exitcode == 0
    assert not second.loaded


@pytest.mark.slow
def test_ten_kills_at_random_times_change_no_byte(tmp_path: Path) -> None:
    run(Dice(40), tmp_path / "whole")
    moments = random.Random(0)
    for _ in range(10):
        process = FORK.Process(target=run, args=(Dice(40, pause=0.01), tmp_path / "killed"))
        process.start()
        time.sleep(moments.uniform(0.0, 0.2))
        process.kill()
        process.join()
    run(Dice(40), tmp_path / "killed")
    for name in ("results.json", "results.csv", "results.md"):
        expected = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "killed" / name).read_bytes() == expected


def test_records_without_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "records-0-of-1.jsonl").write_text("")
    with pytest.raises(BenchmarkError, match=r"without their settings.json"):
        run(Dice(), tmp_path)


def test_a_method_that_fails_is_named_with_its_example(tmp_path: Path) -> None:
    class Failing(Dice):
        def evaluate(self, example: int, method: str) -> dict[str, Any]:
            if (example, method) == (7, "theirs"):
                raise RuntimeError("no such operation")
            return super().evaluate(example, method)

    with pytest.raises(BenchmarkError, match="theirs on example 7: no such operation"):
        run(Failing(), tmp_path)
    assert run(Dice(), tmp_path).pending == 0  # and what was done is kept


def test_random_numbers_of_every_kind_are_seeded_and_given_back() -> None:
    def drawn() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.uniform()), random.random()

    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = drawn()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    inside = []
    for _ in range(2):
        with seeded(0, "photo", "method", torch.device("cpu")):
            inside.append(drawn())
    assert inside[0] == inside[1]
    assert drawn() == expected


@pytest.mark.parametrize(
    ("local_rank", "gpus", "expected"),
    [(None, 2, "cuda"), ("1", 2, "cuda:1"), ("5", 2, "cuda:1"), ("3", 0, "cuda")],
)
def test_processes_take_the_gpus_in_turn(
    local_rank: str | None, gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert own_device("cuda") == expected
    assert own_device("cuda:0") == "cuda:0"


def test_a_checkout_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("captum_transformer_lrp.benchmarks.runner.version", missing)
    assert versions()["captum-transformer-lrp"] == "unknown"
