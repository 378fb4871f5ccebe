"""Which part of a photo a model sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the photo, counted from its upper left corner."""

# How far the preprocessing may be from a plain crop and resize, as a share of the photo's side.
_TOLERANCE = 0.03


def seen_part(see: Callable[[Image.Image], Tensor], size: tuple[int, int]) -> Box | None:
    """The part of a photo that is left by a model's preprocessing.

    It is found by preprocessing a picture whose red says how far right a pixel is, and whose green
    says how far down: no library has to tell how it crops.

    Args:
        see: from a photo to what the model sees, (3, H, W), 0 to 1.
        size: the photo's width and height.

    Returns:
        None where the preprocessing is not a crop and a resize.

    Example:
        >>> import torch
        >>> def right_half(photo):
        ...     cropped = photo.crop((photo.width // 2, 0, photo.width, photo.height))
        ...     return torch.from_numpy(np.asarray(cropped.resize((8, 8))) / 255).movedim(-1, 0)
        >>> [round(side) for side in seen_part(right_half, (100, 50))]
        [50, 0, 100, 50]
    """
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = 255 * (np.arange(width) + 0.5) / width
    picture[..., 1] = (255 * (np.arange(height) + 0.5) / height)[:, None]
    # Half a step of 8 bits, which rounding down takes away.
    seen = see(Image.fromarray(picture)).double().cpu().numpy() + 0.5 / 255
    across = _line(seen[0].mean(0), seen[0].mean(0) - seen[0])
    down = _line(seen[1].mean(1), seen[1].mean(1)[:, None] - seen[1])
    if across is None or down is None:
        return None
    (left, right), (top, bottom) = np.clip(across, 0, 1) * width, np.clip(down, 0, 1) * height
    return float(left), float(top), float(right), float(bottom)


def _line(
    positions: npt.NDArray[np.float64], deviations: npt.NDArray[np.float64]
) -> tuple[float, float] | None:
    """Where a side of what is seen begins and ends, if positions lie on a straight line."""
    centres = np.arange(len(positions)) + 0.5
    slope, start = np.polyfit(centres, positions, 1)
    misfit = np.abs(start + slope * centres - positions).max()
    if max(misfit, np.abs(deviations).max()) > _TOLERANCE or slope <= 0:
        return None
    return start, start + slope * len(positions)
