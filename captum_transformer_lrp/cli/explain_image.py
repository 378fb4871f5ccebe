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
    IMAGE_SUFFIXES,
    Photo,
    gather,
    photos_in,
    read_photo,
)
from captum_transformer_lrp.cli.methods import DEFAULT_METHOD
from captum_transformer_lrp.cli.options import (
    DEFAULT_IMAGE_MODEL,
    Checkpoint,
    Device,
    Frames,
    ImageModelName,
    Json,
    Maps,
    MaxPixels,
    MethodOption,
    Targets,
    TopK,
    TrustRemoteCode,
    to_device,
    to_frames,
)
from captum_transformer_lrp.cli.outputs import (
    FIGURE_SUFFIXES,
    check_no_input,
    check_output,
    check_output_folder,
    output_names,
    write_figure,
)
from captum_transformer_lrp.cli.predictions import print_predictions
from captum_transformer_lrp.cli.provenance import maps_beside, provenance, write_maps
from captum_transformer_lrp.cli.subjects import ExplainedImage, Request, explain_image_by
from captum_transformer_lrp.photos import MAX_PIXELS
from captum_transformer_lrp.printing import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image


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
    maps: Maps = None,
    frame: Frames = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    trust_remote_code: TrustRemoteCode = False,
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

    - `captum-transformer-lrp explain image film.gif --frame all --maps npz`
    """
    with clear_errors():
        # Loading a model takes seconds; mistakes are told before.
        frames = to_frames(frame)
        files = gather(photos, IMAGE_SUFFIXES, "image")
        subjects = photos_in(files, frames, max_pixels=max_pixels)
        inputs = [subject.path for subject in subjects]
        one_file = len(photos) == 1 and not photos[0].is_dir()
        single = one_file and (frames is None or len(frames) == 1)
        if single:
            output = output or Path("explanation.png")
            check_output(output, FIGURE_SUFFIXES, [*inputs, checkpoint])
            figures = [output]
            read = read_photo(subjects[0].path, frame=subjects[0].frame, max_pixels=max_pixels)
        else:
            output = folder = output or Path("explanations")
            check_output_folder(output, [file.parent for file in inputs])
            names = output_names([(subject.path, subject.name) for subject in subjects])
            figures = [folder / f"{name}.png" for name in names]
        numbers = [beside for figure in figures for beside in maps_beside(figure, maps)]
        check_no_input([*figures, *numbers], [*inputs, checkpoint])
        request = Request([method], target, top_k, to_device(device))

        from captum_transformer_lrp.models import load_image_model

        loaded = load_image_model(model, checkpoint=checkpoint, trust_remote_code=trust_remote_code)
        of = provenance(loaded, request, checkpoint)

        def explained(
            subject: Photo, picture: Image.Image, figure: Path
        ) -> tuple[ExplainedImage, dict[str, Any]]:
            found = explain_image_by(loaded, picture, request)
            write_figure(figure, _figure(found))
            for beside in maps_beside(figure, maps):
                write_maps(beside, found, of, str(subject))
            result = {
                "image": str(subject),
                "method": method,
                "predictions": [each.as_json() for each in found.predictions[:5]],
                "explained": [each.as_json() for each in found.explained],
                "output": str(figure),
            }
            return found, of | result

        if single:
            found, result = explained(subjects[0], read, output)
            if as_json:
                typer.echo(json.dumps(result, indent=2))
                return
            print_predictions(Console(), found.predictions, found.explained)
            typer.echo(printable(f"wrote {output}"))
            return

        figure_of = dict(zip(subjects, figures, strict=True))

        def of_one(subject: Photo) -> dict[str, Any]:
            picture = read_photo(subject.path, frame=subject.frame, max_pixels=max_pixels)
            return explained(subject, picture, figure_of[subject])[1]

        results, failed = each_of(subjects, of_one, "explaining")
        if as_json:
            typer.echo(json.dumps({"results": results, "failed": failed}, indent=2))
        finish(results, failed, output, as_json)


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
