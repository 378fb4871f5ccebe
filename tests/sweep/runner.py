"""One process for each model, so that none can take the sweep down with it."""

from __future__ import annotations

import multiprocessing
import resource
import subprocess
import traceback
import warnings
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from tests.sweep.cases import Entry, NotBuilt
from tests.sweep.columns import examine
from tests.sweep.results import Result


def run(
    suite: str, entries: Iterable[Entry], *, seconds: float, gigabytes: float
) -> Iterator[Result]:
    """Examine ``entries`` one after another.

    Args:
        suite: the name of the module that builds them.
        entries: what to run.
        seconds: the longest that a model may take.
        gigabytes: the most memory that a model may take.
    """
    ran_with = state_of_the_code()
    # A server that has imported everything is forked for each model: a start costs nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([suite, "tests.sweep.columns"])
    for entry in entries:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_examine, args=(suite, entry, theirs, gigabytes))
        child.start()
        theirs.close()
        result = _blank(entry)
        result.reason = f"took more than {seconds:.0f} s"
        try:
            if ours.poll(seconds):
                result = ours.recv()
        except EOFError:
            child.join()
            result.reason = f"its process ended with exit code {child.exitcode}"
        finally:
            child.kill()
            child.join()
            ours.close()
        result.ran_with = ran_with
        yield result


def examined(suite: Any, entry: Entry) -> Result:
    """Examine one entry in this process."""
    result = _blank(entry)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            case = suite.build(entry)
        except NotBuilt as error:
            result.verdict, result.reason = "not built", str(error)
            return result
        examine(case, result)
    known = getattr(suite, "KNOWN", {}).get(entry.name)
    if known and result.verdict != "passed":
        result.reason += f"; {known}"
    return result


def _examine(suite: str, entry: Entry, channel: Connection, gigabytes: float) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 2**30),) * 2)
    try:
        result = examined(import_module(suite), entry)
    except Exception as error:
        result = _blank(entry)
        where = traceback.extract_tb(error.__traceback__)[-1]
        result.reason = (
            f"{type(error).__name__}: {str(error)[:300]} ({where.name}, line {where.lineno})"
        )
    channel.send(result)


def _blank(entry: Entry) -> Result:
    return Result(entry.name, entry.family, entry.task, entry.smallest)


def state_of_the_code() -> str:
    """The versions of the libraries and the last commit of the code, and whether it differs."""
    here = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True)
        return found.stdout.strip() if found.returncode == 0 else "unknown"

    versions = [f"{name} {version(name)}" for name in ("torch", "timm", "transformers")]
    changed = git("status", "--porcelain", "--", "captum_transformer_lrp", "tests/sweep")
    commit = git("log", "-1", "--format=%h", "--", "captum_transformer_lrp", "tests/sweep")
    commit += " with changes" if changed else ""
    return ", ".join([*versions, f"commit {commit}"])
