"""`captum-transformer-lrp explain image`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captum_transformer_lrp.cli import options
from captum_transformer_lrp.cli.batch import each_of, finish
from captum_transformer_lrp.cli.errors import clear_errors
from captum_transformer_lrp.cli.files import IMAGE_SUFFIXES, Photo, gather, photos_in
from captum_transformer_lrp.cli.outputs import planned, ready, save
from captum_transformer_lrp.cli.predictions import as_json as to_json
from captum_transformer_lrp.cli.predictions import tell
from captum_transformer_lrp.names import DEFAULT_METHOD
from captum_transformer_lrp.photos import MAX_PIXELS, read_photo
from captum_transformer_lrp.result import FIGURE_SUFFIXES

if TYPE_CHECKING:
    from PIL import Image

    from captum_transformer_lrp.results.image import ImageResult


@clear_errors()
def explain_image_command(
    photos: Annotated[
        list[Path], typer.Argument(metavar="PHOTO...", help="Image files, or folders of them.")
    ],
    model: options.ImageModelName = options.DEFAULT_IMAGE_MODEL,
    checkpoint: options.Checkpoint = None,
    target: options.Targets = None,
    top_k: options.TopK = None,
    method: options.MethodOption = DEFAULT_METHOD,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The figure to write; for several photos, the folder.",
            show_default="explanation.png or explanations",
        ),
    ] = None,
    maps: options.Maps = None,
    frame: options.Frames = None,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    trust_remote_code: options.TrustRemoteCode = False,
    device: options.Device = "cpu",
    as_json: options.Json = False,
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
    # Loading a model takes seconds; mistakes are told before.
    frames = options.to_frames(frame)
    files = gather(photos, IMAGE_SUFFIXES, "image")
    subjects = photos_in(files, frames, max_pixels=max_pixels)
    one_file = len(photos) == 1 and not photos[0].is_dir()
    single = one_file and (frames is None or len(frames) == 1)
    named = [] if single else [(subject.path, subject.name) for subject in subjects]
    taken = [*(subject.path for subject in subjects), checkpoint]
    output, figures = planned(output, FIGURE_SUFFIXES, named, taken, maps)
    where = options.to_device(device)

    def read(subject: Photo) -> Image.Image:
        return read_photo(subject.path, frame=subject.frame, max_pixels=max_pixels)

    first = read(subjects[0]) if single else None

    from captum_transformer_lrp.models import load_image_model
    from captum_transformer_lrp.results.image import explain_image

    loaded = load_image_model(model, checkpoint=checkpoint, trust_remote_code=trust_remote_code)
    loaded = ready(loaded, where, checkpoint)
    figure_of = dict(zip(subjects, figures, strict=True))

    def explained(subject: Photo) -> tuple[ImageResult, dict[str, Any]]:
        found = explain_image(
            loaded,
            first or read(subject),
            target=target,
            method=method,
            **options.how_many(top_k, 3),
        )
        found = replace(found, subject=str(subject), source=subject.path)
        save(found, figure_of[subject], maps)
        result = {"image": str(subject), "method": method}
        return found, {**result, **to_json(found, figure_of[subject])}

    if single:
        tell(*explained(subjects[0]), output, as_json)
        return
    found, failed = each_of(subjects, lambda subject: explained(subject)[1], "explaining")
    finish(found, failed, output, {"results": found, "failed": failed} if as_json else None)
