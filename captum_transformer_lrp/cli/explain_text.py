"""`captum-transformer-lrp explain text`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from captum_transformer_lrp.cli.batch import each_of, finish
from captum_transformer_lrp.cli.errors import UsageError, clear_errors, warn
from captum_transformer_lrp.cli.files import (
    TEXT_SUFFIXES,
    check_text,
    gather,
    has_suffix,
    read_text,
)
from captum_transformer_lrp.cli.methods import DEFAULT_METHOD
from captum_transformer_lrp.cli.options import (
    Device,
    Json,
    Language,
    Maps,
    MethodOption,
    SpecialTokens,
    Targets,
    TextModelName,
    TopK,
    TrustRemoteCode,
    to_device,
)
from captum_transformer_lrp.cli.outputs import (
    PAGE_SUFFIXES,
    check_no_input,
    check_output,
    check_output_folder,
    output_names,
    write_whole,
)
from captum_transformer_lrp.cli.predictions import print_predictions
from captum_transformer_lrp.cli.provenance import as_footer, maps_beside, provenance, write_maps
from captum_transformer_lrp.cli.subjects import ExplainedText, Request, explain_text_by
from captum_transformer_lrp.names import BUNDLED_TEXT_MODEL
from captum_transformer_lrp.printing import printable


def explain_text(
    text: Annotated[
        str | None, typer.Argument(help="The sentence or document.", show_default=False)
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--file",
            help="A text file, or a folder of .txt files, instead; may be given several times.",
        ),
    ] = None,
    model: TextModelName = BUNDLED_TEXT_MODEL,
    target: Targets = None,
    top_k: TopK = 1,
    method: MethodOption = DEFAULT_METHOD,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The page to write; with --file, the folder.",
            show_default="explanation.html or explanations",
        ),
    ] = None,
    lang: Language = "en",
    special_tokens: SpecialTokens = False,
    maps: Maps = None,
    trust_remote_code: TrustRemoteCode = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Show which words speak for a class: coloured in the terminal and on an HTML page.

    With `--file`, one page for each file. A file that cannot be read is named, the others are
    explained, and the exit code is 1.

    **Examples**

    - `captum-transformer-lrp explain text "a gorgeous, witty film"`

    - `captum-transformer-lrp explain text "not bad" --target NEGATIVE --target POSITIVE`

    - `captum-transformer-lrp explain text --file reviews/ --model FOLDER --output pages/`
    """
    with clear_errors():
        # Loading a model takes seconds; mistakes are told before.
        if (text is None) == (not files):
            raise UsageError("expected a text or --file, one of the two")
        if text is not None:
            check_text(text)
        if text is not None and has_suffix(Path(text.strip()), TEXT_SUFFIXES):
            warn(f"note: {text} is explained as a text; --file {text} reads a file")
        paths = gather(files or (), TEXT_SUFFIXES, "text")
        if paths:
            output = output or Path("explanations")
            check_output_folder(output, [path.parent for path in paths])
            names = output_names([(path, path.name) for path in paths])
            pages = [output / f"{name}.html" for name in names]
        else:
            output = output or Path("explanation.html")
            check_output(output, PAGE_SUFFIXES)
            pages = [output]
        check_no_input([*pages, *(one for page in pages for one in maps_beside(page, maps))], paths)
        request = Request([method], target, top_k, to_device(device), special_tokens)

        from captum_transformer_lrp.models import load_text_model
        from captum_transformer_lrp.visualization import text_html, text_terminal

        loaded = load_text_model(model, trust_remote_code=trust_remote_code)
        of = provenance(loaded, request)

        def explained(text: str, page: Path, subject: str) -> tuple[ExplainedText, dict[str, Any]]:
            found = explain_text_by(loaded, text, request)
            explanations = found.explanations[method]
            write_whole(page, text_html(explanations, lang=lang, footer=as_footer(of)))
            for beside in maps_beside(page, maps):
                write_maps(beside, found, of, subject)
            result = {
                "text": text,
                "method": method,
                "predictions": [each.as_json() for each in found.predictions[:5]],
                "explained": [
                    prediction.as_json()
                    | {"words": [[word.text, word.attribution] for word in explanation.words]}
                    for prediction, explanation in zip(found.explained, explanations, strict=True)
                ],
                "output": str(page),
            }
            return found, of | result

        if text is not None:
            found, result = explained(text, output, text)
            if as_json:
                typer.echo(json.dumps(result, indent=2))
                return
            console = Console()
            print_predictions(console, found.predictions, found.explained)
            console.print(text_terminal(found.explanations[method]))
            typer.echo(printable(f"wrote {output}"))
            return
        page_of = dict(zip(paths, pages, strict=True))

        def of_file(path: Path) -> dict[str, Any]:
            return {"file": str(path)} | explained(read_text(path), page_of[path], str(path))[1]

        results, failed = each_of(paths, of_file, "explaining")
        if as_json:
            typer.echo(json.dumps({"results": results, "failed": failed}, indent=2))
        finish(results, failed, output, as_json)
