"""`captum-transformer-lrp demo`: bundled models explain bundled inputs, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from torch import Tensor

from captum_transformer_lrp.cli.common import (
    Method,
    Prediction,
    UsageError,
    attribute,
    choose,
    clear_errors,
    predict,
)
from captum_transformer_lrp.cli.explain_text import explain_words
from captum_transformer_lrp.models import ImageModel, TextModel, load_image_model
from captum_transformer_lrp.visualization import Picture, TextExplanation, class_grid, report_html
from captum_transformer_lrp.visualization.labels import percent

SENTENCE = "A gorgeous, witty film, though the ending is a little dull."
CAT_CLASSES = ("tabby", "Egyptian cat", "golden retriever")
INTRODUCTION = (
    "Each picture and each text below is explained once per class: bright pixels and coloured "
    "words are those by which the model recognises that class. Relevance is propagated from the "
    "class's logit back through the attention layers of the unmodified model."
)


def demo(
    output: Annotated[Path, typer.Option(help="The folder to write.")] = Path("demo-output"),
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights of deit_tiny_patch16_224: explains scikit-image's cat, too."),
    ] = None,
) -> None:
    """Explain the bundled pictures and a sentence, and write a folder with a report."""
    with clear_errors():
        if output.exists() and not output.is_dir():
            raise UsageError(f"--output {output} is a file, expected a folder")
        output.mkdir(parents=True, exist_ok=True)
        pictures = list(_scenes())
        if checkpoint is not None:
            pictures.append(_cat(checkpoint))
        for number, picture in enumerate(pictures, start=1):
            picture.figure.savefig(output / f"picture-{number:02}.png", dpi=150)
        report = output / "report.html"
        page = report_html(
            pictures, _sentence(), title="What the models look at", introduction=INTRODUCTION
        )
        report.write_text(page, encoding="utf-8")
        typer.echo(f"wrote {report} with {len(pictures)} pictures and a sentence; open it")


def _scenes() -> Iterator[Picture]:
    """The bundled scenes, each explained for the classes that are in it."""
    from captum_transformer_lrp import examples

    model = examples.scene_classifier()
    names = tuple(model.class_names)
    for scene in examples.scenes():
        pixels = examples.preprocess(scene.image)
        predictions = predict(model, pixels[None], {}, names)
        present = [each for each in predictions if each.name in scene.labels]
        # The model sees all of the picture, at its own size.
        photo = torch.from_numpy(scene.image).movedim(-1, 0)
        yield _picture(scene.name, model, photo, pixels, present or predictions[:2])


def _cat(checkpoint: Path) -> Picture:
    """The photo of a cat that scikit-image ships, explained by an ImageNet classifier."""
    if find_spec("skimage") is None:
        raise UsageError("--checkpoint needs scikit-image's photo: pip install scikit-image")
    from skimage.data import chelsea

    loaded: ImageModel = load_image_model("deit_tiny_patch16_224", checkpoint=checkpoint)
    pixels = loaded.preprocess(Image.fromarray(chelsea()))
    predictions = predict(loaded.model, pixels[None], {}, loaded.class_names)
    explained = choose(predictions, CAT_CLASSES, 0, loaded.class_names)
    return _picture("Chelsea, a cat", loaded.model, loaded.visible(pixels), pixels, explained)


def _picture(
    title: str,
    model: torch.nn.Module,
    photo: Tensor,
    pixels: Tensor,
    explained: list[Prediction],
) -> Picture:
    maps = attribute(Method.TRANSFORMER_ATTRIBUTION, model, pixels[None], explained, {})
    figure = class_grid(
        photo,
        maps,
        [each.name for each in explained],
        [each.probability for each in explained],
        image_title="what the model sees",
        columns=2,  # on a phone, more would make the titles too small to read
    )
    classes = ", ".join(f"{each.name} ({percent(each.probability)})" for each in explained)
    alt = f"{title}: the picture, then where the model sees {classes}"
    return Picture(title, figure, alt)


def _sentence() -> list[TextExplanation]:
    from captum_transformer_lrp import examples

    model, tokenizer = examples.sentiment_classifier()
    names = tuple(str(model.config.id2label[index]) for index in range(model.config.num_labels))
    loaded = TextModel("bundled", model, tokenizer, names)
    _, _, explanations = explain_words(
        loaded,
        SENTENCE,
        targets=None,
        top_k=len(names),
        method=Method.TRANSFORMER_ATTRIBUTION,
        device=torch.device("cpu"),
    )
    return explanations
