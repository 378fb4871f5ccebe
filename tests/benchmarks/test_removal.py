"""Which pixels go, and what comes in their place, on photos whose values are known by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from captum_transformer_lrp.benchmarks import BenchmarkError, perturbation
from captum_transformer_lrp.benchmarks.faithfulness import deletion, insertion, road
from captum_transformer_lrp.benchmarks.removal import imputed, removed_first
from captum_transformer_lrp.models import ImageModel

from .test_metrics import map_of


def gone_of(size: int, kept: int) -> Tensor:
    """A square but for its outermost rows and columns."""
    gone = torch.zeros(1, 1, size, size, dtype=torch.bool)
    gone[..., kept:-kept, kept:-kept] = True
    return gone


def test_a_removed_plane_is_imputed_as_it_was() -> None:
    """On a slope every pixel is the mean of its neighbours."""
    plane = torch.arange(12.0).double()[:, None] * 3 - torch.arange(12.0).double()
    pixels = torch.stack([plane, -plane, 2 * plane])[None]
    found = imputed(pixels, gone_of(12, 1), noise=0)
    torch.testing.assert_close(found, pixels, rtol=0, atol=1e-9)


def test_imputed_pixels_are_the_weighted_mean_of_their_neighbours() -> None:
    pixels = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0)).double()
    gone = torch.rand(4, 1, 9, 9, generator=torch.Generator().manual_seed(1)) < 0.6
    found = imputed(pixels, gone, noise=0)
    assert found.shape == (4, 3, 9, 9)
    for photo, mask in zip(found, gone[:, 0], strict=True):
        torch.testing.assert_close(photo[:, ~mask], pixels[0][:, ~mask], rtol=0, atol=0)
        for y, x in mask.nonzero().tolist():
            sums, weights = torch.zeros(3).double(), 0.0
            for v in range(max(y - 1, 0), min(y + 2, 9)):
                for u in range(max(x - 1, 0), min(x + 2, 9)):
                    weight = {0: 0, 1: 1 / 6, 2: 1 / 12}[abs(v - y) + abs(u - x)]
                    sums, weights = sums + weight * photo[:, v, u], weights + weight
            torch.testing.assert_close(photo[:, y, x], sums / weights, rtol=0, atol=1e-9)


def test_the_noise_of_imputed_pixels_has_its_size_and_is_the_same_each_time() -> None:
    pixels, gone = torch.ones(1, 3, 60, 60), gone_of(60, 1)
    found = imputed(pixels, gone)
    inside = found[..., 1:-1, 1:-1]
    assert inside.std() == pytest.approx(0.01, rel=0.05)
    assert inside.mean() == pytest.approx(1, abs=0.001)
    assert bool((found[..., 0, :] == 1).all())
    assert torch.equal(found, imputed(pixels, gone))


def test_pixels_cannot_all_be_imputed() -> None:
    with pytest.raises(BenchmarkError, match="all pixels are removed, expected that some stay"):
        imputed(torch.ones(1, 3, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("height", "width", "cells"), [(8, 8, 4), (12, 8, 4), (9, 7, 3), (5, 5, 5)]
)
def test_cells_go_as_a_whole_and_by_their_mean(height: int, width: int, cells: int) -> None:
    ids = (torch.arange(height) * cells // height)[:, None] * cells + (
        torch.arange(width) * cells // width
    )
    generator = torch.Generator().manual_seed(0)
    relevance = 50 + 20 * torch.randn(height, width, generator=generator).double()
    means = torch.stack([relevance[ids == one].mean() for one in range(cells**2)])
    for test, descending in (("positive", True), ("negative", False)):
        order = means.argsort(descending=descending)
        masks = removed_first(relevance, test, [0, 30, 70, 100], cells)
        for mask, step in zip(masks[:, 0], (0, 30, 70, 100), strict=True):
            expected = order[: cells**2 * step // 100]
            assert torch.equal(mask, torch.isin(ids, expected))


class Patches(nn.Module):
    """Of class 1 as far as patches are whole: one missing pixel spoils the patch of 4 x 4.

    So are vision transformers: few scattered pixels blind them.
    """

    worth = torch.linspace(0, 1, 16).view(4, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        whole = pixels[:, 0].unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).amin(-1)
        score = (whole * self.worth).sum((1, 2)) - self.worth.sum() / 2
        return torch.stack([torch.zeros_like(score), score], 1)


def maps_of_patches() -> tuple[Tensor, Tensor, Tensor]:
    """The true map by patches; one with the same sums, but pixels of both signs; and noise."""
    true = Patches.worth.repeat_interleave(4, 0).repeat_interleave(4, 1).double()
    signs = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2 - 1
    noise = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)).double()
    return true, true + 5 * signs, noise


def test_by_single_pixels_noise_looks_faithful_and_by_cells_it_does_not() -> None:
    true, by_pixel, noise = (map_of(one, Patches()) for one in maps_of_patches())
    assert deletion(noise)[""] < 0.7 * deletion(true)[""]  # the fault
    assert deletion(by_pixel)[""] < 0.7 * deletion(true)[""]
    for found in (true, by_pixel):
        assert deletion(found, cells=4)[""] < 0.9 * deletion(noise, cells=4)[""]
        assert insertion(found, cells=4)[""] > 1.1 * insertion(noise, cells=4)[""]
    assert deletion(by_pixel, cells=4)[""] == pytest.approx(deletion(true, cells=4)[""])


def test_road_by_cells_puts_the_true_map_before_noise() -> None:
    true, by_pixel, noise = (map_of(one, Patches()) for one in maps_of_patches())
    values = {}
    for name, found in {"true": true, "by pixel": by_pixel, "noise": noise}.items():
        values[name] = road(found, cells=4)
        assert list(values[name]) == ["MoRF", "LeRF", "LeRF − MoRF"]
        assert values[name]["LeRF − MoRF"] == values[name]["LeRF"] - values[name]["MoRF"]
    assert values["true"] == values["by pixel"]
    assert values["true"]["LeRF − MoRF"] > 0.3 > 0.1 > abs(values["noise"]["LeRF − MoRF"])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"removal": "road"}, marks=pytest.mark.slow),
        {"cells": 5},
        pytest.param({"cells": 5, "removal": "road"}, marks=pytest.mark.slow),
    ],
)
def test_the_perturbation_test_takes_road_and_cells(
    tiny: ImageModel, photos: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    found = perturbation(
        tiny, photos, ["random", "raw_attention"], output=tmp_path, limit=2, **options
    )
    assert found.settings["cells"] == options.get("cells")
    assert found.figure("random", "positive AUC", "predicted").count == 2


def test_cells_are_pixels_or_larger() -> None:
    with pytest.raises(BenchmarkError, match="found cells=5, expected at most 4"):
        removed_first(torch.ones(6, 4), "positive", [10], cells=5)
