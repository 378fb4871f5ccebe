"""`captum-transformer-lrp compare image` and `compare text`: methods beside each other."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from captum_transformer_lrp.cli.batch import progress_bar
from captum_transformer_lrp.cli.errors import clear_errors
from captum_transformer_lrp.cli.files import Photo, check_given, check_text, read_photo
from captum_transformer_lrp.cli.methods import DEFAULT_COMPARISON, class_labels
from captum_transformer_lrp.cli.options import (
    DEFAULT_IMAGE_MODEL,
    Checkpoint,
    Device,
    Frame,
    ImageModelName,
    Json,
    Language,
    Maps,
    MaxPixels,
    MethodOptions,
    SpecialTokens,
    Targets,
    TextModelName,
    TopK,
    TrustRemoteCode,
    to_device,
)
from captum_transformer_lrp.cli.outputs import (
    FIGURE_SUFFIXES,
    PAGE_SUFFIXES,
    check_no_input,
    check_output,
    write_figure,
    write_whole,
)
from captum_transformer_lrp.cli.pages import text_section
from captum_transformer_lrp.cli.predictions import print_predictions
from captum_transformer_lrp.cli.provenance import as_footer, maps_beside, provenance, write_maps
from captum_transformer_lrp.cli.subjects import (
    ExplainedImage,
    ExplainedText,
    Request,
    explain_image_by,
    explain_text_by,
    relevant_words,
)
from captum_transformer_lrp.names import BUNDLED_TEXT_MODEL
from captum_transformer_lrp.photos import MAX_PIXELS
from captum_transformer_lrp.printing import printable

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
    maps: Maps = None,
    frame: Frame = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    trust_remote_code: TrustRemoteCode = False,
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
        check_given(photo, "image")
        check_output(output, FIGURE_SUFFIXES, [photo, checkpoint])
        check_no_input(maps_beside(output, maps), [photo, checkpoint])
        methods = list(dict.fromkeys(method or DEFAULT_COMPARISON))
        request = Request(methods, target, top_k, to_device(device))
        picture = read_photo(photo, frame=frame, max_pixels=max_pixels)

        from captum_transformer_lrp.models import load_image_model
        from captum_transformer_lrp.visualization import method_class_grid

        loaded = load_image_model(model, checkpoint=checkpoint, trust_remote_code=trust_remote_code)
        of = provenance(loaded, request, checkpoint)
        with progress_bar("methods", len(methods)) as advance:
            found = explain_image_by(loaded, picture, request, advance)
        figure = method_class_grid(
            found.drawn_maps(), found.drawn_photo(), image_title=found.photo_title()
        )
        write_figure(output, figure)
        for beside in maps_beside(output, maps):
            write_maps(beside, found, of, str(Photo(photo, frame)))
        _tell(found, of | {"image": str(Photo(photo, frame))}, output, as_json)


def compare_text(
    text: Annotated[str, typer.Argument(help="The sentence or document.")],
    model: TextModelName = BUNDLED_TEXT_MODEL,
    target: Targets = None,
    top_k: TopK = 2,
    method: MethodOptions = None,
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("comparison.html"),
    lang: Language = "en",
    special_tokens: SpecialTokens = False,
    maps: Maps = None,
    trust_remote_code: TrustRemoteCode = False,
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
        check_text(text)
        methods = list(dict.fromkeys(method or DEFAULT_COMPARISON))
        request = Request(methods, target, top_k, to_device(device), special_tokens)

        from captum_transformer_lrp.models import load_text_model
        from captum_transformer_lrp.visualization import report_html

        loaded = load_text_model(model, trust_remote_code=trust_remote_code)
        of = provenance(loaded, request)
        with progress_bar("methods", len(methods)) as advance:
            found = explain_text_by(loaded, text, request, advance)
        section = text_section("The text", found)
        page = report_html([section], title="Relevant words", lang=lang, footer=as_footer(of))
        write_whole(output, page)
        for beside in maps_beside(output, maps):
            write_maps(beside, found, of, text)
        _tell(found, of | {"text": text}, output, as_json)


def _tell(
    found: ExplainedImage | ExplainedText,
    subject: dict[str, Any],
    output: Path,
    as_json: bool,
) -> None:
    if not as_json:
        print_predictions(Console(), found.predictions, found.explained)
        typer.echo(printable(f"wrote {output}"))
        return
    explained = [each.as_json() for each in found.explained]
    if isinstance(found, ExplainedText):
        for place, each in enumerate(explained):
            each["words"] = relevant_words(found.explanations, place)
    else:
        subject = subject | {"correlation_with_first_class": _correlations(found)}
    result = subject | {
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
