"""`captum-transformer-lrp compare image` and `compare text`: methods beside each other."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captum_transformer_lrp.cli import options
from captum_transformer_lrp.cli.batch import progress_bar
from captum_transformer_lrp.cli.errors import clear_errors
from captum_transformer_lrp.cli.files import Photo, check_given
from captum_transformer_lrp.cli.outputs import check_output, planned, ready, save
from captum_transformer_lrp.cli.predictions import as_json as to_json
from captum_transformer_lrp.cli.predictions import tell
from captum_transformer_lrp.names import BUNDLED_TEXT_MODEL, DEFAULT_COMPARISON
from captum_transformer_lrp.photos import MAX_PIXELS, read_photo
from captum_transformer_lrp.printing import check_text
from captum_transformer_lrp.result import FIGURE_SUFFIXES, PAGE_SUFFIXES
from captum_transformer_lrp.results.classes import class_labels, method_names

if TYPE_CHECKING:
    from captum_transformer_lrp.results.image import ImageResult


@clear_errors()
def compare_image(
    photo: Annotated[Path, typer.Argument(help="The image file.")],
    model: options.ImageModelName = options.DEFAULT_IMAGE_MODEL,
    checkpoint: options.Checkpoint = None,
    target: options.Targets = None,
    top_k: options.TopK = None,
    method: options.MethodOptions = None,
    output: Annotated[Path, typer.Option(help="The figure to write.")] = Path("comparison.png"),
    maps: options.Maps = None,
    frame: options.Frame = None,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    trust_remote_code: options.TrustRemoteCode = False,
    device: options.Device = "cpu",
    as_json: options.Json = False,
) -> None:
    """Draw a table of overlays: one row per method, one column per class.

    **Examples**

    - `captum-transformer-lrp compare image photo.jpg --target tabby --target "golden retriever"`

    - `captum-transformer-lrp compare image photo.png --model bundled/scenes
      --method transformer_attribution --method integrated_gradients`
    """
    check_given(photo, "image")
    planned(output, FIGURE_SUFFIXES, (), [photo, checkpoint], maps)
    methods, where = method_names(method or DEFAULT_COMPARISON), options.to_device(device)
    picture = read_photo(photo, frame=frame, max_pixels=max_pixels)

    from captum_transformer_lrp.models import load_image_model
    from captum_transformer_lrp.results.image import explain_image

    loaded = load_image_model(model, checkpoint=checkpoint, trust_remote_code=trust_remote_code)
    loaded = ready(loaded, where, checkpoint)
    with progress_bar("methods", len(methods)) as advance:
        found = explain_image(
            loaded,
            picture,
            target=target,
            method=methods,
            **options.how_many(top_k, 2),
            on_progress=advance,
        )
    found = replace(found, subject=str(Photo(photo, frame)), source=photo)
    save(found, output, maps)
    more = {"correlation_with_first_class": _correlations(found)} if as_json else {}
    tell(found, {"image": found.subject, **to_json(found, output), **more}, output, as_json)


@clear_errors()
def compare_text(
    text: Annotated[str, typer.Argument(help="The sentence or document.")],
    model: options.TextModelName = BUNDLED_TEXT_MODEL,
    target: options.Targets = None,
    top_k: options.TopK = None,
    method: options.MethodOptions = None,
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("comparison.html"),
    lang: options.Language = "en",
    special_tokens: options.SpecialTokens = False,
    maps: options.Maps = None,
    trust_remote_code: options.TrustRemoteCode = False,
    device: options.Device = "cpu",
    as_json: options.Json = False,
) -> None:
    """Write a page of the text by each method for each class, its words coloured by relevance.

    **Examples**

    - `captum-transformer-lrp compare text "witty, but a little dull"`

    - `captum-transformer-lrp compare text "not bad" --method transformer_attribution
      --method integrated_gradients --json`
    """
    check_output(output, PAGE_SUFFIXES)
    check_text(text)
    methods, where = method_names(method or DEFAULT_COMPARISON), options.to_device(device)

    from captum_transformer_lrp.models import load_text_model
    from captum_transformer_lrp.results.text import explain_text

    loaded = ready(load_text_model(model, trust_remote_code=trust_remote_code), where)
    with progress_bar("methods", len(methods)) as advance:
        found = explain_text(
            loaded, None, text, target=target, method=methods, **options.how_many(top_k, 2),
            special_tokens=special_tokens, on_progress=advance,
        )  # fmt: skip
    save(found, output, maps, lang)
    result = {"text": found.subject, **to_json(found, output)}
    for place, each in enumerate(result["explained"]):
        each["words"] = {
            method: [[word.text, word.attribution] for word in explanations[place].words]
            for method, explanations in found.explanations.items()
        }
    tell(found, result, output, as_json)


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
