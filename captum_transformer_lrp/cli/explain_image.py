"""`captum-transformer-lrp explain image`."""

from __future__ import annotations

import json
from dataclasses import replace
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
)
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
    how_many,
    to_device,
    to_frames,
)
from captum_transformer_lrp.cli.outputs import (
    check_no_input,
    check_output,
    check_output_folder,
    output_names,
)
from captum_transformer_lrp.cli.predictions import as_json as to_json
from captum_transformer_lrp.cli.predictions import print_predictions
from captum_transformer_lrp.cli.provenance import fingerprinted, maps_beside
from captum_transformer_lrp.names import DEFAULT_METHOD
from captum_transformer_lrp.photos import MAX_PIXELS, read_photo
from captum_transformer_lrp.printing import printable
from captum_transformer_lrp.result import FIGURE_SUFFIXES

if TYPE_CHECKING:
    from PIL import Image

    from captum_transformer_lrp.results.image import ImageResult


def explain_image_command(
    photos: Annotated[
        list[Path], typer.Argument(metavar="PHOTO...", help="Image files, or folders of them.")
    ],
    model: ImageModelName = DEFAULT_IMAGE_MODEL,
    checkpoint: Checkpoint = None,
    target: Targets = None,
    top_k: TopK = None,
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
        where = to_device(device)

        from captum_transformer_lrp.models import load_image_model
        from captum_transformer_lrp.results.image import explain_image

        loaded = load_image_model(model, checkpoint=checkpoint, trust_remote_code=trust_remote_code)
        loaded = fingerprinted(loaded, checkpoint)
        loaded.model.to(where)

        def explained(
            subject: Photo, picture: Image.Image, figure: Path
        ) -> tuple[ImageResult, dict[str, Any]]:
            found = explain_image(
                loaded, picture, target=target, method=method, **how_many(top_k, 3)
            )
            found = replace(found, subject=str(subject), source=subject.path)
            for output in [figure, *maps_beside(figure, maps)]:
                found.save(output)
            return found, {"image": str(subject), "method": method, **to_json(found, figure)}

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
