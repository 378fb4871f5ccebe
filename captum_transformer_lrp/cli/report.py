"""`captum-transformer-lrp report`: any inputs, classes and methods on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from captum_transformer_lrp.cli import options, writing
from captum_transformer_lrp.cli.batch import each_of, finish
from captum_transformer_lrp.cli.errors import UsageError, clear_errors
from captum_transformer_lrp.cli.files import (
    IMAGE_SUFFIXES,
    TEXT_SUFFIXES,
    Photo,
    gather,
    has_suffix,
    photos_in,
    read_text,
)
from captum_transformer_lrp.cli.outputs import check_output, ready
from captum_transformer_lrp.names import BUNDLED_TEXT_MODEL, DEFAULT_COMPARISON
from captum_transformer_lrp.photos import MAX_PIXELS, read_photo
from captum_transformer_lrp.result import PAGE_SUFFIXES, as_footer, write_whole
from captum_transformer_lrp.results.classes import method_names, provenance

_LONGEST_TITLE = 60
HOW_TO_READ = (
    "Each picture and each text below is explained once per class: bright pixels and coloured "
    "words are those by which the model recognises that class. Each map uses all colours, so a "
    "class that the model hardly believes in has bright pixels, too: look at its probability "
    "first. Methods with values below zero are drawn in two colours, against and for, on a picture "
    "that shows through where values are near zero."
)


@clear_errors()
def report(
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[INPUT]...", help="Image files, .txt files, or folders of both."),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="A text; may be given several times.")
    ] = None,
    image_model: Annotated[
        str,
        options.model_option(
            "--image-model",
            "What explains images: a timm name, a Hugging Face name, a folder, or bundled/scenes.",
            options.complete_image_model,
        ),
    ] = options.DEFAULT_IMAGE_MODEL,
    text_model: Annotated[
        str,
        options.model_option(
            "--text-model",
            "What explains texts: a Hugging Face name, a folder, or bundled/sentiment.",
            options.complete_text_model,
        ),
    ] = BUNDLED_TEXT_MODEL,
    checkpoint: options.Checkpoint = None,
    generate: writing.Generate = None,
    continuation: writing.Continuation = None,
    contrast: writing.Contrast = None,
    hops: writing.Hops = None,
    images: writing.Seen = None,
    target: options.Targets = None,
    top_k: options.TopK = None,
    method: options.MethodOptions = None,
    title: Annotated[str, typer.Option(help="The page's heading.")] = "Explanations",
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    lang: options.Language = "en",
    special_tokens: options.SpecialTokens = False,
    frame: options.Frames = None,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    trust_remote_code: options.TrustRemoteCode = False,
    device: options.Device = "cpu",
    as_json: options.Json = False,
) -> None:
    """Write one HTML page of images and texts, explained for several classes by several methods.

    The page needs no other file and can be sent by mail. What cannot be read is named there and
    on stderr, the rest is explained, and the exit code is 1. With `--generate`, `--continuation`,
    `--contrast`, `--hops` or `--image` the text model is a language model that continues each text.

    **Examples**

    - `captum-transformer-lrp report photos/ --image-model bundled/scenes`

    - `captum-transformer-lrp report photo.jpg review.txt --text "not bad" --top-k 3
      --method transformer_attribution --method integrated_gradients --output page.html`

    - `captum-transformer-lrp report --text "The capital of France is" --text-model NAME
      --generate 8`
    """
    files = gather(inputs or (), (*IMAGE_SUFFIXES, *TEXT_SUFFIXES), "image or text")
    texts = list(text or ())
    if not files and not texts:
        raise UsageError("found nothing to explain: give files, folders or --text")
    check_output(output, PAGE_SUFFIXES, [*files, *(images or ()), checkpoint])
    of_words: dict[str, Any] = {"special_tokens": special_tokens}
    written = writing.Writing(
        generate, continuation, contrast, hops, images or (), target or (), method or (),
        of_words,
    )  # fmt: skip
    if written.is_asked:
        written.check(text_model)
    methods, where = method_names(method or DEFAULT_COMPARISON), options.to_device(device)
    asked: dict[str, Any] = {"method": methods, "target": target, **options.how_many(top_k, 2)}
    everything: list[Photo | Path | str] = []
    for file in files:
        text_file = has_suffix(file, TEXT_SUFFIXES)
        found = photos_in([file], options.to_frames(frame), max_pixels=max_pixels)
        everything += [file] if text_file else found
    everything += texts

    from captum_transformer_lrp.models import load_image_model, load_text_model
    from captum_transformer_lrp.results.image import explain_image
    from captum_transformer_lrp.results.text import explain_text
    from captum_transformer_lrp.visualization import Section, Table, report_html

    of_images: Any = None
    of_texts: Any = None
    footers = []
    if any(isinstance(one, Photo) for one in everything):
        of_images = load_image_model(
            image_model, checkpoint=checkpoint, trust_remote_code=trust_remote_code
        )
        of_images = ready(of_images, where, checkpoint)
        footers.append(provenance(of_images, **asked))
    if not all(isinstance(one, Photo) for one in everything):
        if written.is_asked:
            of_texts = written.load(text_model, where, trust_remote_code=trust_remote_code)
            footers.append(provenance(of_texts, written.method))
        else:
            of_texts = load_text_model(text_model, trust_remote_code=trust_remote_code)
            of_texts = ready(of_texts, where)
            footers.append(provenance(of_texts, **asked, **of_words))

    def section(one: Photo | Path | str) -> Section:
        if isinstance(one, Photo):
            photo = read_photo(one.path, frame=one.frame, max_pixels=max_pixels)
            return explain_image(of_images, photo, **asked).section(one.name)
        text = read_text(one) if isinstance(one, Path) else one
        title = one.name if isinstance(one, Path) else _shortened(one)
        if written.is_asked:
            return written.explained(of_texts, text).section(title)
        return explain_text(of_texts, None, text, **asked, **of_words).section(title)

    sections, failed = each_of(everything, section, "explaining")
    if failed:
        rows = [[each["input"], each["error"]] for each in failed]
        sections.append(Section("Not explained", tables=[Table("", ["input", "why"], rows)]))
    page = report_html(
        sections, title=title, introduction=HOW_TO_READ, lang=lang, footer=as_footer(*footers)
    )
    write_whole(output, page)
    result = {
        "methods": methods,
        "sections": [section.title for section in sections],
        "failed": failed,
        "output": str(output),
    }
    worked = sections[: len(sections) - bool(failed)]
    finish(worked, failed, output, result if as_json else None)


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST_TITLE else words[: _LONGEST_TITLE - 1] + "…"
