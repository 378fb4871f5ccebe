"""Draws the pictures of the README; run as ``python docs/figures.py``."""

from __future__ import annotations

from pathlib import Path

import torch

from captum_transformer_lrp import compare, examples
from captum_transformer_lrp.visualization import method_class_grid

IMAGES = Path(__file__).parent / "images"


def main() -> None:
    """Explain a bundled scene of two animals by the paper's methods and IntegratedGradients."""
    torch.manual_seed(0)
    model = examples.scene_classifier()
    scene = next(scene for scene in examples.scenes() if scene.name == "elephant-zebra")
    maps = compare(
        model,
        examples.preprocess(scene.image).unsqueeze(0),
        {name: model.class_names.index(name) for name in scene.labels},
        [
            "transformer_attribution",
            "attention_rollout",
            "raw_attention",
            "attention_gradcam",
            "partial_lrp",
            "transformer_lrp",
            "integrated_gradients",
        ],
    )
    figure = method_class_grid(maps, scene.image, image_title="scene")
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / "methods.png", dpi=64)


if __name__ == "__main__":
    main()
