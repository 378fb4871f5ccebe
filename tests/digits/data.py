"""Pictures of two different digits, made from scikit-learn's, and models to train on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

SIDE, DIGIT, STEP, CLASSES = 32, 12, 4, 10
HELD_OUT = 360
"""Of the 1797 digits, those that no training picture shows."""


@dataclass
class Pictures:
    """Two digits of different classes side by side or one above the other, anywhere.

    Args:
        images: (N, 1, 32, 32), 0 to 1, with some noise.
        classes: (N, 2), what the two digits are.
        corners: (N, 2, 2), row and column of each digit's upper left corner.
    """

    images: Tensor
    classes: Tensor
    corners: Tensor

    @property
    def labels(self) -> Tensor:
        """(N, 10), 1 for the two classes that are there."""
        return torch.zeros(len(self.images), CLASSES).scatter(1, self.classes, 1.0)

    def first(self, count: int) -> Pictures:
        """The first so many of them."""
        return Pictures(self.images[:count], self.classes[:count], self.corners[:count])

    def box(self, which: int) -> Tensor:
        """(N, 32, 32), where digit ``which`` of each picture is."""
        place = torch.arange(SIDE)
        inside = (place >= self.corners[:, which, :, None]) & (
            place < self.corners[:, which, :, None] + DIGIT
        )
        return inside[:, 0, :, None] & inside[:, 1, None, :]


def digits(held_out: bool) -> tuple[Tensor, Tensor]:
    """Scikit-learn's digits, 12 pixels wide, and their classes."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    images = F.interpolate(images, size=(DIGIT, DIGIT), mode="bilinear", align_corners=False)
    part = slice(None, HELD_OUT) if held_out else slice(HELD_OUT, None)
    return images[part, 0], torch.tensor(found.target)[part]


def draw(count: int, generator: torch.Generator, *, held_out: bool) -> Pictures:
    """Random pictures."""
    shapes, targets = digits(held_out)

    def random(high: int, *size: int) -> Tensor:
        return torch.randint(high, size, generator=generator)

    first = random(len(shapes), count)
    second = random(len(shapes), count)
    while bool((same := targets[first] == targets[second]).any()):
        second = torch.where(same, random(len(shapes), count), second)
    # Along one axis the two digits lie apart, along the other anywhere, in steps of a patch.
    cuts = STEP * random((SIDE - 2 * DIGIT) // STEP + 1, count, 2).sort(1).values
    apart = torch.stack([cuts[:, 0], cuts[:, 1] + DIGIT], 1)
    anywhere = STEP * random((SIDE - DIGIT) // STEP + 1, count, 2)
    corners = torch.stack([apart, anywhere], 2)
    turned = random(2, count).bool()
    corners[turned] = corners[turned].flip(2)
    swapped = random(2, count).bool()
    corners[swapped] = corners[swapped].flip(1)
    images = 0.1 * torch.rand(count, SIDE, SIDE, generator=generator)
    for image, pair, places in zip(images, zip(first, second, strict=True), corners, strict=True):
        for digit, (row, column) in zip(pair, places.tolist(), strict=True):
            image[row : row + DIGIT, column : column + DIGIT] += shapes[digit]
    classes = torch.stack([targets[first], targets[second]], 1)
    return Pictures(images.unsqueeze(1), classes, corners)


def vit(**options: object) -> nn.Module:
    return VisionTransformer(
        img_size=SIDE,
        patch_size=4,
        in_chans=1,
        num_classes=CLASSES,
        embed_dim=32,
        depth=4,
        num_heads=4,
        mlp_ratio=2,
        **options,
    )


def swin() -> nn.Module:
    return SwinTransformer(
        img_size=SIDE,
        patch_size=2,
        in_chans=1,
        num_classes=CLASSES,
        embed_dim=20,
        depths=(2, 2),
        num_heads=(2, 4),
        window_size=4,
        mlp_ratio=2,
        drop_path_rate=0.0,
    )


MODELS = {
    "vit": vit,
    "mean_pooled_vit": lambda: vit(global_pool="avg", class_token=False),
    "swin": swin,
}
FOLDER = Path(__file__).parent


def checkpoint(name: str) -> Path:
    return FOLDER / f"{name}.safetensors"


def trained(name: str) -> nn.Module:
    """A model with the weights that ``python -m tests.digits.train`` found."""
    model = MODELS[name]()
    model.load_state_dict(load_file(checkpoint(name)))
    return model.eval()
