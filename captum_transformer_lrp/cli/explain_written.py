"""`captum-transformer-lrp explain text` of a language model that continues the text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from captum_transformer_lrp.cli.errors import UsageError
from captum_transformer_lrp.cli.options import MapFormat
from captum_transformer_lrp.cli.provenance import fingerprinted, maps_beside
from captum_transformer_lrp.names import BUNDLED_TEXT_MODEL
from captum_transformer_lrp.printing import printable

if TYPE_CHECKING:
    import torch


def explain_written(
    text: str,
    output: Path,
    model: str,
    device: torch.device,
    *,
    trust_remote_code: bool,
    lang: str,
    maps: MapFormat | None,
    as_json: bool,
    targets: Sequence[str],
    hops: str,
    **options: Any,
) -> None:
    """Explain what a language model writes, and tell it.

    Args:
        text: the prompt.
        output: the page.
        model: a name or a folder.
        device: where the model runs.
        trust_remote_code: whether Python code that comes with the model is run.
        lang: the language of the text.
        maps: the format of a file of numbers beside the page.
        as_json: whether one JSON object is all that is printed.
        targets: at most one.
        hops: a number, or "all".
        options: further arguments of `explain_generation`.
    """
    if model == BUNDLED_TEXT_MODEL:
        raise UsageError("expected --model with the name or folder of a causal language model")
    if len(targets) > 1:
        raise UsageError(f"found {len(targets)} times --target, expected one for written words")
    if options["instead_of"] is not None and not targets:
        raise UsageError("found --contrast without --target: give the word that it is compared to")
    if hops != "all" and not hops.isdecimal():
        raise UsageError(f"found --hops {hops}, expected a number from 0, or all")

    from captum_transformer_lrp.models import load_language_model
    from captum_transformer_lrp.results.generation import explain_generation
    from captum_transformer_lrp.visualization.generation import table_of

    loaded = fingerprinted(load_language_model(model, trust_remote_code=trust_remote_code))
    loaded.model.to(device)
    target = targets[0] if targets else None
    options["hops"] = hops if hops == "all" else int(hops)
    if target is not None:  # writing nothing, the target is the next token
        options["max_new_tokens"] = options["max_new_tokens"] or None
    story = explain_generation(loaded, None, text, target=target, **options)
    for one in [output, *maps_beside(output, maps)]:
        story.save(one, lang=lang)
    if as_json:
        typer.echo(json.dumps({**json.loads(story.to_json()), "output": str(output)}, indent=2))
        return
    found = table_of(story)
    table = Table(*found.header)
    for row in found.rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console()
    if story.continuation.strip():
        console.print(Text(printable(story.continuation.strip(), keep="\n")))
    console.print(table)
    typer.echo(printable(f"wrote {output}"))
