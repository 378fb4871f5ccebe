"""Runs any benchmark: shares its examples among processes, keeps what is done, and goes on."""

from __future__ import annotations

import hashlib
import inspect
import platform
import random
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, TypeVar

import filelock
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from captum_transformer_lrp.benchmark_options import options_of
from captum_transformer_lrp.benchmarks.distributed import Processes, joined_processes
from captum_transformer_lrp.benchmarks.errors import BenchmarkError, UnreadableExampleError
from captum_transformer_lrp.benchmarks.records import Record, RecordFolder
from captum_transformer_lrp.benchmarks.results import MODEL, Panel, Result, Summary
from captum_transformer_lrp.benchmarks.statistics import ExactMean, MethodMeans
from captum_transformer_lrp.printing import printable

Example = TypeVar("Example")

_PACKAGES = ("captum-transformer-lrp", "torch", "timm", "transformers", "captum", "numpy")


class Benchmark(ABC, Generic[Example]):
    """Examples, what is measured of one of them, and what all measurements add up to.

    Everything that is measured of an example must depend on this example, the method, the settings
    and random numbers alone, which :func:`run` seeds for each: then it does not matter which
    process does it, and when.
    """

    name: str
    methods: Sequence[str]
    selected: Sequence[int] | None = None
    """The places of the examples that are used, where a limit leaves others out."""
    device: Any = "cpu"
    """Where it computes."""

    def settings(self) -> dict[str, Any]:
        """Everything that the records depend on, besides the examples and versions."""
        return {}

    @abstractmethod
    def identifiers(self) -> Sequence[str]:
        """The names of all examples, in a fixed order."""

    def contents(self, index: int) -> str:
        """The SHA-256 of what an example is made of; empty where only its name counts."""
        return ""

    @abstractmethod
    def load(self, index: int) -> Example:
        """Read an example; an UnreadableExampleError leaves a damaged one out."""

    def describe(self, example: Example) -> dict[str, Any]:
        """What to note of an example that is the same for all methods, as JSON."""
        return {}

    @abstractmethod
    def evaluate(self, example: Example, method: str) -> dict[str, Any]:
        """What to note of a method on an example, as JSON: numbers, or numbers by condition."""

    columns: Sequence[str] | None = None
    """The metrics that go into tables, with their conditions; None for all."""
    rows: Sequence[str] = ()
    """What :meth:`values` has beside the methods."""
    panels: Sequence[Panel] = ()
    """The curves."""
    unit = ""
    """Of all values."""

    def values(self, record: Record) -> Mapping[str, Mapping[tuple[str, str], float]]:
        """For each method, numbers by (metric, condition), whose means are the result."""
        return {name: _flat(found) for name, found in record.methods.items()}

    def of_model(self, record: Record) -> Mapping[str, float]:
        """Numbers in per cent that are of no method, such as the accuracy."""
        return {}

    def points(self, record: Record) -> Mapping[str, Mapping[tuple[str, str], float]]:
        """What curves are drawn of, as :meth:`values`."""
        return self.values(record)

    def summarise(self, records: Callable[[], Iterator[Record]]) -> Summary:
        """Figures and curves of all records that are not skipped; here the means of each number.

        They come in no particular order, each time that ``records()`` is called: sum them up with
        :class:`~captum_transformer_lrp.benchmarks.statistics.ExactMean` or in whole numbers.
        """
        names = [*self.methods, *self.rows]
        means, points = (MethodMeans(names, unit=self.unit) for _ in range(2))
        model: dict[str, ExactMean] = {}
        for record in records():
            for metric, value in self.of_model(record).items():
                model.setdefault(metric, ExactMean()).add(value)
            means.add(self.values(record))
            if self.panels:
                points.add(self.points(record))
        at = {(one.method, one.metric, one.condition): one for one in points.figures()}
        curves = [
            panel.curve([at[name, panel.metric, condition] for condition in panel.x])
            for panel in self.panels
            for name in names
        ]
        figures = [mean.figure(MODEL, metric) for metric, mean in model.items()]
        columns = None if self.columns is None else tuple(self.columns)
        return Summary((*figures, *means.figures()), tuple(curves), columns)


