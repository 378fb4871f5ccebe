"""`captum-transformer-lrp explain image`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageOps
from rich.console import Console

from captum_transformer_lrp.cli.common import (
    Method,
    UsageError,
    attribute,
    check_output,
    choose,
    clear_errors,
    predict,
    print_predictions,
    to_device,
)
from captum_transformer_lrp.cli.options import Device, Json, MethodOption, Targets

FIGURE_SUFFIXES = ("png", "jpg", "jpeg", "pdf", "svg", "webp")


def explain_image(
    photo: Annotated[Path, typer.Argument(help="The image file.")],
    model: Annotated[
        str, typer.Option(help="A timm name, a Hugging Face name, or a folder.")
    ] = "deit_tiny_patch16_224",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights to use instead of downloaded ones.")
    ] = None,
    target: Targets = None,
    top_k: Annotated[
        int, typer.Option(min=1, help="How many classes to explain where no target is given.")
    ] = 3,
    method: MethodOption = Method.TRANSFORMER_ATTRIBUTION,
    output: Annotated[Path, typer.Option(help="The figure to write.")] = Path("explanation.png"),
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Show which pixels speak for a class: the photo, then one overlay per explained class."""
    with clear_errors():
        # Loading a model takes seconds; mistakes are told before.
        check_output(output, FIGURE_SUFFIXES)
        where = to_device(device)
        picture = read_photo(photo)

        from captum_transformer_lrp.models import load_image_model
        from captum_transformer_lrp.visualization import class_grid

        loaded = load_image_model(model, checkpoint=checkpoint)
        classifier = loaded.model.to(where)
        pixels = loaded.preprocess(picture).to(where)
        predictions = predict(classifier, pixels[None], {}, loaded.class_names)
        explained = choose(predictions, target, top_k, loaded.class_names)
        maps = attribute(method, classifier, pixels[None], explained, {})
        figure = class_grid(
            loaded.visible(pixels),
            maps,
            [each.name for each in explained],
            [each.probability for each in explained],
            image_title="what the model sees",
        )
        figure.savefig(output, dpi=150)

        if as_json:
            result = {
                "image": str(photo),
                "model": model,
                "method": method.value,
                "predictions": [each.as_json() for each in predictions[:5]],
                "explained": [each.as_json() for each in explained],
                "output": str(output),
            }
            typer.echo(json.dumps(result, indent=2))
            return
        print_predictions(Console(), predictions, explained)
        typer.echo(f"wrote {output}")


def read_photo(path: Path) -> Image.Image:
    """An image file as RGB, turned upright as its camera says.

    Raises:
        UsageError: where there is no such file.
        ValueError: where the file is no image, or a damaged one.
    """
    if not path.is_file():
        raise UsageError(f"found no image file at {path}")
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path} as an image ({error})") from error
