"""What the commands of `captum-transformer-lrp benchmark` have in common: options and output."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.console import Console

from captum_transformer_lrp.cli.errors import UsageError
from captum_transformer_lrp.names import ALIASES
from captum_transformer_lrp.printing import printable

if TYPE_CHECKING:
    from captum_transformer_lrp.benchmarks.results import Result

Methods: TypeAlias = Annotated[
    list[str],
    typer.Option(
        "--method",
        "--methods",
        metavar="NAME",
        help="What explains; may be given several times, or with commas. 'paper' and 'ablations' "
        "stand for several; options follow a colon: transformer_attribution:start_layer=1. A wrong "
        "name lists all.",
    ),
]
Ablations: TypeAlias = Annotated[
    bool, typer.Option("--ablations", help="Add the variants of the paper's table 3.")
]
Output: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="The folder for results; by default benchmark-NAME. Processes share it."),
]
LabelsFile: TypeAlias = Annotated[
    Path | None, typer.Option(help="A file of lines 'photo.jpg 281', if names do not tell.")
]
Limit: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="At most so many examples, spread evenly over the data.")
]
Seed: TypeAlias = Annotated[int, typer.Option(help="Of methods that draw random numbers.")]
Quiet: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--quiet", help="No progress bar and no table; files are written, damaged examples named."
    ),
]

SoFar: TypeAlias = Annotated[
    bool, typer.Option("--so-far", help="Run nothing: show what an unfinished run has found.")
]


class Explain(str, Enum):
    """Which class is explained."""

    PREDICTED = "predicted"
    TARGET = "target"


def method_names(methods: Sequence[str], ablations: bool) -> list[str]:
    """What `--method` and `--ablations` stand for.

    >>> method_names(["random, paper", "rollout:start_layer=1"], True)
    ['random', 'paper', 'attention_rollout:start_layer=1', 'ablations']
    """
    given = [one.strip() for several in methods for one in several.split(",") if one.strip()]
    parts = [one.partition(":") for one in given]
    names = [ALIASES.get(name, name) + colon + rest for name, colon, rest in parts]
    return [*names, "ablations"] if ablations and "ablations" not in names else names


def output_folder(output: Path | None, name: str) -> Path:
    """The folder to write, checked before the work is done."""
    folder = output or Path(f"benchmark-{name}")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder} is a file, expected a folder")
    return folder


def report(result: Result, folder: Path, quiet: bool) -> None:
    """Print the result, once for all processes."""
    from captum_transformer_lrp.benchmarks.distributed import environment_rank

    if environment_rank():
        return
    for identifier, reason in result.skipped:
        typer.echo(printable(f"skipped {identifier}: {reason}"), err=True)
    if quiet:
        return
    console = Console()
    console.print(*result.tables(console.width), sep="\n")
    if not result.pending:
        typer.echo(f"wrote {folder / 'results.json'}, with .csv, .md and curves beside it")
