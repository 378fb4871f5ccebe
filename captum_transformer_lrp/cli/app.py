"""The commands and what they have in common."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from captum_transformer_lrp.cli.benchmark import benchmark
from captum_transformer_lrp.cli.compare import compare_image, compare_text
from captum_transformer_lrp.cli.demo import demo
from captum_transformer_lrp.cli.explain_image import explain_image_command
from captum_transformer_lrp.cli.explain_text import explain_text_command
from captum_transformer_lrp.cli.models import models
from captum_transformer_lrp.cli.report import report


# Newer versions of typer bring their own copy of click, so its types are not named here.
class _InOrder(TyperGroup):
    """The commands in the order in which a newcomer needs them."""

    def list_commands(self, ctx: Any) -> list[str]:
        first = ["demo", "explain", "compare", "report", "models", "benchmark"]
        return [*first, *(name for name in super().list_commands(ctx) if name not in first)]


class _OfInputs(TyperGroup):
    """Commands named after kinds of inputs: who forgets the kind is reminded of it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            kinds = list(self.commands)
            ctx.fail(
                f"expected {' or '.join(kinds)}, found {args[0]!r}. "
                f"Try '{ctx.command_path} {kinds[0]} {args[0]}'."
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_InOrder,
    name="captum-transformer-lrp",
    help="Explain what Transformers see and read, by relevance propagation.",
    epilog="Exit codes: 0 all done, 1 something failed and is named on stderr, 2 the command line "
    "must be changed, 130 you pressed Ctrl-C. Completion for your shell: --install-completion.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for name, about, of_image, of_text in (
    ("explain", "Explain inputs by one method.", explain_image_command, explain_text_command),
    ("compare", "Explain one input by several methods.", compare_image, compare_text),
):
    group = typer.Typer(cls=_OfInputs, help=about, no_args_is_help=True)
    group.command("image")(of_image)
    group.command("text")(of_text)
    app.add_typer(group, name=name)
app.add_typer(benchmark, name="benchmark")
app.command("report")(report)
app.command("models")(models)
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
