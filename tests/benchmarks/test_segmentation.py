"""The segmentation test on maps whose scores are known by hand, and every kind of data."""

from __future__ import annotations

import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score

from captum_transformer_lrp.benchmarks import BenchmarkError, UnreadableExampleError, segmentation
from captum_transformer_lrp.benchmarks.segmentation import agreement, example_counts, example_values
from captum_transformer_lrp.benchmarks.segmentation_data import segmentation_data
from captum_transformer_lrp.models import ImageModel

MASK = np.zeros((8, 8), dtype=np.uint8)
MASK[2:5, 3:7] = 1


def metrics(relevance: np.ndarray, mask: np.ndarray = MASK) -> dict[str, float]:
    """All metrics of a single photo."""
    found = agreement(relevance.astype(np.float64), mask)
    return {
        metric: value
        for (metric, _), value in example_values(found, example_counts(found), 1).items()
    }


def test_the_mask_itself_is_a_perfect_map() -> None:
    assert set(metrics(MASK).values()) == {100.0}
    # A shift changes no order and no share above the mean; of positive relevance nothing is left.
    shifted = metrics(5 * MASK - 100.0)
    assert shifted.pop("relevance mass") == 0
    assert set(shifted.values()) == {100.0}


def test_the_inverted_mask_has_nothing_right() -> None:
    found = metrics(1 - MASK)
    assert found["pixel accuracy"] == found["mIoU"] == found["pointing game"] == 0
    assert found["mAP"] < 60


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3])
def test_a_constant_map_finds_no_object(value: float) -> None:
    """52 of 64 pixels are background: the accuracy is theirs, and of two unions one is met."""
    found = metrics(np.full((8, 8), value))
    assert found["pixel accuracy"] == pytest.approx(100 * 52 / 64)
    assert found["mIoU"] == pytest.approx(100 * (52 / 64 + 0) / 2)
    # All pixels tie: the precision is the side's share.
    assert found["mAP"] == pytest.approx(100 * (12 / 64 + 52 / 64) / 2)
    assert found["pointing game"] == pytest.approx(100 * 12 / 64)


