"""Takes pixels away in the order of a map: which go, and what comes in their place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final, TypeAlias

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from captum_transformer_lrp.benchmarks.errors import BenchmarkError
from captum_transformer_lrp.benchmarks.images import normalised
from captum_transformer_lrp.models import ImageModel

Without: TypeAlias = Callable[[str, Tensor], Tensor]
"""From a removal's name and masks (N, 1, H, W) of what goes to a photo without it, (N, 3, H, W)."""

STEPS: Final = (10, 20, 30, 40, 50, 60, 70, 80, 90)
"""The shares of the pixels that are removed, in per cent."""


def removal_order(relevance: Tensor, test: str) -> Tensor:
    """Indices (H·W,) of a map's pixels, the most relevant first (``"positive"``) or the least.

    Of equal ones the first in the image comes first.

    Example:
        >>> removal_order(torch.tensor([[1.0, 3.0], [3.0, 0.0]]), "positive").tolist()
        [1, 2, 0, 3]
    """
    return relevance.flatten().sort(stable=True, descending=test == "positive").indices


def removed_first(
    relevance: Tensor, test: str, steps: Sequence[int] = STEPS, cells: int | None = None
) -> Tensor:
    """Masks of the pixels that go first, boolean (steps, 1, H, W).

    Args:
        relevance: (H, W), on the CPU.
        test: as in :func:`removal_order`.
        steps: shares of the pixels, in per cent.
        cells: remove whole cells of a grid with so many along each side, by their mean relevance.
            Then the order of single pixels is of no effect, which else looks faithful by itself:
            any few scattered pixels blind a vision transformer.

    Example:
        >>> relevance = torch.tensor([[9.0, 0.0, 5.0, 5.0], [8.0, 1.0, 6.0, 7.0]])
        >>> removed_first(relevance, "positive", [50]).int().flatten(1).tolist()
        [[1, 0, 0, 0, 1, 0, 1, 1]]
        >>> removed_first(relevance, "positive", [50], cells=2).int().flatten(1).tolist()
        [[0, 0, 1, 1, 0, 0, 1, 1]]
    """
    size = relevance.shape
    if cells is None:
        place, values = torch.arange(relevance.numel()).view(size), relevance.flatten()
    elif cells > min(size):
        raise BenchmarkError(f"found cells={cells}, expected at most {min(size)}, a pixel for each")
    else:
        down, right = (torch.arange(length) * cells // length for length in size)
        place = down[:, None] * cells + right
        sums = place.flatten().bincount(relevance.flatten().double())
        values = sums / place.flatten().bincount()
    order = removal_order(values, test)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    counts = torch.tensor([len(order) * step // 100 for step in steps])
    return (rank[place] < counts[:, None, None])[:, None]


def without(pixels: Tensor, model: ImageModel) -> Without:
    """What takes pixels of a photo (1, 3, H, W) away, which is normalised for the model."""

    @cache
    def instead(removal: str) -> Tensor:
        return removed_pixels(pixels, model, removal)

    def take(removal: str, gone: Tensor) -> Tensor:
        if removal == "road":
            return imputed(pixels, gone)
        return torch.where(gone.to(pixels.device), instead(removal), pixels)

    return take


def removed_pixels(pixels: Tensor, model: ImageModel, removal: str) -> Tensor:
    """What stands in the place of removed pixels, normalised, (1, 3, H, W)."""
    if removal == "black":
        return normalised(torch.zeros_like(pixels), model)
    if removal == "mean":
        return torch.zeros_like(pixels)
    from torchvision.transforms.functional import gaussian_blur

    sigma = min(pixels.shape[-2:]) / 20
    # Odd, and wide enough for three standard deviations to each side; the reflected border that
    # the blur needs must be narrower than the image.
    side = min(2 * int(3 * sigma) + 1, 2 * min(pixels.shape[-2:]) - 1)
    return gaussian_blur(pixels, [side, side], [sigma, sigma])


def imputed(pixels: Tensor, gone: Tensor, noise: float = 0.01) -> Tensor:
    """A photo whose removed pixels are the weighted mean of their neighbours, with noise.

    Neighbours at a side have the weight 1/6, those at a corner 1/12.  The means of all removed
    pixels of a mask are one sparse linear system.  The noise is the same for all methods.

    Reference:
        Rong, Leemann, Borisov, Kasneci, Kasneci, *A Consistent and Efficient Evaluation Strategy
        for Attribution Methods* (ROAD), ICML 2022, section 5.

    Args:
        pixels: normalised, (1, 3, H, W).
        gone: masks, (N, 1, H, W); some pixels must stay.
        noise: its standard deviation, in normalised units.

    Example:
        >>> row = torch.tensor([0.0, 9.0, 9.0, 6.0]).expand(1, 3, 1, 4)
        >>> gone = torch.tensor([False, True, True, False]).view(1, 1, 1, 4)
        >>> imputed(row, gone, noise=0)[0, 0].tolist()
        [[0.0, 2.0, 4.0, 6.0]]
    """
    photo = pixels[0].to("cpu", torch.float64).numpy()
    found = np.stack([_solved(photo, mask) for mask in gone[:, 0].cpu().numpy()])
    drawn = torch.randn(pixels.shape, generator=draws(pixels), dtype=torch.float64)
    noisy = (torch.from_numpy(found) + noise * drawn).to(pixels)
    return torch.where(gone.to(pixels.device), noisy, pixels)


def _solved(photo: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """The photo (C, H, W) with the pixels of the mask (H, W) from their neighbours, float64."""
    if gone.all():
        raise BenchmarkError("found that all pixels are removed, expected that some stay")
    if not gone.any():
        return photo
    weights, away = _neighbours(*gone.shape), gone.ravel()
    of_gone = weights[away]
    totals = sparse.diags(of_gone.sum(1).ravel())
    system = sparse.csc_matrix(totals - of_gone[:, away])
    known = of_gone[:, ~away] @ photo.reshape(len(photo), -1)[:, ~away].T
    symmetric = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.0}
    found = photo.copy()
    found[:, gone] = splu(system, **symmetric, options={"SymmetricMode": True}).solve(known).T
    return found


@cache
def _neighbours(height: int, width: int) -> sparse.csr_array:
    """The weight of each pixel for each other one, (H·W, H·W)."""
    below, beside = (sparse.diags([1.0, 1.0], [-1, 1], (size, size)) for size in (height, width))
    sides = sparse.kronsum(beside, below)  # I ⊗ beside + below ⊗ I
    return sparse.csr_array((sparse.kron(below, beside) + 2 * sides) / 12)


def draws(pixels: Tensor) -> torch.Generator:
    """Random numbers, on the CPU, that depend on a photo alone: every method meets the same."""
    digest = hashlib.sha256(pixels.detach().cpu().double().numpy().tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def area(values: Sequence[float], width: float = 0.1) -> float:
    """The area under a curve by the trapezoid rule, its points ``width`` apart.

    >>> round(area([100.0, 0.0, 0.0]), 6)
    5.0
    """
    return width * (sum(values) - (values[0] + values[-1]) / 2)
