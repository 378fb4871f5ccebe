"""The perturbation test on models and maps whose curves are known by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from captum_transformer_lrp.benchmarks import (
    BenchmarkError,
    LabelledImage,
    Perturbation,
    labelled_images,
    perturbation,
)
from captum_transformer_lrp.benchmarks.perturbation import Photo
from captum_transformer_lrp.benchmarks.removal import area, removal_order, removed_pixels, without
from captum_transformer_lrp.models import ImageModel

from .conftest import CLASSES, write_photo

SIDE = 10
FIRST_HALF = torch.arange(SIDE * SIDE).view(SIDE, SIDE) < 50


class HalfLit(nn.Module):
    """Class 1 as long as more than a quarter of the upper half is not black, else class 0."""

    def forward(self, pixels: Tensor) -> Tensor:
        lit = (pixels[:, 0] * 0.25 + 0.5 > 1e-6) & FIRST_HALF
        share = lit.flatten(1).sum(1) / 50
        return torch.stack([torch.full_like(share, 0.25), share], 1)


@pytest.fixture
def half_lit() -> Perturbation:
    """White images of 10 x 10 pixels; mean and standard deviation are not the usual ones."""
    model = ImageModel(
        "half lit",
        HalfLit(),
        lambda photo: torch.zeros(3, SIDE, SIDE),
        ("dark", "lit"),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    return Perturbation(model, [LabelledImage("white", Path("white.png"), 1)], ["random"])


def curve(benchmark: Perturbation, relevance: Tensor, test: str) -> list[int]:
    white = torch.full((1, 3, SIDE, SIDE), 2.0)
    photo = Photo(white, without(white, benchmark.model), target=1, predicted=1)
    return benchmark._right(photo, relevance, test)


def test_a_perfect_map_loses_the_class_first_and_last(half_lit: Perturbation) -> None:
    """Of 50 relevant pixels 12.5 must stay: 37 may go, which 30 % does not reach and 40 % does."""
    relevance = FIRST_HALF.double()
    assert curve(half_lit, relevance, "positive") == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    # The irrelevant half goes first: 80 % leaves 20 of the 50, and 90 % leaves 10.
    assert curve(half_lit, relevance, "negative") == [1, 1, 1, 1, 1, 1, 1, 1, 0]


def test_with_cells_a_cell_goes_as_a_whole(half_lit: Perturbation) -> None:
    """Of four cells the two lower ones go first, for their mean is larger; then the others."""
    relevance = torch.where(FIRST_HALF, 0.0, torch.tensor([100.0, -20.0]).repeat(SIDE, SIDE // 2))
    assert curve(half_lit, relevance, "positive") == [1, 1, 1, 1, 1, 1, 0, 0, 0]
    half_lit.put(cells=2)
    assert curve(half_lit, relevance, "positive") == [1] * 9
    assert curve(half_lit, relevance, "negative") == [1, 1, 1, 1, 0, 0, 0, 0, 0]


def test_an_inverted_map_swaps_both_tests(half_lit: Perturbation) -> None:
    relevance = FIRST_HALF.double() + torch.rand(SIDE, SIDE).double() / 2
    for one, other in (("positive", "negative"), ("negative", "positive")):
        assert curve(half_lit, -relevance, one) == curve(half_lit, relevance, other)


def test_a_constant_map_removes_pixels_in_reading_order_in_both_tests(
    half_lit: Perturbation,
) -> None:
    for test in ("positive", "negative"):
        assert removal_order(torch.full((2, 3), 7.0), test).tolist() == [0, 1, 2, 3, 4, 5]
        assert curve(half_lit, torch.zeros(SIDE, SIDE), test) == [1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_curves_of_random_maps_coincide(half_lit: Perturbation) -> None:
    """A pixel is as likely to go first as last: the mean difference is within 4 of its errors."""
    generator = torch.Generator().manual_seed(0)
    differences = []
    for _ in range(300):
        relevance = torch.rand(SIDE, SIDE, generator=generator)
        lost = [
            area([float(x) for x in curve(half_lit, relevance, t)])
            for t in ("positive", "negative")
        ]
        differences.append(lost[0] - lost[1])
    values = torch.tensor(differences)
    assert values.std() > 0
    assert values.mean().abs() < 4 * values.std() / 300**0.5


def test_black_is_zero_before_normalisation_and_mean_is_zero_after(half_lit: Perturbation) -> None:
    pixels = torch.rand(1, 3, 40, 40)
    assert removed_pixels(pixels, half_lit.model, "black").unique().tolist() == [-2.0]
    assert removed_pixels(pixels, half_lit.model, "mean").unique().tolist() == [0.0]
    blurred = removed_pixels(pixels, half_lit.model, "blur")
    assert blurred.shape == pixels.shape
    assert 0 < blurred.std() < 0.5 * pixels.std()


def test_areas_follow_the_trapezoid_rule(tiny: ImageModel, photos: Path, tmp_path: Path) -> None:
    result = perturbation(tiny, photos, ["random", "raw_attention"], output=tmp_path)
    curves = {(one.method, one.panel): one for one in result.summary.curves}
    for explained in ("predicted", "target"):
        for test in ("positive", "negative"):
            found = curves["random", f"{test}, {explained} class"]
            assert found.x == (0, 10, 20, 30, 40, 50, 60, 70, 80, 90)
            expected = torch.trapezoid(torch.tensor(found.y), dx=0.1).item()
            figure = result.figure("random", f"{test} AUC from 0 %", explained)
            assert figure.value == pytest.approx(expected, rel=1e-5)
            figure = result.figure("random", f"{test} AUC", explained)
            expected = torch.trapezoid(torch.tensor(found.y[1:]), dx=0.1).item()
            assert figure.value == pytest.approx(expected, rel=1e-5)
            assert found.y[0] == result.figure("model", "top-1 accuracy").value


def test_a_class_agnostic_map_is_removed_once_for_both_classes(
    tiny: ImageModel, photos: Path, tmp_path: Path
) -> None:
    perturbation(tiny, photos, ["raw_attention"], output=tmp_path)
    records = [json.loads(x) for x in (tmp_path / "records-0-of-1.jsonl").read_text().splitlines()]
    assert len(records) == 6
    for record in records:
        found = record["methods"]["raw_attention"]
        assert found["predicted"] == found["target"]


def test_a_record_does_not_depend_on_the_other_examples(
    tiny: ImageModel, photos: Path, tmp_path: Path
) -> None:
    """Steps of one photo are one batch, so that sharding cannot move a digit."""
    data = labelled_images(photos, tiny.class_names)
    methods = ["transformer_attribution", "random"]
    perturbation(tiny, data[2:5], methods, output=tmp_path / "all")
    perturbation(tiny, data[3:4], methods, output=tmp_path / "one")
    (alone,) = (tmp_path / "one/records-0-of-1.jsonl").read_text().splitlines()
    together = (tmp_path / "all/records-0-of-1.jsonl").read_text().splitlines()
    expected = json.loads(alone)["methods"]
    assert [json.loads(x)["methods"] for x in together if json.loads(x)["index"] == 1] == [expected]


def test_corrupt_photos_are_named_and_counted(tiny: ImageModel, tmp_path: Path) -> None:
    for number in range(CLASSES):
        write_photo(tmp_path / f"data/{number}_x.png", number)
    whole = (tmp_path / "data/1_x.png").read_bytes()
    (tmp_path / "data/1_x.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "data/2_y.png").write_text("no photo at all")
    result = perturbation(tiny, tmp_path / "data", ["random"], output=tmp_path / "out")
    assert [name for name, _ in result.skipped] == ["1_x.png (1)", "2_y.png (2)"]
    assert result.examples == 4
    assert result.figure("random", "positive AUC", "target").count == 2
    assert "2_y.png" in (tmp_path / "out/results.md").read_text()
    assert str(tmp_path) not in (tmp_path / "out/results.json").read_text()


def test_photos_of_classes_that_the_model_does_not_have_are_refused(
    tiny: ImageModel, photos: Path, tmp_path: Path
) -> None:
    (file, *_) = sorted(photos.glob("*.png"))
    with pytest.raises(BenchmarkError, match="x is of class 3, but the model has 3 classes"):
        perturbation(tiny, [LabelledImage("x", file, 3)], output=tmp_path)


def test_options_that_there_are_none_of_are_refused(tiny: ImageModel, photos: Path) -> None:
    data = labelled_images(photos, tiny.class_names)
    with pytest.raises(BenchmarkError, match="found explain 'both', expected 'predicted' or"):
        Perturbation(tiny, data, ["random"], explain=["both"])  # type: ignore[list-item]
    with pytest.raises(BenchmarkError, match=r"explain 'target', expected a list: \['target'\]"):
        Perturbation(tiny, data, ["random"], explain="target")  # type: ignore[arg-type]
    with pytest.raises(BenchmarkError, match="explain must be different ones"):
        Perturbation(tiny, data, ["random"], explain=["target", "target"])
    with pytest.raises(BenchmarkError, match="limit must be at least 1, found 0"):
        Perturbation(tiny, data, ["random"], limit=0)
    with pytest.raises(BenchmarkError, match="found removal 'white'"):
        Perturbation(tiny, data, ["random"], removal="white")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_photo_that_has_changed_is_named_and_measured_again(
    tiny: ImageModel, photos: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    methods = ["raw_attention", "random"]
    perturbation(tiny, data, methods, output=tmp_path / "out")
    write_photo(data / "0001_4.png", seed=99)
    with pytest.warns(UserWarning, match=r"the contents of '0001_4.png \(1\)' have changed"):
        again = perturbation(tiny, data, methods, output=tmp_path / "out")
    assert again.as_json() == perturbation(tiny, data, methods, output=tmp_path / "new").as_json()
    lines = (tmp_path / "out/records-0-of-1.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["id"] == "0001_4.png (1)"
