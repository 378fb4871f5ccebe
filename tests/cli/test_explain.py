"""The command line: what it writes, what it prints, how it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from captum_transformer_lrp import explain_image
from captum_transformer_lrp.cli import app
from captum_transformer_lrp.models import load_image_model
from captum_transformer_lrp.visualization import on_photo

MODEL = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo, something that is none, and a checkpoint of three classes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("inputs")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg")
    Image.fromarray(pixels).save(folder / "<script>.png")
    (folder / "note.txt").write_text("not a photo")
    save_file(timm.create_model(MODEL, num_classes=3).state_dict(), folder / "w.safetensors")
    return folder


@pytest.fixture
def explain(folder: Path, tmp_path: Path) -> Callable[..., Result]:
    def run(*options: str, photo: str = "photo.jpg") -> Result:
        defaults = ["--model", MODEL, "--checkpoint", str(folder / "w.safetensors")]
        defaults += ["--output", str(tmp_path / "out.png")]
        command = ["explain", "image", str(folder / photo), *defaults, *options]
        return CliRunner().invoke(app, command)

    return run


def test_the_figure_is_written_and_the_classes_are_printed(
    explain: Callable[..., Result], tmp_path: Path
) -> None:
    result = explain("--top-k", "2")
    assert result.exit_code == 0, result.output
    assert "class 2" in result.output
    assert str(tmp_path / "out.png") in result.output.replace("\n", "")
    with Image.open(tmp_path / "out.png") as figure:
        assert figure.width > 2 * figure.height  # the photo and two overlays in a row


def test_the_picture_is_the_whole_photo_dark_where_the_model_sees_nothing(folder: Path) -> None:
    loaded = load_image_model(MODEL, checkpoint=folder / "w.safetensors")
    photo = Image.new("RGB", (80, 60), "white")
    found = explain_image(loaded, photo, method="attention_rollout")
    assert found.photo.size == (80, 60)
    shown, box, title = found.shown()
    drawn = np.asarray(shown)
    assert drawn[30, 40].min() == 255
    assert drawn[30, 2].max() < 128
    one = on_photo(found.map(), shown.size, box)
    assert one.shape == (60, 80)
    assert one[30, 40] > 0
    assert one[30, 2] == 0
    assert title == "photo (dark: not seen)"


def test_json_is_all_that_is_printed(explain: Callable[..., Result]) -> None:
    result = explain("--json", "--target", "2", "--target", "class 0")
    printed = json.loads(result.stdout)
    assert [each["index"] for each in printed["explained"]] == [2, 0]
    assert sum(each["probability"] for each in printed["predictions"]) == pytest.approx(1)


def test_the_same_class_asked_for_twice_is_explained_once(explain: Callable[..., Result]) -> None:
    printed = json.loads(explain("--json", "--target", "2", "--target", "Class 2").stdout)
    assert [each["index"] for each in printed["explained"]] == [2]


@pytest.mark.parametrize("suffix", ["pdf", "svg", "jpg"])
def test_folders_are_made_and_other_formats_written(
    explain: Callable[..., Result], tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / "new" / f"figure.{suffix}"
    assert explain("--output", str(output)).exit_code == 0
    assert output.stat().st_size > 1000


def test_a_file_name_with_markup_is_only_a_name(explain: Callable[..., Result]) -> None:
    assert explain(photo="<script>.png").exit_code == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--target", "3"], 2, "found target 3, expected an index from 0 to 2"),
        (["--target", "class"], 2, "'class' may mean 3 classes"),
        (["--target", "dog"], 2, "no class is called 'dog'"),
        (["--output", "figure.gif"], 2, "ends in '.gif', expected one of .png"),
        (["--output", "figure"], 2, "ends in 'no suffix'"),
        (["--device", "nonsense"], 2, "--device nonsense cannot be used here"),
        (["--top-k", "0"], 2, "--top-k"),
        (["--model", "vit_tiny_patch16"], 1, "the nearest: vit_tiny_patch16_224"),
        (["--model", "vit_small_patch16_224"], 1, "does not fit the VisionTransformer"),
        (["--checkpoint", "missing.pt"], 1, "found no checkpoint at missing.pt"),
        (["--method", "saliencey"], 2, "did you mean saliency?"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(
    explain: Callable[..., Result], options: list[str], code: int, message: str
) -> None:
    result = explain(*options)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.output
    assert not result.stdout


@pytest.mark.parametrize(
    ("photo", "code", "message"),
    [("none.jpg", 2, "found no image file"), ("note.txt", 1, "cannot read")],
)
def test_what_is_no_photo_is_named(
    explain: Callable[..., Result], photo: str, code: int, message: str
) -> None:
    result = explain(photo=photo)
    assert result.exit_code == code
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_a_damaged_photo_is_named(explain: Callable[..., Result], folder: Path) -> None:
    (folder / "half.jpg").write_bytes((folder / "photo.jpg").read_bytes()[:1500])
    result = explain(photo="half.jpg")
    assert result.exit_code == 1
    assert "half.jpg" in result.stderr


def test_a_photo_is_not_overwritten_by_its_explanation(
    explain: Callable[..., Result], folder: Path
) -> None:
    result = explain("--output", str(folder / "photo.jpg"))
    assert result.exit_code == 2
    assert "is an input, which would be lost" in result.stderr


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output.strip()[0].isdigit()


def test_a_sentence_is_explained_on_a_page_and_in_the_terminal(
    shared: Path, tmp_path: Path
) -> None:
    text = "a gorgeous, witty film <script>alert(1)</script>"
    model = str(shared / "models" / "bert_movies")
    command = ["explain", "text", text, "--model", model, "--output", str(tmp_path / "out.html")]
    result = CliRunner().invoke(app, [*command, "--target", "pos", "--target", "0"])
    assert result.exit_code == 0, result.output
    assert "gorgeous, witty film <script>" in result.output
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "POS, 9" in page
    assert "<script" not in page


def test_words_are_printed_as_json_with_their_relevance(shared: Path, tmp_path: Path) -> None:
    model = str(shared / "models" / "bert_movies")
    command = ["explain", "text", "a gorgeous, witty film", "--model", model, "--json"]
    result = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "out.html")])
    (explained,) = json.loads(result.stdout)["explained"]
    assert explained["name"] == "POS"
    words = dict(explained["words"])
    assert list(words) == ["a", "gorgeous", ",", "witty", "film"]
    assert max(words, key=words.__getitem__) in {"gorgeous", "witty"}


def test_a_text_that_is_too_long_is_said_to_be_cut(shared: Path, tmp_path: Path) -> None:
    model = str(shared / "models" / "bert_movies")
    command = ["explain", "text", "good film " * 400, "--model", model]
    result = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "out.html")])
    assert result.exit_code == 0
    assert "note: the model reads only the first" in result.stderr


@pytest.mark.parametrize(
    ("text", "options", "code", "message"),
    [
        (" \n", [], 2, "found an empty text"),
        ("film", ["--model", "."], 1, "config.json"),
        ("film", ["--output", "page.txt"], 2, "expected one of .html"),
    ],
)
def test_a_mistake_with_a_text_is_told(
    tmp_path: Path, text: str, options: list[str], code: int, message: str
) -> None:
    command = ["explain", "text", text, "--model", str(tmp_path), *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == code
    assert message in result.stderr


def test_a_photo_of_a_trained_model_names_its_class(shared: Path, tmp_path: Path) -> None:
    photo = next((shared / "data" / "imagenet_samples").glob("0340_*.jpg"))
    weights = shared / "models" / "deit_tiny_imagenet" / "model.safetensors"
    command = ["explain", "image", str(photo), "--checkpoint", str(weights), "--json"]
    result = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "zebra.png")])
    assert json.loads(result.stdout)["explained"][0]["name"] == "zebra"
