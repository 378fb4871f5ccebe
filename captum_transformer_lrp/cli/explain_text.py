"""`captum-transformer-lrp explain text`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captum_transformer_lrp.cli import options, writing
from captum_transformer_lrp.cli.batch import each_of, finish
from captum_transformer_lrp.cli.errors import UsageError, clear_errors, warn
from captum_transformer_lrp.cli.files import TEXT_SUFFIXES, gather, has_suffix, read_text
from captum_transformer_lrp.cli.outputs import planned, ready, save
from captum_transformer_lrp.cli.predictions import as_json as to_json
from captum_transformer_lrp.cli.predictions import tell
from captum_transformer_lrp.names import BUNDLED_TEXT_MODEL, DEFAULT_METHOD
from captum_transformer_lrp.printing import check_text
from captum_transformer_lrp.result import PAGE_SUFFIXES

if TYPE_CHECKING:
    from captum_transformer_lrp.results.text import TextResult


@clear_errors()
def explain_text_command(
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
    model: options.TextModelName = BUNDLED_TEXT_MODEL,
    pair: Annotated[
        str | None, typer.Option("--pair", help="The second text, for models that take two.")
    ] = None,
    generate: writing.Generate = None,
    continuation: writing.Continuation = None,
    contrast: writing.Contrast = None,
    hops: writing.Hops = None,
    images: writing.Seen = None,
    target: options.Targets = None,
    top_k: options.TopK = None,
    method: options.TextMethod = None,
    granularity: options.Granularity = "word",
    output: Annotated[
        Path | None,
        typer.Option(
            help="The page to write; with --file, the folder.",
            show_default="explanation.html or explanations",
        ),
    ] = None,
    lang: options.Language = "en",
    special_tokens: options.SpecialTokens = False,
    maps: options.Maps = None,
    trust_remote_code: options.TrustRemoteCode = False,
    device: options.Device = "cpu",
    as_json: options.Json = False,
) -> None:
    """Show which words speak for a class, or which words each written word comes from.

    They are coloured in the terminal and on an HTML page. With `--generate`, `--continuation`,
    `--contrast` or `--hops` the model is a language model that continues the text.

    With `--file`, one page for each file. A file that cannot be read is named, the others are
    explained, and the exit code is 1.

    **Examples**

    - `captum-transformer-lrp explain text "a gorgeous, witty film"`

    - `captum-transformer-lrp explain text "not bad" --target NEGATIVE --target POSITIVE`

    - `captum-transformer-lrp explain text "The capital of France is" --model NAME --generate 8`

    - `captum-transformer-lrp explain text --file reviews/ --model FOLDER --output pages/`
    """
    # Loading a model takes seconds; mistakes are told before.
    if (text is None) == (not files):
        raise UsageError("expected a text or --file, one of the two")
    if text is not None:
        check_text(text)
    if text is not None and has_suffix(Path(text.strip()), TEXT_SUFFIXES):
        warn(f"note: {text} is explained as a text; --file {text} reads a file")
    unit: dict[str, Any] = {"granularity": granularity, "special_tokens": special_tokens}
    asked = writing.Writing(
        generate, continuation, contrast, hops, images or (), target or (),
        [method] if method else (), unit,
    )  # fmt: skip
    if asked.is_asked and (text is None or pair is not None):
        raise UsageError("expected a text without --pair to be continued, and no --file")
    if pair is not None and files:
        raise UsageError("expected a text with --pair, found --file")
    paths = gather(files or (), TEXT_SUFFIXES, "text")
    named = [(path, path.name) for path in paths]
    output, pages = planned(output, PAGE_SUFFIXES, named, [*paths, *(images or ())], maps)
    where = options.to_device(device)
    if asked.is_asked and text is not None:
        asked.check(model)
        language_model = asked.load(model, where, trust_remote_code=trust_remote_code)
        story = asked.explained(language_model, text)
        writing.tell(story, output, lang=lang, maps=maps, as_json=as_json)
        return
    method = method or DEFAULT_METHOD

    from captum_transformer_lrp.models import load_text_model
    from captum_transformer_lrp.results.text import explain_text
    from captum_transformer_lrp.visualization import text_terminal

    loaded = ready(load_text_model(model, trust_remote_code=trust_remote_code), where)

    def explained(
        text: str, page: Path, source: Path | None = None
    ) -> tuple[TextResult, dict[str, Any]]:
        found = explain_text(
            loaded, None, text, text_pair=pair, target=target, method=method, **unit,
            **options.how_many(top_k, 1),
        )  # fmt: skip
        found = replace(found, subject=str(source or found.subject), source=source)
        save(found, page, maps, lang)
        result = {"text": text, "method": method, **to_json(found, page)}
        for each, one in zip(result["explained"], found.explanations[method], strict=True):
            each["words"] = [[word.text, word.attribution] for word in one.words]
        return found, result

    if text is not None:
        one, result = explained(text, output)
        tell(one, result, output, as_json, text_terminal(one.explanations[method]))
        return
    page_of = dict(zip(paths, pages, strict=True))

    def of_file(path: Path) -> dict[str, Any]:
        return {"file": str(path)} | explained(read_text(path), page_of[path], path)[1]

    found, failed = each_of(paths, of_file, "explaining")
    finish(found, failed, output, {"results": found, "failed": failed} if as_json else None)