def run(
    benchmark: Benchmark[Any],
    output: str | Path,
    *,
    seed: int = 0,
    show_progress: bool = False,
    save: bool = True,
    so_far: bool = False,
) -> Result:
    """Run a benchmark, or what an earlier run of the same settings left to do.

    The earlier run may have had another limit of examples: those that are in both are not run
    again.  Where another run is writing to the folder, this one waits for it.  Records that are
    damaged, and those of examples whose contents have changed, are named by a warning and made
    again.  Under ``torchrun`` the examples are shared among its processes, which may be more or
    fewer than in the earlier run.  The figures are the same to the last digit, on the same kind of
    machine with the same number of threads.

    Args:
        benchmark: the benchmark.
        output: the folder for its records and results; processes must share it.
        seed: of methods that draw random numbers.
        show_progress: whether to show a bar with the remaining time, and damaged examples.
        save: whether to write the result there, too.
        so_far: run nothing and write nothing, only sum up what there is of an unfinished run.

    Raises:
        BenchmarkError: if there are no readable examples, or the folder is of other settings.
        KeyboardInterrupt: where it is stopped; says how much is done.
    """
    folder = record_folder(benchmark, output, seed)
    if so_far:
        if not folder.settings_file.exists():
            raise BenchmarkError(f"found no run in {folder.folder}")
        folder.check()
        return summary_of(benchmark, folder)
    with joined_processes() as processes:
        lock = filelock.FileLock(folder.folder / "run.lock")
        try:
            if processes.rank == 0:
                folder.prepare()
                _acquire(lock)
                folder.prepare()  # what another run may have made of it meanwhile
                folder.write_settings()
                folder.repair(benchmark.contents)
            processes.wait()
            folder.check()
            done = folder.done()
            processes.wait()  # nobody writes before everybody has read
            pending = [index for index in folder.selected if index not in done]
            # Photos are sorted by class, and documents may be by length.  In another order every
            # process has the like to do, and the remaining time is right from the beginning.
            random.Random(seed).shuffle(pending)
            share = pending[processes.rank :: processes.world]
            _run_shard(benchmark, folder, share, processes, seed, show_progress)
            processes.wait()
            result = summary_of(benchmark, folder) if processes.rank == 0 else None
            result = processes.from_first(result)
            if save and processes.rank == 0:
                result.save(folder.folder)
        except KeyboardInterrupt:
            done, count = folder.done(), len(folder.selected)
            raise KeyboardInterrupt(
                f"{len(done)} of {count} done, repeat the command to go on"
            ) from None
        finally:
            lock.release()
    return result


def as_function(kind: type[Benchmark[Any]]) -> Callable[..., Result]:
    """A benchmark as one call: its arguments, and those of :func:`run`."""

    def function(
        *arguments: Any,
        output: str | Path,
        seed: int = 0,
        show_progress: bool = False,
        so_far: bool = False,
        **options: Any,
    ) -> Result:
        benchmark = kind(*arguments, **options)
        return run(benchmark, output, seed=seed, show_progress=show_progress, so_far=so_far)

    own = list(inspect.signature(kind).parameters.values())
    more = list(inspect.signature(function).parameters.values())[1:-1]
    setattr(function, "__signature__", inspect.Signature([*own, *more], return_annotation=Result))  # noqa: B010
    about = [f"    {one.name}: {one.metadata['about']}" for one, _ in options_of(kind)]
    function.__name__ = function.__qualname__ = kind.name.replace("-", "_")
    function.__module__ = kind.__module__
    function.__doc__ = "\n".join(
        [f"Run :class:`{kind.__name__}`; see there, and :func:`run`.", "", "Args:", *about]
    )
    return function


def record_folder(benchmark: Benchmark[Any], output: str | Path, seed: int = 0) -> RecordFolder:
    """The folder of a benchmark's records, with all settings that they depend on."""
    identifiers = benchmark.identifiers()
    if not identifiers:
        raise BenchmarkError("found no examples, expected at least one")
    settings = {
        "benchmark": benchmark.name,
        "methods": list(benchmark.methods),
        **benchmark.settings(),
        "seed": seed,
        "versions": versions(),
    }
    return RecordFolder(Path(output), settings, identifiers, benchmark.selected)


