"""Command-line options that several commands take, each described once."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from captum_transformer_lrp.cli.common import Method

Targets: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--target", help="A class to explain, by index or by name; may be given several times."
    ),
]
MethodOption: TypeAlias = Annotated[Method, typer.Option("--method", help="What explains.")]
Device: TypeAlias = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, cuda:1, …")]
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of tables.")
]
