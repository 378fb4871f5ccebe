"""From what callers hold (tensors, arrays, PIL images) to the arrays that are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

FloatArray: TypeAlias = npt.NDArray[np.float64]
ArrayLike: TypeAlias = torch.Tensor | npt.NDArray[Any] | Sequence[Any]
ImageLike: TypeAlias = Image.Image | torch.Tensor | npt.NDArray[Any]


def to_array(values: ArrayLike, what: str = "the attribution") -> FloatArray:
    """Any numbers, on any device, as a float64 array; NaN and infinity are an error.

    >>> to_array(torch.ones(2, dtype=torch.bfloat16))
    array([1., 1.])
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(
            f"{what} has {np.count_nonzero(~np.isfinite(array))} values that are NaN or "
            "infinite, expected finite numbers: check the model's inputs and weights for NaN"
        )
    return array


def to_map(attribution: ArrayLike) -> FloatArray:
    """The relevance map (H, W) of one image's attribution: the sum over its channels.

    Args:
        attribution: (H, W), (C, H, W) or (1, C, H, W); a NumPy array may be (H, W, C) with C of 1
            or 3, as `captum.attr.visualization` has it.

    >>> to_map(torch.ones(1, 3, 2, 2))
    array([[3., 3.],
           [3., 3.]])
    """
    array = to_array(attribution)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim == 3:
        first, _, last = (size in (1, 3) for size in array.shape)
        channels_last = isinstance(attribution, np.ndarray) and last and not first
        array = array.sum(axis=-1 if channels_last else 0)
    if array.ndim != 2 or not array.size:
        raise ValueError(
            f"found an attribution of shape {np.shape(attribution)}, expected the one of a single "
            "image, (H, W), (C, H, W) or (1, C, H, W): pick one example of the batch"
        )
    return array


def to_rgb(image: ImageLike) -> FloatArray:
    """An image as (H, W, 3) floats between 0 and 1.

    Args:
        image: a PIL image; a uint8 or float (0 to 1) array (H, W), (H, W, 1) or (H, W, 3);
            or a float tensor (3, H, W) or (1, 3, H, W), 0 to 1.

    >>> to_rgb(np.full((1, 1, 3), 255, dtype=np.uint8))
    array([[[1., 1., 1.]]])
    """
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        if image.ndim == 4 and len(image) == 1:
            image = image[0]
        if image.ndim == 3:
            image = image.movedim(0, -1)
        image = image.numpy() if image.dtype == torch.uint8 else to_array(image, "the image")
    array = to_array(image, "the image") / (255 if image.dtype == np.uint8 else 1)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3) or not array.size:
        raise ValueError(
            f"found an image of shape {image.shape}, expected (H, W, 3) for an array or "
            "(3, H, W) for a tensor"
        )
    if array.min() < 0 or array.max() > 1:
        raise ValueError(
            f"found pixels from {array.min():.3g} to {array.max():.3g}, expected 0 to 1 "
            "(or uint8, 0 to 255): undo the model's normalisation before drawing"
        )
    return np.broadcast_to(array, (*array.shape[:2], 3))
