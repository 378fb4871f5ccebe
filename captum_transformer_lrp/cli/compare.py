"""`captum-transformer-lrp compare image` and `compare text`: methods beside each other."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from captum_transformer_lrp.cli.batch import progress_bar
from captum_transformer_lrp.cli.errors import UsageError, clear_errors
from captum_transformer_lrp.cli.files import (
    FIGURE_SUFFIXES,
    PAGE_SUFFIXES,
    check_output,
    read_photo,
)
from captum_transformer_lrp.cli.methods import DEFAULT_COMPARISON, class_labels
from captum_transformer_lrp.cli.options import (
    DEFAULT_IMAGE_MODEL,
    Checkpoint,
    Device,
    ImageModelName,
    Json,
    Language,
    MethodOptions,
    SpecialTokens,
    Targets,
    TextModelName,
    TopK,
    to_device,
)
from captum_transformer_lrp.cli.pages import text_section
from captum_transformer_lrp.cli.predictions import print_predictions
from captum_transformer_lrp.cli.subjects import (
    ExplainedImage,
    ExplainedText,
    Request,
    explain_image_by,
    explain_text_by,
    relevant_words,
)
from captum_transformer_lrp.names import BUNDLED_TEXT_MODEL

if TYPE_CHECKING:
    from torch import Tensor


def compare_image(
    photo: Annotated[Path, typer.Argument(help="The image file.")],
    model: ImageModelName = DEFAULT_IMAGE_MODEL,
    checkpoint: Checkpoint = None,
    target: Targets = None,
    top_k: TopK = 2,
    method: MethodOptions = None,
    output: Annotated[Path, typer.Option(help="The figure to write.")] = Path("comparison.png"),
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Draw a table of overlays: one row per method, one column per class.

    **Examples**

    - `captum-transformer-lrp compare image photo.jpg --target tabby --target "golden retriever"`

    - `captum-transformer-lrp compare image photo.png --model bundled/scenes
      --method transformer_attribution --method integrated_gradients`
    """
    with clear_errors():
        check_output(output, FIGURE_SUFFIXES, [photo])
        methods = list(dict.fromkeys(method or DEFAULT_COMPARISON))
        request = Request(methods, target, top_k, to_device(device))
        picture = read_photo(photo)

        from captum_transformer_lrp.models import load_image_model
        from captum_transformer_lrp.visualization import method_class_grid

        loaded = load_image_model(model, checkpoint=checkpoint)
        with progress_bar("methods", len(methods)) as advance:
            found = explain_image_by(loaded, picture, request, advance)
        figure = method_class_grid(
            found.drawn_maps(), found.drawn_photo(), image_title=found.photo_title()
        )
        figure.savefig(output, dpi=150)
        _tell(found, {"image": str(photo)}, model, methods, output, as_json)


def compare_text(
    text: Annotated[str, typer.Argument(help="The sentence or document.")],
    model: TextModelName = BUNDLED_TEXT_MODEL,
    target: Targets = None,
    top_k: TopK = 2,
    method: MethodOptions = None,
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("comparison.html"),
    lang: Language = "en",
    special_tokens: SpecialTokens = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Write a page of the text by each method for each class, its words coloured by relevance.

    **Examples**

    - `captum-transformer-lrp compare text "witty, but a little dull"`

    - `captum-transformer-lrp compare text "not bad" --method transformer_attribution
      --method integrated_gradients --json`
    """
    with clear_errors():
        check_output(output, PAGE_SUFFIXES)
        if not text.strip():
            raise UsageError("found an empty text, expected at least one word")
        methods = list(dict.fromkeys(method or DEFAULT_COMPARISON))
        request = Request(methods, target, top_k, to_device(device), special_tokens)

        from captum_transformer_lrp.models import load_text_model
        from captum_transformer_lrp.visualization import report_html

        loaded = load_text_model(model)
        with progress_bar("methods", len(methods)) as advance:
            found = explain_text_by(loaded, text, request, advance)
        page = report_html([text_section("The text", found)], title="Relevant words", lang=lang)
        output.write_text(page, encoding="utf-8")
        _tell(found, {"text": text}, model, methods, output, as_json)


def _tell(
    found: ExplainedImage | ExplainedText,
    subject: dict[str, Any],
    model: str,
    methods: list[str],
    output: Path,
    as_json: bool,
) -> None:
    if not as_json:
        print_predictions(Console(), found.predictions, found.explained)
        typer.echo(f"wrote {output}")
        return
    explained = [each.as_json() for each in found.explained]
    if isinstance(found, ExplainedText):
        for place, each in enumerate(explained):
            each["words"] = relevant_words(found.explanations, place)
    else:
        subject = subject | {"correlation_with_first_class": _correlations(found)}
    result = subject | {
        "model": model,
        "methods": methods,
        "predictions": [each.as_json() for each in found.predictions[:5]],
        "explained": explained,
        "output": str(output),
    }
    typer.echo(json.dumps(result, indent=2))


def _correlations(found: ExplainedImage) -> dict[str, dict[str, float | None]]:
    """How alike each method's maps are: 1 is a method that cannot tell the classes apart."""
    first, *others = class_labels(found.explained)
    return {
        method: {label: _correlation(of_class[first], of_class[label]) for label in others}
        for method, of_class in found.maps.items()
    }


def _correlation(one: Tensor, other: Tensor) -> float | None:
    """Pearson's, over pixels; none where a map is constant."""
    import torch

    value = float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).double())[0, 1])
    return None if math.isnan(value) else value