def versions() -> dict[str, str]:
    """The versions of what computes."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # this one, in a checkout that is not installed
            found[package] = "unknown"
    return found


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers, with their names and dtypes.

    >>> weights_digest(nn.Linear(2, 1)) == weights_digest(nn.Linear(2, 1))
    False
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _flat(found: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    return {
        (name, condition): value
        for name, values in found.items()
        for condition, value in (values if isinstance(values, dict) else {"": values}).items()
    }


def _acquire(lock: filelock.BaseFileLock) -> None:
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        folder = Path(lock.lock_file).parent
        warnings.warn(f"another run is writing to {folder}: waiting for it", stacklevel=3)
        lock.acquire(timeout=-1)


def _run_shard(
    benchmark: Benchmark[Any],
    folder: RecordFolder,
    indices: Sequence[int],
    processes: Processes,
    seed: int,
    show_progress: bool,
) -> None:
    if not indices:
        return
    shown = show_progress and processes.rank == 0
    share = f" (process 1 of {processes.world})" if processes.world > 1 else ""
    names, console = benchmark.identifiers(), Console(stderr=True)
    about = f"{benchmark.name}{share}"
    with folder.shard(processes.rank, processes.world) as shard:
        for index in track(indices, about, console=console, disable=not shown):
            record = _record(benchmark, index, names[index], seed)
            shard.write(record.as_line())
            shard.flush()
            if record.skipped is not None and shown:
                reason = printable(f"skipped {record.identifier}: {record.skipped}")
                console.print(reason, markup=False)


def _record(benchmark: Benchmark[Any], index: int, identifier: str, seed: int) -> Record:
    record = Record(index, identifier, sha256=benchmark.contents(index))
    try:
        example = benchmark.load(index)
    except UnreadableExampleError as error:
        return replace(record, skipped=str(error))
    values = benchmark.describe(example)
    methods: dict[str, Mapping[str, Any]] = {}
    seconds: dict[str, float] = {}
    device = torch.device(benchmark.device)
    for method in benchmark.methods:
        began = _clock(device)
        try:
            with seeded(seed, identifier, method, device):
                methods[method] = benchmark.evaluate(example, method)
        except Exception as error:
            raise BenchmarkError(f"{method} on {identifier}: {error}") from error
        seconds[method] = round(_clock(device) - began, 4)
    return replace(record, values=values, methods=methods, seconds=seconds)


@contextmanager
def seeded(*parts: Any) -> Iterator[None]:
    """Seed random numbers by what they are for, and give back the user's state.

    Those of torch, of NumPy (Captum's ``GradientShap`` draws from it) and of Python.  The parts are
    a seed, an example's name, a method: anything with a ``str``; a device comes last.
    """
    *named, device = parts
    text = "\0".join(str(part) for part in named)
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    of_numpy, of_python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)


def _clock(device: torch.device) -> float:
    """Processor time of this process; on a GPU, where the processor waits, the time on the wall."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def summary_of(benchmark: Benchmark[Any], folder: RecordFolder) -> Result:
    """The result of all records that there are, of an unfinished run as well."""

    def used() -> Iterator[Record]:
        return (record for record in folder.records() if record.skipped is None)

    skipped: list[tuple[int, str, str]] = []
    seconds: dict[str, ExactMean] = {method: ExactMean() for method in benchmark.methods}
    count = 0
    for record in folder.records():
        count += 1
        if record.skipped is not None:
            skipped.append((record.index, record.identifier, record.skipped))
        for method, value in record.seconds.items():
            seconds[method].add(value)
    if not count:
        raise BenchmarkError(f"found no records in {folder.folder}")
    if len(skipped) == count:
        _, name, reason = min(skipped)
        raise BenchmarkError(f"none of {count} examples could be read; the first, {name}: {reason}")
    return Result(
        benchmark=benchmark.name,
        settings=folder.settings,
        examples=count,
        pending=len(folder.selected) - count,
        skipped=tuple((name, reason) for _, name, reason in sorted(skipped)),
        summary=benchmark.summarise(used),
        seconds={method: mean.value for method, mean in seconds.items()},
    )
