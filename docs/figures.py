"""Draws the pictures of the README and of the page on methods: ``python docs/figures.py``.

Those of the README are drawn by its own code, as it is printed there.  ``--checkpoint`` names
weights of DeiT-tiny to use instead of the hub's.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import torch

from captum_transformer_lrp import compare, examples
from captum_transformer_lrp.names import OF_THE_PAPER
from captum_transformer_lrp.visualization import method_class_grid

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
HUB_MODEL = 'timm.create_model("deit_tiny_patch16_224", pretrained=True)'
PICTURES = ("why.png", "words.png")
"""What the code of the README saves, and the README shows."""


def blocks(page: str) -> list[str]:
    """The Python code of a page."""
    return re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def block_of(picture: str) -> str:
    """The block of the README that saves a picture."""
    (found,) = (
        block
        for block in blocks((ROOT / "README.md").read_text(encoding="utf-8"))
        if f'"{picture}"' in block
    )
    return found


def draw_methods(file: Path) -> None:
    """One scene, two classes: a row for each class and a column for each method of the paper."""
    model = examples.scene_classifier()
    scene = next(scene for scene in examples.scenes() if scene.name == "elephant-zebra")
    maps = compare(
        model,
        examples.preprocess(scene.image).unsqueeze(0),
        {name: model.class_names.index(name) for name in scene.labels},
        OF_THE_PAPER,
    )
    by_class = {
        label: {method.replace("_", " "): of_class[label] for method, of_class in maps.items()}
        for label in scene.labels
    }
    method_class_grid(by_class, scene.image, image_title="picture", panel_inches=1.6).savefig(
        file, dpi=80
    )


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=lambda name: Path(name).absolute())
    checkpoint = parser.parse_args().checkpoint
    torch.manual_seed(0)
    IMAGES.mkdir(exist_ok=True)
    os.chdir(IMAGES)
    for picture in PICTURES:
        code = block_of(picture)
        if checkpoint:
            overlay = f', pretrained_cfg_overlay={{"file": {str(checkpoint)!r}}})'
            code = code.replace(HUB_MODEL, HUB_MODEL.removesuffix(")") + overlay)
        exec(code, {})
    draw_methods(IMAGES / "methods.png")


if __name__ == "__main__":
    main()
