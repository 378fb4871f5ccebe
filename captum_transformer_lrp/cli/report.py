"""`captum-transformer-lrp report`: any inputs, classes and methods on one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captum_transformer_lrp.cli.batch import each_of, finish
from captum_transformer_lrp.cli.errors import UsageError, clear_errors
from captum_transformer_lrp.cli.files import (
    IMAGE_SUFFIXES,
    PAGE_SUFFIXES,
    TEXT_SUFFIXES,
    check_output,
    gather,
    has_suffix,
    read_photo,
    read_text,
)
from captum_transformer_lrp.cli.methods import DEFAULT_COMPARISON
from captum_transformer_lrp.cli.options import (
    DEFAULT_IMAGE_MODEL,
    Checkpoint,
    Device,
    Json,
    Language,
    MethodOptions,
    SpecialTokens,
    Targets,
    TopK,
    complete_image_model,
    complete_text_model,
    to_device,
)
from captum_transformer_lrp.cli.pages import HOW_TO_READ, image_section, text_section
from captum_transformer_lrp.cli.subjects import Request, explain_image_by, explain_text_by
from captum_transformer_lrp.names import BUNDLED_TEXT_MODEL

if TYPE_CHECKING:
    from captum_transformer_lrp.models import ImageModel, TextModel
    from captum_transformer_lrp.visualization import Section

_LONGEST_TITLE = 60


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
        typer.Option(
            help="What explains images: a timm name, a Hugging Face name, a folder, or "
            "bundled/scenes.",
            autocompletion=complete_image_model,
        ),
    ] = DEFAULT_IMAGE_MODEL,
    text_model: Annotated[
        str,
        typer.Option(
            help="What explains texts: a Hugging Face name, a folder, or bundled/sentiment.",
            autocompletion=complete_text_model,
        ),
    ] = BUNDLED_TEXT_MODEL,
    checkpoint: Checkpoint = None,
    target: Targets = None,
    top_k: TopK = 2,
    method: MethodOptions = None,
    title: Annotated[str, typer.Option(help="The page's heading.")] = "Explanations",
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    lang: Language = "en",
    special_tokens: SpecialTokens = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Write one HTML page of images and texts, explained for several classes by several methods.

    The page needs no other file and can be sent by mail. What cannot be read is named there and
    on stderr, the rest is explained, and the exit code is 1.

    **Examples**

    - `captum-transformer-lrp report photos/ --image-model bundled/scenes`

    - `captum-transformer-lrp report photo.jpg review.txt --text "not bad" --top-k 3
      --method transformer_attribution --method integrated_gradients --output page.html`
    """
    with clear_errors():
        files = gather(inputs or (), (*IMAGE_SUFFIXES, *TEXT_SUFFIXES), "image or text")
        texts = list(text or ())
        if not files and not texts:
            raise UsageError("found nothing to explain: give files, folders or --text")
        check_output(output, PAGE_SUFFIXES, files)
        methods = list(dict.fromkeys(method or DEFAULT_COMPARISON))
        request = Request(methods, target, top_k, to_device(device), special_tokens)
        images = [file for file in files if not has_suffix(file, TEXT_SUFFIXES)]
        explainers = _Explainers(
            request,
            _image_model(image_model, checkpoint) if images else None,
            _text_model(text_model) if texts or len(images) < len(files) else None,
        )
        everything: list[Path | str] = [*files, *texts]
        sections, failed = each_of(everything, explainers.section, "explaining")
        if failed:
            sections.append(_failures(failed))
        from captum_transformer_lrp.visualization import report_html

        page = report_html(sections, title=title, introduction=HOW_TO_READ, lang=lang)
        output.write_text(page, encoding="utf-8")
        if as_json:
            result = {
                "methods": methods,
                "sections": [section.title for section in sections],
                "failed": failed,
                "output": str(output),
            }
            typer.echo(json.dumps(result, indent=2))
        finish(sections[: len(sections) - bool(failed)], failed, output, as_json)


class _Explainers:
    """What makes a section of each input.

    Args:
        request: what is asked of every input.
        of_images: the image model, if there are images.
        of_texts: the text model, if there are texts.
    """

    def __init__(
        self, request: Request, of_images: ImageModel | None, of_texts: TextModel | None
    ) -> None:
        self.request = request
        self.of_images = of_images
        self.of_texts = of_texts

    def section(self, one: Path | str) -> Section:
        """Of an image file, a text file or a text."""
        if isinstance(one, Path) and not has_suffix(one, TEXT_SUFFIXES):
            assert self.of_images is not None
            found = explain_image_by(self.of_images, read_photo(one), self.request)
            return image_section(one.name, found)
        assert self.of_texts is not None
        text = read_text(one) if isinstance(one, Path) else one
        title = one.name if isinstance(one, Path) else _shortened(one)
        return text_section(title, explain_text_by(self.of_texts, text, self.request))


def _image_model(name: str, checkpoint: Path | None) -> ImageModel:
    from captum_transformer_lrp.models import load_image_model

    return load_image_model(name, checkpoint=checkpoint)


def _text_model(name: str) -> TextModel:
    from captum_transformer_lrp.models import load_text_model

    return load_text_model(name)


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST_TITLE else words[: _LONGEST_TITLE - 1] + "…"


def _failures(failed: list[dict[str, Any]]) -> Section:
    from captum_transformer_lrp.visualization import Section, Table

    rows = [[each["input"], each["error"]] for each in failed]
    return Section("Not explained", tables=[Table("", ["input", "why"], rows)])
