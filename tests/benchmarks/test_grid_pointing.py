"""The grid pointing game: who gets into a grid, where the photos are, and whose share counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from captum_transformer_lrp.benchmarks import BenchmarkError, LabelledImage, grid_pointing
from captum_transformer_lrp.benchmarks.grid_pointing import GridPointing, make_grids
from captum_transformer_lrp.benchmarks.segmentation import relevance_mass
from captum_transformer_lrp.models import ImageModel

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


class Colors(nn.Module):
    """A linear classifier of the mean colour, by whose gradient times input a map can be known."""

    def forward(self, pixels: Tensor) -> Tensor:
        return 20 * pixels.mean((2, 3))


@pytest.fixture
def colors() -> ImageModel:
    return ImageModel("colors", Colors(), lambda photo: torch.zeros(3, 30, 30), ("r", "g", "b"))


@pytest.fixture
def data(tmp_path: Path) -> list[LabelledImage]:
    found = []
    for number in range(6):
        file = tmp_path / f"{number}.png"
        pixels = np.broadcast_to(np.uint8(COLORS[number % 3]), (20, 20, 3))
        Image.fromarray(np.ascontiguousarray(pixels)).save(file)
        found.append(LabelledImage(file.name, file, number % 3))
    return found


def test_a_photo_is_in_one_grid_and_a_class_once_in_a_grid() -> None:
    photos = [LabelledImage(f"{n}", Path(f"{n}"), n % 7) for n in range(100)]
    grids = make_grids(photos, 4, seed=1)
    used = [photo.identifier for grid in grids for photo in grid]
    assert len(used) == len(set(used)) >= 92
    assert all(len({photo.label for photo in grid}) == 4 for grid in grids)
    assert grids == make_grids(photos, 4, seed=1) != make_grids(photos, 4, seed=2)


def test_photos_lie_in_their_cells(colors: ImageModel, data: list[LabelledImage]) -> None:
    grid = GridPointing(colors, [[*data[:3], data[0]]], ["random"], device=torch.device("cpu"))
    loaded = grid.load(0)
    for (rows, columns), label in zip(loaded.cells, loaded.classes, strict=True):
        cell = loaded.pixels[0, :, rows, columns]
        assert cell.shape == (3, 15, 15)
        assert cell.mean((1, 2)).tolist() == [float(channel == label) for channel in range(3)]


def test_a_map_in_its_own_cell_has_all_of_it(
    colors: ImageModel, data: list[LabelledImage], tmp_path: Path
) -> None:
    """Gradient times input of a colour lights the photo of that colour and no other."""
    benchmark = GridPointing(
        colors,
        [[*data[:3], LabelledImage("b", data[2].file, 2)]],
        ["input_x_gradient"],
        device=torch.device("cpu"),
    )
    shares = benchmark.evaluate(benchmark.load(0), "input_x_gradient")["shares"]
    assert shares == pytest.approx([1, 1, 0.5, 0.5])  # two blue photos share


def test_share_counts_positive_attribution_only() -> None:
    relevance = np.array([[1.0, -9.0], [1.0, 2.0]])
    assert relevance_mass(relevance, np.s_[1:2, 1:2]) == 0.5
    assert relevance_mass(-abs(relevance), np.s_[0:1, 0:1]) == 0
    assert relevance_mass(np.ones((4, 4)), np.s_[0:2, 2:4]) == 0.25


def test_photos_without_confidence_are_left_out(
    tiny: ImageModel, photos: Path, tmp_path: Path
) -> None:
    """A model with random weights is confident of nothing."""
    with pytest.raises(BenchmarkError, match=r"at least 0.9 for 0 of 6 photos, expected 4"):
        grid_pointing(tiny, photos, output=tmp_path)


def test_each_round_shares_the_photos_out_again_and_no_grid_comes_twice(
    data: list[LabelledImage], tmp_path: Path
) -> None:
    """Five photos of five classes make one grid in each round."""
    model = ImageModel(
        "colors",
        nn.Sequential(nn.Flatten(), nn.Linear(2700, 5)),
        lambda photo: torch.zeros(3, 30, 30),
        tuple("abcde"),
    )
    photos = [replace(photo, label=number) for number, photo in enumerate(data[:5])]
    counts = []
    for rounds in (1, 3, 500):
        folder = tmp_path / str(rounds)
        result = grid_pointing(
            model, photos, ["random"], output=folder, rounds=rounds, confidence=0
        )
        counts.append(result.figure("random", "localisation").count)
    assert counts[:2] == [1, 3]
    # Five photos can be left out, and the others come in 24 orders.
    assert 60 < counts[2] < 120
