"""One call explains a photo; its result is shown, counted and written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torchvision.transforms import Compose, Normalize, Resize, ToTensor
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from captum_transformer_lrp import ArgumentError, ImageResult, examples, explain_image
from captum_transformer_lrp.attr.comparison import compare
from captum_transformer_lrp.visualization import on_photo, overlay

HOSTILE = '"><script>alert(1)</script>\u202ekcab\u202c\x1b[2J'
PHOTO = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def scene() -> Any:
    return next(scene for scene in examples.scenes() if scene.name == "cat-dog")


@pytest.fixture(scope="module")
def found(scene: Any) -> ImageResult:
    return explain_image(examples.scene_classifier(), scene.image, target=["cat", "dog"])


def test_maps_are_the_method_s_and_each_is_inside_its_object(
    found: ImageResult, scene: Any
) -> None:
    model = examples.scene_classifier()
    pixels = examples.preprocess(scene.image)[None]
    for index, name in ((2, "cat"), (3, "dog")):
        expected = compare(model, pixels, {"it": index}, ["transformer_attribution"])
        np.testing.assert_allclose(
            found.map(name), expected["transformer_attribution"]["it"][0], rtol=1e-3, atol=1e-9
        )
        np.testing.assert_array_equal(found.map(index), found.map(name))
        (region,) = found.topk(1, target=name)
        left, top, right, bottom = map(round, region.box)
        assert scene.masks[name][top:bottom, left:right].mean() > 0.5
    assert repr(found).startswith("ImageResult(96 × 96 pixels; cat 4")
    assert len(repr(found)) < 100


def test_the_regions_of_a_photo_share_all_of_the_map(found: ImageResult) -> None:
    for cells in (1, 5, 14, 1000):
        regions = found.topk(10**6, cells=cells)
        total = sum(region.attribution for region in regions)
        # Sums of at most 9216 numbers in float64.
        assert total == pytest.approx(found.map().sum(dtype=np.float64), rel=1e-9)


@pytest.mark.parametrize("kind", ["file", "text", "PIL", "array", "floats", "tensor"])
def test_a_photo_comes_as_it_is(found: ImageResult, scene: Any, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "photo.png"
    Image.fromarray(scene.image).save(file)
    floats = scene.image.astype(np.float32) / 255
    image: Any = {
        "file": file,
        "text": str(file),
        "PIL": Image.fromarray(scene.image),
        "array": scene.image,
        "floats": floats,
        "tensor": torch.tensor(floats).movedim(-1, 0),
    }[kind]
    again = explain_image("bundled/scenes", image, target="cat")
    # One class at a time is rounded otherwise than two together.
    np.testing.assert_allclose(again.map(), found.map("cat"), rtol=1e-4)
    assert again.source == (file if kind in ("file", "text") else None)


def hugging_face(folder: Path) -> tuple[Any, Any]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(**sizes, intermediate_size=16, image_size=32, patch_size=8)
    ViTForImageClassification(config).save_pretrained(folder)
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return ViTForImageClassification.from_pretrained(folder).eval(), processor


def of_timm(_: Path) -> tuple[Any, dict[str, Any], tuple[int, ...]]:
    model = timm.create_model("test_vit", num_classes=2)
    return model.eval(), {"class_names": ["a", "b"]}, (160, 160)


def of_transformers_from_its_folder(folder: Path) -> tuple[Any, dict[str, Any], tuple[int, ...]]:
    model, _ = hugging_face(folder)
    return model, {"class_names": ["a", "b"]}, (32, 32)


def of_transformers_by_a_processor(folder: Path) -> tuple[Any, dict[str, Any], tuple[int, ...]]:
    model, processor = hugging_face(folder)
    return model, {"class_names": ["a", "b"], "transform": processor}, (32, 32)


def of_torchvision(_: Path) -> tuple[Any, dict[str, Any], tuple[int, ...]]:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 16, num_classes=2)
    torch.nn.init.normal_(model.heads.head.weight)
    transform = Compose([Resize((32, 32)), ToTensor(), Normalize((0.4,) * 3, (0.2,) * 3)])
    return model.eval(), {"class_names": ["a", "b"], "transform": transform}, (32, 32)


def of_a_hand_written_transform(_: Path) -> tuple[Any, dict[str, Any], tuple[int, ...]]:
    model, options, size = of_torchvision(_)

    def transform(photo: Image.Image) -> np.ndarray:
        return np.asarray(photo.resize((32, 32))).transpose(2, 0, 1)[None] / np.float32(255)

    return model, {**options, "transform": transform}, size


@pytest.mark.parametrize(
    "make",
    [
        of_timm,
        of_transformers_from_its_folder,
        of_transformers_by_a_processor,
        of_torchvision,
        of_a_hand_written_transform,
    ],
)
def test_models_of_every_library_with_their_own_preprocessing(
    make: Callable[[Path], Any], tmp_path: Path
) -> None:
    model, options, size = make(tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = explain_image(model, PHOTO, top_k=2, **options)
    assert found.map().shape == size
    assert {each.name for each in found.explained} == {"a", "b"}
    assert found.overlay().shape == PHOTO.shape
    assert found.photo.size == (90, 60)
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_an_overlay_is_at_the_photo_s_own_size_where_the_model_looked() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=2).eval()
    photo = Image.fromarray(PHOTO).resize((1800, 1200))
    found = explain_image(model, photo, method="attention_rollout")
    left, top, right, bottom = map(round, found.box)
    # timm takes the middle of a photo.
    assert (left + right, top + bottom) == (pytest.approx(1800, abs=8), pytest.approx(1200, abs=8))
    drawn = found.overlay()
    np.testing.assert_array_equal(drawn, overlay(photo, found.map(), box=found.box))
    placed = on_photo(found.map(), photo.size, found.box)
    assert not placed[:, : left - 1].any()
    assert placed[600, 900] > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_photo_is_as_precise_as_its_model(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=2).eval()
    expected = explain_image(model, PHOTO).map()
    found = explain_image(model.to(dtype), PHOTO).map()
    # bfloat16 has eight bits.
    np.testing.assert_allclose(found, expected, atol=0.1 * expected.max())


@pytest.mark.parametrize(
    "target",
    [
        np.int64(3),
        torch.tensor(3),
        np.array([3]),
        torch.tensor([3]),
        [torch.tensor(3)],
        (np.int8(3),),
    ],
)
def test_an_index_is_an_index_whoever_counts(scene: Any, target: Any) -> None:
    found = explain_image(examples.scene_classifier(), scene.image, target=target)
    assert [one.index for one in found.explained] == [3]
    assert found.about["options"]["targets"] == [3]
    assert '"index": 3' in found.to_json()


def test_a_model_in_training_mode_is_left_as_it_was() -> None:
    model = timm.create_model("levit_128s", num_classes=2).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(ValueError, match="when training"):  # batches of one have no statistics
        explain_image(model, PHOTO)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_a_file_has_the_numbers_and_where_they_come_from(
    found: ImageResult, tmp_path: Path
) -> None:
    found.save(tmp_path / "x.npz")
    found.save(tmp_path / "x.json")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        about = json.loads(str(archive["provenance"]))
        of_cat = archive["transformer_attribution/2"]
    np.testing.assert_array_equal(of_cat, found.map("cat"))
    same = json.loads((tmp_path / "x.json").read_text())
    assert same["provenance"] == about
    assert [each["name"] for each in about["targets"]] == ["cat", "dog"]
    np.testing.assert_allclose(same["maps"]["transformer_attribution/2"], of_cat)
    assert json.loads(found.to_json()) == same
    assert list(found.to_numpy()) == ["transformer_attribution/2", "transformer_attribution/3"]


@pytest.mark.parametrize("suffix", ["png", "jpg", "pdf", "svg", "webp", "html", "json", "npz"])
def test_every_format_is_written_whole_and_nothing_else(
    found: ImageResult, tmp_path: Path, suffix: str
) -> None:
    found.save(tmp_path / f"x.{suffix.upper()}")
    assert os.listdir(tmp_path) == [f"x.{suffix.upper()}"]
    assert (tmp_path / f"x.{suffix.upper()}").stat().st_size > 500


def _link(photo: Path) -> Path:
    link = photo.with_name("link.png")
    link.symlink_to(photo)
    return link


def _hard_link(photo: Path) -> Path:
    link = photo.with_name("hard.png")
    os.link(photo, link)
    return link


def _other_spelling(photo: Path) -> Path:
    return photo.parent / ".." / photo.parent.name / photo.name


@pytest.mark.parametrize("name", [Path, str, _link, _hard_link, _other_spelling])
def test_the_photo_is_never_overwritten(
    scene: Any, tmp_path: Path, name: Callable[[Path], Path | str]
) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(scene.image).save(photo)
    before = photo.read_bytes()
    found = explain_image("bundled/scenes", photo)
    with pytest.raises(ArgumentError, match="is the file that was explained"):
        found.save(name(photo))
    assert photo.read_bytes() == before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("x.gif", r"ends in '.gif', expected one of .html"),
        ("x", "ends in 'no suffix'"),
        (os.devnull, "is no file"),
        (".", "is no file"),
    ],
)
def test_what_cannot_be_written_is_refused(
    found: ImageResult, tmp_path: Path, path: str, message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        found.save(tmp_path / path)
    with pytest.raises(OSError, match="cannot write"):
        found.save(tmp_path / "missing" / "x.json")


def test_hostile_names_are_only_names(scene: Any, tmp_path: Path) -> None:
    photo = tmp_path / HOSTILE.replace("/", "")
    Image.fromarray(scene.image).save(photo, "PNG")
    names = [f"{HOSTILE} {index}" for index in range(24)]
    found = explain_image(examples.scene_classifier(), photo, class_names=names)
    for page in (found.to_html(), found._repr_html_()):
        assert "<script" not in page
        assert "&lt;script&gt;" in page
        assert "\u202e" not in page
        assert "\x1b" not in page
        assert "http" not in page
        assert 'src="data:image/webp' in page
    found.save(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "horse shoe"}, "no class is called 'horse shoe'"),
        ({"target": 24}, "expected an index from 0 to 23"),
        ({"target": ["cat", "ca"]}, "may mean"),
        ({"top_k": 0}, "found top_k=0"),
        ({"top_k": 2.5}, "found top_k=2.5"),
        ({"method": []}, r"found method=\[\]"),
        ({"image": Image.new("RGB", (0, 0))}, "it has no pixels"),
        ({"image": Image.new("I", (9, 9))}, "cannot read the image: it holds 32-bit integers"),
        ({"image": {"a": 1}}, "found dict as the image"),
        ({"model": torch.nn.Linear(2, 2)}, "give transform="),
        ({"model": 3}, "found int as the model"),
        ({"transform": lambda photo: torch.zeros(3, 4)}, "expected floats"),
    ],
)
def test_a_mistake_is_told(scene: Any, options: dict[str, Any], message: str) -> None:
    arguments = {"model": examples.scene_classifier(), "image": scene.image, **options}
    with pytest.raises(ArgumentError, match=message):
        explain_image(**arguments)


def test_a_class_that_was_not_explained_is_not_made_up(found: ImageResult) -> None:
    with pytest.raises(ArgumentError, match="horse was not explained, but cat"):
        found.map("horse")
    with pytest.raises(ArgumentError, match="found method 'saliency', expected one of transformer"):
        found.topk(method="saliency")
    found.map()[:] = 7  # a copy
    assert found.map().max() < 1


@pytest.mark.parametrize("options", [{"k": 0}, {"k": -1}, {"k": 1.0}, {"cells": 0}])
def test_nothing_is_no_number_of_regions(found: ImageResult, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="expected at least 1, an integer"):
        found.topk(**options)


def test_several_methods_are_in_one_result(scene: Any) -> None:
    methods = ["attention_rollout", "attnlrp"]
    steps: list[int] = []
    found = explain_image(
        "bundled/scenes", scene.image, top_k=2, method=methods, on_progress=lambda: steps.append(1)
    )
    assert len(steps) == 2
    assert set(found.to_numpy()) == {f"{m}/{e.index}" for m in methods for e in found.explained}
    assert found.topk(1, method="attnlrp") != found.topk(1)
    assert len(found.figure().axes) == 2 * 3 + 2  # and a colour bar for each kind
