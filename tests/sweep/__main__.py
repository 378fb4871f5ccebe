"""The command ``python -m tests.sweep``."""

from __future__ import annotations

import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from tests.sweep import results
from tests.sweep.models_page import write_page
from tests.sweep.runner import run, state_of_the_code
from tests.sweep.tables import write_table

DOCS = Path(__file__).resolve().parents[2] / "docs"


def sweep(
    suite: Annotated[str, typer.Argument(help="timm or transformers")],
    only: Annotated[str, typer.Option(help="a pattern of names or families, such as swin*")] = "*",
    resume: Annotated[bool, typer.Option(help="leave out what has a result already")] = False,
    again: Annotated[bool, typer.Option(help="run what has a result, but did not pass")] = False,
    stale: Annotated[bool, typer.Option(help="run what was run with other code, or not")] = False,
    smallest: Annotated[bool, typer.Option(help="one model of each family")] = False,
    seconds: Annotated[float, typer.Option(help="the longest that a model may take")] = 900,
    gigabytes: Annotated[float, typer.Option(help="the most memory that it may take")] = 6,
) -> None:
    """Build every architecture with random weights, explain it, and write down what comes out."""
    if suite not in ("timm", "transformers"):
        raise typer.BadParameter(f"suite must be timm or transformers, found {suite!r}")
    module = f"tests.sweep.{suite}_models"
    lines = DOCS / "sweep" / f"{suite}.jsonl"
    lines.parent.mkdir(exist_ok=True)
    known = results.read(lines)
    now = state_of_the_code()
    wanted = [
        entry
        for entry in import_module(module).entries()
        if fnmatch.fnmatch(entry.name, only) or fnmatch.fnmatch(entry.family, only)
        if entry.smallest or not smallest
        if not (resume and entry.name in known)
        if not (stale and entry.name in known and known[entry.name].ran_with == now)
        if not (again and (entry.name not in known or known[entry.name].verdict == "passed"))
    ]
    if not wanted:
        typer.echo("nothing to run; writing the tables again")
    for number, result in enumerate(
        run(module, wanted, seconds=seconds, gigabytes=gigabytes), start=1
    ):
        results.append(lines, result)
        typer.echo(
            f"{number}/{len(wanted)} {result.name}: {result.verdict}"
            f"{' (' + result.reason[:200] + ')' if result.reason else ''} {result.seconds} s"
        )
    found = results.read(lines)
    results.write(lines, found)
    write_table(DOCS / f"sweep_{suite}.md", suite, found)
    write_page(DOCS)


if __name__ == "__main__":
    typer.run(sweep)
