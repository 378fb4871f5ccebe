"""The commands and what they have in common."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from captum_transformer_lrp.cli import benchmark_texts  # noqa: F401 - adds its commands
from captum_transformer_lrp.cli.benchmark import benchmark
from captum_transformer_lrp.cli.demo import demo
from captum_transformer_lrp.cli.explain_image import explain_image
from captum_transformer_lrp.cli.explain_text import explain_text

app = typer.Typer(
    name="captum-transformer-lrp",
    help="Explain what Transformers see and read, by relevance propagation.",
    no_args_is_help=True,
    add_completion=False,
)
explain = typer.Typer(help="Explain one input.", no_args_is_help=True)
explain.command("image")(explain_image)
explain.command("text")(explain_text)
app.add_typer(explain, name="explain")
app.add_typer(benchmark, name="benchmark")
app.command("demo")(demo)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(version("captum-transformer-lrp"))
        raise typer.Exit


@app.callback()
def _global_options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; the console script's entry point."""
    app()
