"""What commands print of a result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from captum_transformer_lrp.printing import printable
from captum_transformer_lrp.results.classes import OfClasses, Prediction


def _table(predictions: Sequence[Prediction], explained: Sequence[Prediction]) -> Table:
    """The most probable classes and those that are explained."""
    from captum_transformer_lrp.visualization.labels import percent

    table = Table("class", "index", "probability", "explained")
    for column in (1, 2):
        table.columns[column].justify = "right"
    rows = [*predictions[:5], *(each for each in explained if each not in predictions[:5])]
    for row in rows:
        table.add_row(
            Text(printable(row.name)),
            str(row.index),
            "" if row.probability is None else percent(row.probability),
            "yes" if row in explained else "",
        )
    return table


def as_json(found: OfClasses, output: Path) -> dict[str, Any]:
    """What `--json` prints of a result, but for what it is of."""
    return {
        **found.about,
        "predictions": [each.as_json() for each in found.predictions[:5]],
        "explained": [each.as_json() for each in found.explained],
        "output": str(output),
    }


def tell(
    found: OfClasses, result: Mapping[str, Any], output: Path, as_json: bool, *more: RenderableType
) -> None:
    """Print what was found: `result` as JSON, or a table of classes and `more` below it."""
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    for one in (_table(found.predictions, found.explained), *more):
        Console().print(one)
    typer.echo(printable(f"wrote {output}"))
