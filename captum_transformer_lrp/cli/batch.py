"""Many inputs in one go: a progress bar, and failures that do not end it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from captum_transformer_lrp.cli.errors import FAILED, warn
from captum_transformer_lrp.errors import ArgumentError
from captum_transformer_lrp.printing import one_sentence, printable

Input = TypeVar("Input")
Result = TypeVar("Result")


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr, where that is a terminal; call what is yielded after each step."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    disabled = not console.is_terminal or total < 2
    with Progress(*columns, console=console, transient=True, disable=disabled) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def each_of(
    inputs: Sequence[Input], work: Callable[[Input], Result], what: str
) -> tuple[list[Result], list[dict[str, Any]]]:
    """The results of the inputs that work, and for the others `input` and `error`.

    Each failure is told on stderr as it happens. An `ArgumentError` would be every input's, so it
    ends the whole.
    """
    results, failed = [], []
    with progress_bar(what, len(inputs)) as advance:
        for one in inputs:
            try:
                results.append(work(one))
            except ArgumentError:
                raise
            except Exception as error:  # what models and damaged files raise cannot be foreseen
                failed.append({"input": str(one), "error": one_sentence(error)})
                warn(f"failed: {one}: {one_sentence(error)}")
            advance()
    return results, failed


def finish(
    results: Sequence[Any], failed: Sequence[Any], output: object, printed: Mapping[str, Any] | None
) -> None:
    """Say how many worked, or print a JSON object; exit with code 1 if any did not."""
    if printed is not None:
        typer.echo(json.dumps(printed, indent=2))
    else:
        count = len(results) + len(failed)
        typer.echo(printable(f"explained {len(results)} of {count}, wrote {output}"))
    if failed:
        raise typer.Exit(FAILED)
