"""`captum-transformer-lrp explain image`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from captum_transformer_lrp.cli.batch import each_of, finish
from captum_transformer_lrp.cli.errors import clear_errors
from captum_transformer_lrp.cli.files import (
    FIGURE_SUFFIXES,
    IMAGE_SUFFIXES,
    check_output,
    check_output_folder,
    gather,
    read_photo,
)
from captum_transformer_lrp.cli.methods import DEFAULT_METHOD
from captum_transformer_lrp.cli.options import (
    DEFAULT_IMAGE_MODEL,
    Checkpoint,
    Device,
    ImageModelName,
    Json,
    MethodOption,
    Targets,
    TopK,
    to_device,
)
from captum_transformer_lrp.cli.predictions import print_predictions
from captum_transformer_lrp.cli.subjects import ExplainedImage, Request, explain_image_by

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def explain_image(
    photos: Annotated[
        list[Path], typer.Argument(metavar="PHOTO...", help="Image files, or folders of them.")
    ],
    model: ImageModelName = DEFAULT_IMAGE_MODEL,
    checkpoint: Checkpoint = None,
    target: Targets = None,
    top_k: TopK = 3,
    method: MethodOption = DEFAULT_METHOD,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The figure to write; for several photos, the folder.",
            show_default="explanation.png or explanations",
        ),
    ] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Show which pixels speak for a class: the photo, then one overlay per explained class.

    With a folder or several photos, one figure each. A file that cannot be read is named, the
    others are explained, and the exit code is 1.

    **Examples**

    - `captum-transformer-lrp explain image photo.jpg --top-k 2 --output cat.png`

    - `captum-transformer-lrp explain image photo.jpg --target tabby --target "golden retriever"`

    - `captum-transformer-lrp explain image photos/ --model bundled/scenes --output maps/`
    """
    with clear_errors():
        # Loading a model takes seconds; mistakes are told before.
        files = gather(photos, IMAGE_SUFFIXES, "image")
        single = len(photos) == 1 and not photos[0].is_dir()
        if single:
            output = output or Path("explanation.png")
            check_output(output, FIGURE_SUFFIXES, files)
            read_photo(files[0])
        else:
            output = output or Path("explanations")
            check_output_folder(output, [file.parent for file in files])
        request = Request([method], target, top_k, to_device(device))

        from captum_transformer_lrp.models import load_image_model

        loaded = load_image_model(model, checkpoint=checkpoint)

        def explained(file: Path, figure: Path) -> tuple[ExplainedImage, dict[str, Any]]:
            found = explain_image_by(loaded, read_photo(file), request)
            _figure(found).savefig(figure, dpi=150)
            result = {
                "image": str(file),
                "model": model,
                "method": method,
                "predictions": [each.as_json() for each in found.predictions[:5]],
                "explained": [each.as_json() for each in found.explained],
                "output": str(figure),
            }
            return found, result

        if single:
            found, result = explained(files[0], output)
            if as_json:
                typer.echo(json.dumps(result, indent=2))
                return
            print_predictions(Console(), found.predictions, found.explained)
            typer.echo(f"wrote {output}")
            return
        folder = output
        results, failed = each_of(
            files, lambda file: explained(file, folder / f"{file.name}.png")[1], "explaining"
        )
        if as_json:
            typer.echo(json.dumps({"results": results, "failed": failed}, indent=2))
        finish(results, failed, folder, as_json)


def _figure(found: ExplainedImage) -> Figure:
    from captum_transformer_lrp.visualization import class_grid

    (maps,) = found.drawn_maps().values()
    return class_grid(
        found.drawn_photo(),
        list(maps.values()),
        list(maps),
        [each.probability for each in found.explained],
        image_title=found.photo_title(),
        panel_inches=3.2,
    )
