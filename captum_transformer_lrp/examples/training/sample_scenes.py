"""Draw the scenes that ship with the package.

    python -m captum_transformer_lrp.examples.training.sample_scenes --output FOLDER

writes each scene as `name.png`, its masks as `name.mask.png` (0 is background, 1 the first label,
2 the second) and the list of them as `scenes.json`. What is where is chosen by hand, so that a
reader sees at a glance what there is to explain; background and scenery are drawn from the seed.
`--sheet FILE --number N` instead writes N random scenes of one object in one JPEG, and their
labels beside it: a small test set.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from captum_transformer_lrp.examples.training.scene_generator import (
    CLASSES,
    DEFAULT_FONT,
    MAX_OBJECTS,
    Scenes,
    draw_backgrounds,
    draw_placement,
    draw_scenes,
    load_sprites,
    render,
)


@dataclass(frozen=True)
class Composition:
    """A scene composed by hand.

    Attributes:
        seed: of the background and the scenery.
        objects: label, x and y of the centre, and longest side, in pixels.
    """

    seed: int
    objects: tuple[tuple[str, float, float, float], ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of the objects."""
        return tuple(label for label, *_ in self.objects)

    @property
    def name(self) -> str:
        """The labels, fit for a file name."""
        return "-".join(self.labels).replace(" ", "_")


COMPOSITIONS = (
    Composition(101, (("elephant", 29, 56, 52), ("zebra", 73, 38, 42))),
    Composition(202, (("cat", 27, 60, 46), ("dog", 69, 44, 50))),
    Composition(307, (("car", 30, 66, 50), ("bicycle", 68, 30, 46))),
    Composition(405, (("pizza", 30, 34, 46), ("strawberry", 68, 64, 40))),
    Composition(501, (("rabbit", 66, 62, 46), ("carrot", 26, 34, 38))),
    Composition(600, (("sailboat", 28, 62, 44), ("penguin", 72, 66, 40), ("airplane", 62, 22, 38))),
    Composition(707, (("horse", 50, 52, 64),)),
    Composition(806, (("butterfly", 44, 46, 58),)),
    Composition(909, (("tractor", 54, 58, 56),)),
    Composition(1009, (("crocodile", 46, 50, 62),)),
)


def compose(composition: Composition, sprites: Tensor) -> Scenes:
    """Draw a composed scene, on the CPU, as a batch of one."""
    generator = torch.Generator().manual_seed(composition.seed)
    count = len(composition.objects)
    placement = draw_placement(1, generator, objects=count)
    # The objects are the last slots but for those that stay empty.
    first = placement.sprite.shape[1] - MAX_OBJECTS
    for slot, (label, x, y, size) in enumerate(composition.objects, start=first):
        placement.sprite[0, slot] = list(CLASSES).index(label)
        placement.centre[0, slot] = torch.tensor([x, y])
        placement.size[0, slot] = size
        placement.gain[0, slot] = 1.0
        placement.rotation[0, slot] /= 3
        placement.stretch[0, slot] = 0.0
    return render(placement, sprites, draw_backgrounds(1, generator), generator)


def to_bytes(images: Tensor) -> npt.NDArray[np.uint8]:
    """From float (N, 3, H, W) in [0, 1] to uint8 (N, H, W, 3)."""
    pixels: npt.NDArray[np.uint8] = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return pixels


def write_scenes(folder: Path, sprites: Tensor) -> None:
    """Write all compositions."""
    folder.mkdir(parents=True, exist_ok=True)
    for composition in COMPOSITIONS:
        scene = compose(composition, sprites)
        numbers = torch.zeros(scene.masks.shape[2:], dtype=torch.uint8)
        for number, mask in enumerate(scene.masks[0, : len(composition.labels)], start=1):
            numbers[mask] = number
        name = composition.name
        Image.fromarray(to_bytes(scene.images)[0]).save(folder / f"{name}.png", optimize=True)
        Image.fromarray(numbers.numpy()).save(folder / f"{name}.mask.png", optimize=True)
    entries = [{"name": one.name, "labels": one.labels} for one in COMPOSITIONS]
    (folder / "scenes.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def write_sheet(file: Path, sprites: Tensor, number: int, seed: int) -> None:
    """Write random scenes of one object, eight in a row, and their labels as JSON."""
    generator = torch.Generator().manual_seed(seed)
    scenes = draw_scenes(number, sprites, generator, objects=1)
    rows = to_bytes(scenes.images).reshape(math.ceil(number / 8), 8, 96, 96, 3)
    sheet = rows.transpose(0, 2, 1, 3, 4).reshape(-1, 8 * 96, 3)
    Image.fromarray(sheet).save(file, quality=85)
    names = list(CLASSES)
    labels = [names[index] for index in scenes.classes[:, 0].tolist()]
    file.with_suffix(".json").write_text(json.dumps(labels) + "\n", encoding="utf-8")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Draw the scenes that ship with the package.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", type=Path, help="write the sample scenes to this folder")
    what.add_argument("--sheet", type=Path, help="write random scenes to this JPEG file")
    parser.add_argument("--number", type=int, default=64, help="of scenes on a sheet, 8 a row")
    parser.add_argument("--seed", type=int, default=2_000_003, help="of a sheet")
    parser.add_argument("--font", type=Path, default=DEFAULT_FONT, help="NotoColorEmoji.ttf")
    arguments = parser.parse_args()

    sprites = load_sprites(arguments.font)
    if arguments.output:
        write_scenes(arguments.output, sprites)
    else:
        write_sheet(arguments.sheet, sprites, arguments.number, arguments.seed)


if __name__ == "__main__":
    main()
