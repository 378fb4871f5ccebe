"""`captum-transformer-lrp compare image` and `compare text`: methods beside each other."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from captum_transformer_lrp.cli.batch import progress_bar
from captum_transformer_lrp.cli.errors import clear_errors
from captum_transformer_lrp.cli.files import Photo, check_given
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
    how_many,
    to_device,
)
from captum_transformer_lrp.cli.outputs import check_no_input, check_output
from captum_transformer_lrp.cli.predictions import as_json as to_json
from captum_transformer_lrp.cli.predictions import print_predictions
from captum_transformer_lrp.cli.provenance import fingerprinted, maps_beside
from captum_transformer_lrp.names import BUNDLED_TEXT_MODEL, DEFAULT_COMPARISON
from captum_transformer_lrp.photos import MAX_PIXELS, read_photo
from captum_transformer_lrp.printing import check_text, printable
from captum_transformer_lrp.result import FIGURE_SUFFIXES, PAGE_SUFFIXES
from captum_transformer_lrp.results.classes import OfClasses, class_labels, method_names

if TYPE_CHECKING:
    from captum_transformer_lrp.results.image import ImageResult


def compare_image(
    photo: Annotated[Path, typer.Argument(help="The image file.")],
    model: ImageModelName = DEFAULT_IMAGE_MODEL,
    checkpoint: Checkpoint = None,
    target: Targets = None,
    top_k: TopK = None,
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
        methods, where = method_names(method or DEFAULT_COMPARISON), to_device(device)
        picture = read_photo(photo, frame=frame, max_pixels=max_pixels)

        from captum_transformer_lrp.models import load_image_model
        from captum_transformer_lrp.results.image import explain_image

        loaded = load_image_model(model, checkpoint=checkpoint, trust_remote_code=trust_remote_code)
        loaded = fingerprinted(loaded, checkpoint)
        loaded.model.to(where)
        with progress_bar("methods", len(methods)) as advance:
            found = explain_image(
                loaded,
                picture,
                target=target,
                method=methods,
                **how_many(top_k, 2),
                on_progress=advance,
            )
        found = replace(found, subject=str(Photo(photo, frame)), source=photo)
        for file in [output, *maps_beside(output, maps)]:
            found.save(file)
        more = {"correlation_with_first_class": _correlations(found)} if as_json else {}
        _tell(found, {"image": found.subject, **to_json(found, output), **more}, output, as_json)


def compare_text(
    text: Annotated[str, typer.Argument(help="The sentence or document.")],
    model: TextModelName = BUNDLED_TEXT_MODEL,
    target: Targets = None,
    top_k: TopK = None,
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
        methods, where = method_names(method or DEFAULT_COMPARISON), to_device(device)

        from captum_transformer_lrp.models import load_text_model
        from captum_transformer_lrp.results.text import explain_text

        loaded = fingerprinted(load_text_model(model, trust_remote_code=trust_remote_code))
        loaded.model.to(where)
        with progress_bar("methods", len(methods)) as advance:
            found = explain_text(
                loaded, None, text, target=target, method=methods, **how_many(top_k, 2),
                special_tokens=special_tokens, on_progress=advance,
            )  # fmt: skip
        for file in [output, *maps_beside(output, maps)]:
            found.save(file, lang=lang)
        result = {"text": found.subject, **to_json(found, output)}
        for place, each in enumerate(result["explained"]):
            each["words"] = {
                method: [[word.text, word.attribution] for word in explanations[place].words]
                for method, explanations in found.explanations.items()
            }
        _tell(found, result, output, as_json)


def _tell(found: OfClasses, result: dict[str, Any], output: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    print_predictions(Console(), found.predictions, found.explained)
    typer.echo(printable(f"wrote {output}"))


def _correlations(found: ImageResult) -> dict[str, dict[str, float | None]]:
    """How alike each method's maps are: 1 is a method that cannot tell the classes apart."""
    first, *others = class_labels(found.explained)
    return {
        method: {label: _correlation(of_class[first], of_class[label]) for label in others}
        for method, of_class in found.maps.items()
    }


def _correlation(one: Any, other: Any) -> float | None:
    """Pearson's, over pixels; none where a map is constant."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        value = float(np.corrcoef(one.ravel(), other.ravel(), dtype=np.float64)[0, 1])
    return None if math.isnan(value) else value
