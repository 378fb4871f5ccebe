"""What a language model writes, for the commands `explain text` and `report`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from captum_transformer_lrp.cli.errors import UsageError
from captum_transformer_lrp.cli.options import MapFormat
from captum_transformer_lrp.cli.outputs import ready, save
from captum_transformer_lrp.names import BUNDLED_TEXT_MODEL, WRITTEN_TEXT_METHOD
from captum_transformer_lrp.photos import read_photo
from captum_transformer_lrp.printing import printable

if TYPE_CHECKING:
    import torch

    from captum_transformer_lrp.models import LanguageModel
    from captum_transformer_lrp.results.generation import GenerationResult

Generate: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="TOKENS",
        help="Let a language model write so many tokens, and show what each word comes from.",
    ),
]
Continuation: TypeAlias = Annotated[
    str | None, typer.Option(help="What was written, where the model is not to write itself.")
]
Contrast: TypeAlias = Annotated[
    str | None, typer.Option(help="With --target: why that word, instead of this one.")
]
Hops: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBER|all",
        help="How often relevance on written words is passed on to what these come from.",
    ),
]
Seen: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option(
        "--image", help="A picture for a language model that sees; may be given several times."
    ),
]


@dataclass(frozen=True)
class Writing:
    """What is asked of a language model: the options above, at most one target and one method.

    `options` are further arguments of `explain_generation`.
    """

    generate: int | None
    continuation: str | None
    contrast: str | None
    hops: str | None
    images: Sequence[Path]
    targets: Sequence[str]
    methods: Sequence[str]
    options: dict[str, Any]

    @property
    def is_asked(self) -> bool:
        """Whether a language model is meant at all."""
        given = (self.generate, self.continuation, self.contrast, self.hops)
        return any(one is not None for one in given) or bool(self.images)

    @property
    def method(self) -> str:
        """What explains."""
        return self.methods[0] if self.methods else WRITTEN_TEXT_METHOD

    def check(self, model: str) -> None:
        """Raise for what cannot be meant, before anything is loaded."""
        if model == BUNDLED_TEXT_MODEL:
            raise UsageError("expected the name or folder of a causal language model as the model")
        for name, found in (("--target", self.targets), ("--method", self.methods)):
            if len(found) > 1:
                raise UsageError(f"found {len(found)} times {name}, expected one for written words")
        if self.contrast is not None and not self.targets:
            raise UsageError(
                "found --contrast without --target: give the word that it is compared to"
            )
        if self.hops is not None and self.hops != "all" and not self.hops.isdecimal():
            raise UsageError(f"found --hops {self.hops}, expected a number from 0, or all")
        for image in self.images:
            read_photo(image)

    def load(self, model: str, device: torch.device, *, trust_remote_code: bool) -> LanguageModel:
        """The model with what it needs, where it is to run."""
        from captum_transformer_lrp.models import load_language_model

        sees = bool(self.images)
        loaded = load_language_model(model, sees=sees, trust_remote_code=trust_remote_code)
        return ready(loaded, device)

    def explained(self, loaded: LanguageModel, text: str) -> GenerationResult:
        """What each word that follows a text comes from."""
        from captum_transformer_lrp.results.generation import explain_generation

        target = self.targets[0] if self.targets else None
        return explain_generation(
            loaded,
            None,
            text,
            images=[read_photo(image) for image in self.images] or None,
            continuation=self.continuation,
            # Writing nothing, the target is the next token.
            max_new_tokens=self.generate if target is None else self.generate or None,
            target=target,
            instead_of=self.contrast,
            method=self.method,
            hops="all" if self.hops == "all" else int(self.hops or 0),
            **self.options,
        )


def tell(
    story: GenerationResult, output: Path, *, lang: str, maps: MapFormat | None, as_json: bool
) -> None:
    """Write a page of what a language model wrote, and print it."""
    from captum_transformer_lrp.visualization.generation import table_of

    save(story, output, maps, lang)
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
