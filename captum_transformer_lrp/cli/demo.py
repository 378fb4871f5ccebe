"""`captum-transformer-lrp demo`: bundled models explain bundled inputs, without a network."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from PIL import Image

from captum_transformer_lrp.cli.batch import progress_bar
from captum_transformer_lrp.cli.errors import UsageError, clear_errors
from captum_transformer_lrp.cli.outputs import check_output_folder, ready
from captum_transformer_lrp.cli.report import HOW_TO_READ
from captum_transformer_lrp.names import (
    BUNDLED_IMAGE_MODEL,
    BUNDLED_TEXT_MODEL,
    DEFAULT_METHOD,
    OF_THE_PAPER,
)
from captum_transformer_lrp.result import as_footer, write_figure, write_whole
from captum_transformer_lrp.results.classes import method_label, provenance

if TYPE_CHECKING:
    from captum_transformer_lrp.examples import Scene
    from captum_transformer_lrp.results.image import ImageResult
    from captum_transformer_lrp.visualization import Section

SCENE = "elephant-zebra"
SENTENCE = "A gorgeous, witty film, though the ending is a little dull."
CAT_CLASSES = ("tabby", "Egyptian cat", "golden retriever")
OURS = (*OF_THE_PAPER, "attention_flow")
CAPTUMS = ("saliency", "input_x_gradient", "integrated_gradients", "occlusion")
BESIDE = (DEFAULT_METHOD, "integrated_gradients")

INTRODUCTION = (
    f"{HOW_TO_READ} Everything was computed just now, by two small models that come with the "
    "package."
)
EVERY_METHOD = (
    "One picture with an elephant and a zebra, explained for both by each method. Look along a "
    "row: a method that tells the classes apart lights up the elephant in one column and the zebra "
    "in the other."
)
BESIDE_TEXT = (
    "The same picture by the paper's method and by Captum's IntegratedGradients, which takes the "
    "same arguments and gives maps of the same shape. The table says how much of each map, values "
    "below zero left out, lies inside the object that it was asked for, and inside the other one."
)
SENTENCE_TEXT = (
    "One sentence, explained for both sentiments by each method. The darker a word, the more it "
    "speaks for the class; blue words speak against it."
)


@clear_errors()
def demo(
    output: Annotated[Path, typer.Option(help="The folder to write.")] = Path("demo-output"),
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights of deit_tiny_patch16_224: explains scikit-image's cat, too."),
    ] = None,
) -> None:
    """Explain the bundled pictures and a sentence, and write a folder with a report.

    **Example**

    - `captum-transformer-lrp demo --output demo-output`
    """
    check_output_folder(output)

    from captum_transformer_lrp import examples
    from captum_transformer_lrp.models import load_image_model, load_text_model
    from captum_transformer_lrp.results.image import explain_image
    from captum_transformer_lrp.results.text import explain_text
    from captum_transformer_lrp.visualization import report_html

    images = ready(load_image_model(BUNDLED_IMAGE_MODEL), None)
    texts = ready(load_text_model(BUNDLED_TEXT_MODEL), None)
    scenes = {scene.name: scene for scene in examples.scenes()}
    _write_scenes(list(scenes.values()), output / "scenes")
    main_scene = scenes.pop(SCENE)
    methods = (*OURS, *CAPTUMS)
    with progress_bar("explaining", 2 * len(methods) + len(scenes)) as advance:

        def explained(scene: Scene, *methods: str) -> ImageResult:
            return explain_image(
                images, scene.image, target=scene.labels, method=methods, on_progress=advance
            )

        found = explained(main_scene, *methods)
        sentence = explain_text(texts, None, SENTENCE, top_k=2, method=methods, on_progress=advance)
        sections = [
            found.section("One picture, two classes, every method", EVERY_METHOD),
            _beside_integrated_gradients(main_scene, found),
            sentence.section("One sentence, two sentiments", SENTENCE_TEXT),
            *(explained(one, DEFAULT_METHOD).section(one.name) for one in scenes.values()),
        ]
    if checkpoint is not None:
        sections.append(_cat(checkpoint))
    for section in sections:
        name = "-".join(re.findall(r"\w+", section.title.lower()))
        for picture in section.pictures:
            write_figure(output / f"{name}.png", picture.figure)
    footer = as_footer(
        provenance(images, methods, main_scene.labels), provenance(texts, methods, top_k=2)
    )
    page = report_html(
        sections, title="What the models look at", introduction=INTRODUCTION, footer=footer
    )
    report = output / "report.html"
    write_whole(report, page)
    typer.echo(f"wrote {report}: open it in a browser")
    typer.echo(f"the pictures are in {output / 'scenes'}; try one yourself:")
    scene = shlex.quote(str(output / "scenes" / "cat-dog.png"))
    typer.echo(
        f"  {_this_program()} explain image {scene} --model {BUNDLED_IMAGE_MODEL} "
        "--target cat --target dog"
    )


def _this_program() -> str:
    """How the program can be called again: by its path where the shell finds no such name."""
    name, called = "captum-transformer-lrp", Path(sys.argv[0])
    found = shutil.which(name)
    if called.name != name or (found is not None and called.exists() and called.samefile(found)):
        return name
    return shlex.quote(str(called))


def _write_scenes(scenes: Sequence[Scene], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for scene in scenes:
        file = io.BytesIO()
        Image.fromarray(scene.image).save(file, "PNG")
        write_whole(folder / f"{scene.name}.png", file.getvalue())


def _beside_integrated_gradients(scene: Scene, found: ImageResult) -> Section:
    from captum_transformer_lrp.visualization import Section, Table

    maps = {method: found.maps[method] for method in BESIDE}
    section = replace(found, maps=maps).section("Beside IntegratedGradients")
    table = Table(
        "Share of the map inside the object that was asked for, and inside the other one; – is a "
        "map that is zero everywhere",
        ["method", *(f"{label}: in {kind}" for label in scene.labels for kind in ("it", "other"))],
        [
            [method_label(method), *_shares(scene, of_class)]
            for method, of_class in found.maps.items()
        ],
    )
    return Section(section.title, BESIDE_TEXT, section.pictures, tables=[table])


def _shares(scene: Scene, of_class: Mapping[str, Any]) -> list[str]:
    """For each of the two classes, what lies inside its own mask and inside the other's."""
    found = []
    for label in scene.labels:
        positive = of_class[label].clip(min=0)
        (other,) = (name for name in scene.labels if name != label)
        for mask in (scene.masks[label], scene.masks[other]):
            total = positive.sum()
            # Grad-CAM's map of a class can be zero everywhere.
            found.append(f"{100 * positive[mask].sum() / total:.0f} %" if total else "–")
    return found


def _cat(checkpoint: Path) -> Section:
    """The photo of a cat that scikit-image ships, explained by an ImageNet classifier."""
    if find_spec("skimage") is None:
        raise UsageError("--checkpoint needs scikit-image's photo: pip install scikit-image")
    from skimage.data import chelsea

    from captum_transformer_lrp.models import load_image_model
    from captum_transformer_lrp.results.image import explain_image

    loaded = load_image_model("deit_tiny_patch16_224", checkpoint=checkpoint)
    return explain_image(loaded, chelsea(), target=CAT_CLASSES).section("Chelsea, a cat")