def test_two_by_two_by_hand() -> None:
    """The mean is 0.55, so the first two pixels are found; one of them is the object."""
    relevance = np.array([[1.0, 0.9], [0.3, 0.0]])
    mask = np.array([[0, 1], [0, 0]], dtype=np.uint8)
    found = metrics(relevance, mask)
    assert found["pixel accuracy"] == 75
    assert found["mIoU"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    # Object: second in the ranking, precision 1/2.  Background, from the lowest: 1, 1, then 3/4.
    assert found["mAP"] == pytest.approx(100 * (1 / 2 + (1 + 1 + 3 / 4) / 3) / 2)
    assert found["pointing game"] == 0


def test_pixels_that_are_not_scored_make_no_difference() -> None:
    mask = MASK.copy()
    mask[0] = 255
    wrong_there = MASK.astype(float)
    wrong_there[0] = 1
    assert set(metrics(wrong_there, mask).values()) == {100.0}


def test_an_object_that_fills_the_photo_has_no_background_to_rank() -> None:
    found = metrics(np.arange(64.0).reshape(8, 8), np.ones((8, 8), dtype=np.uint8))
    assert found["mAP"] == 100
    assert found["pixel accuracy"] == 50


def test_ratios_are_pooled_over_photos_of_different_objects() -> None:
    generator = np.random.default_rng(0)
    masks = (generator.random((5, 6, 6)) < generator.random((5, 1, 1))).astype(np.uint8)
    maps = generator.random((5, 6, 6))
    found = [agreement(one, mask) for one, mask in zip(maps, masks, strict=True)]
    totals = {k: sum(example_counts(one)[k] for one in found) for k in example_counts(found[0])}
    values = [example_values(one, totals, 5) for one in found]
    above = np.stack([one > one.mean() for one in maps])
    iou = jaccard_score(masks.ravel(), above.ravel(), average="macro")
    assert np.mean([one["mIoU", ""] for one in values]) == pytest.approx(100 * iou)
    # The ratio estimator's standard error, spelled out.
    wrong = [100 * np.mean(a == m) for a, m in zip(above, masks, strict=True)]
    got = [one["pixel accuracy", ""] for one in values]
    assert np.std(got, ddof=1) / math.sqrt(5) == pytest.approx(np.std(wrong, ddof=1) / math.sqrt(5))


def write_mat(file: Path, photos: list[np.ndarray], masks: list[np.ndarray]) -> None:
    """A file laid out as `gtsegs_ijcv.mat`: MATLAB's cells are references, its axes reversed."""
    with h5py.File(file, "w") as stream:
        value = stream.create_group("value")
        for name in ("img", "gt"):
            value.create_dataset(name, (len(photos), 1), dtype=h5py.ref_dtype)
        refs = stream.create_group("#refs#")
        for number, (photo, mask) in enumerate(zip(photos, masks, strict=True)):
            image = refs.create_dataset(f"i{number}", data=photo.transpose(2, 1, 0))
            inner = refs.create_dataset(f"m{number}", data=mask.T)
            outer = refs.create_dataset(f"o{number}", (1, 1), dtype=h5py.ref_dtype)
            outer[0, 0] = inner.ref
            value["img"][number, 0] = image.ref
            value["gt"][number, 0] = outer.ref


@pytest.fixture
def drawn() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Photos wider than high, with masks that no transposition leaves alone."""
    generator = np.random.default_rng(0)
    photos = [generator.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(3)]
    masks = [np.zeros((40, 60), dtype=np.uint8) for _ in range(3)]
    for number, mask in enumerate(masks):
        mask[5 : 15 + number, 30:58] = 1
    return photos, masks


def test_imagenet_segmentation_is_read_upright(
    tmp_path: Path, drawn: tuple[list[np.ndarray], list[np.ndarray]]
) -> None:
    photos, masks = drawn
    write_mat(tmp_path / "gtsegs_ijcv.mat", photos, masks)
    data = segmentation_data(tmp_path / "gtsegs_ijcv.mat")
    assert list(data.identifiers) == ["img[0]", "img[1]", "img[2]"]
    for index in range(3):
        photo, mask = data[index]
        assert np.array_equal(np.asarray(photo), photos[index])
        assert np.array_equal(mask, masks[index])
    assert data.classes is None


def test_imagenet_segmentation_runs_and_skips_what_is_damaged(
    tiny: ImageModel, tmp_path: Path, drawn: tuple[list[np.ndarray], list[np.ndarray]]
) -> None:
    photos, masks = drawn
    masks[1] = masks[1][:, :-1]
    write_mat(tmp_path / "g.mat", photos, masks)
    result = segmentation(tiny, tmp_path / "g.mat", ["raw_attention"], output=tmp_path / "out")
    assert result.settings["explain"] == "predicted"
    assert result.skipped == (
        ("img[1]", "its mask has shape (40, 59), expected the photo's (40, 60)"),
    )
    assert result.figure("raw_attention", "mIoU").count == 2
    with pytest.raises(BenchmarkError, match="come without the model's classes"):
        segmentation(tiny, tmp_path / "g.mat", output=tmp_path / "out", explain="target")


def write_index(
    folder: Path, photos: list[np.ndarray], masks: list[np.ndarray], label: int
) -> None:
    entries = []
    for number, (photo, mask) in enumerate(zip(photos, masks, strict=True)):
        Image.fromarray(photo).save(folder / f"p{number}.png")
        Image.fromarray(255 * mask).save(folder / f"m{number}.png")
        entry = {"image": f"p{number}.png", "mask": f"m{number}.png", "label": "x"}
        entries.append(entry | {"imagenet_classes": [0, label]})
    (folder / "index.json").write_text(json.dumps(entries))


def test_an_index_tells_the_classes(
    tiny: ImageModel, tmp_path: Path, drawn: tuple[list[np.ndarray], list[np.ndarray]]
) -> None:
    write_index(tmp_path, *drawn, label=2)
    (tmp_path / "m2.png").unlink()
    result = segmentation(tiny, tmp_path, ["transformer_attribution"], output=tmp_path / "out")
    assert result.settings["explain"] == "target"
    assert [name for name, _ in result.skipped] == ["m2.png"]
    lines = (tmp_path / "out/records-0-of-1.jsonl").read_text().splitlines()
    classes = {json.loads(x)["values"]["class"] for x in lines if "values" in json.loads(x)}
    assert classes <= {0, 2}


def test_classes_that_the_model_does_not_have_are_refused(
    tiny: ImageModel, tmp_path: Path, drawn: tuple[list[np.ndarray], list[np.ndarray]]
) -> None:
    write_index(tmp_path, *drawn, label=937)
    with pytest.raises(BenchmarkError, match="class 937, but the model has 3 classes"):
        segmentation(tiny, tmp_path, output=tmp_path / "out")


def test_vocs_border_is_not_scored(
    tmp_path: Path, drawn: tuple[list[np.ndarray], list[np.ndarray]]
) -> None:
    photos, masks = drawn
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / name).mkdir(parents=True)
    values = 15 * masks[0]
    values[0, :5] = 255
    palette = Image.fromarray(values)
    palette.putpalette([n % 256 for n in range(768)])
    palette.save(tmp_path / "SegmentationClass/a.png")
    Image.fromarray(photos[0]).save(tmp_path / "JPEGImages/a.jpg")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("a\n")
    data = segmentation_data(tmp_path)
    assert list(data.identifiers) == ["a"]
    expected = masks[0].copy()
    expected[0, :5] = 255
    assert np.array_equal(data[0][1], expected)


def test_data_that_are_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"neither index.json nor JPEGImages"):
        segmentation_data(tmp_path)
    (tmp_path / "x.mat").write_text("MATLAB 5.0")
    with pytest.raises(BenchmarkError, match="as ImageNet-Segmentation"):
        segmentation_data(tmp_path / "x.mat")
    (tmp_path / "index.json").write_text('[{"image": "a.jpg"}]')
    with pytest.raises(BenchmarkError, match="KeyError: 'mask'"):
        segmentation_data(tmp_path)


def test_a_mask_without_an_object_is_skipped(
    tmp_path: Path, drawn: tuple[list[np.ndarray], list[np.ndarray]]
) -> None:
    photos, masks = drawn
    write_mat(tmp_path / "g.mat", photos, [masks[0], 0 * masks[1], masks[2]])
    with pytest.raises(UnreadableExampleError, match="no object"):
        segmentation_data(tmp_path / "g.mat")[1]
