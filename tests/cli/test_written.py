"""`explain text` of a language model: what each written word comes from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import LlavaProcessor
from typer.testing import CliRunner, Result

from captum_transformer_lrp import explain_generation
from captum_transformer_lrp.cli import app
from tests.letters.data import MODELS, tokenizer, trained
from tests.results.test_images_in_prompts import llava, photo

PROMPT = "f H g I b e g b ?"


@pytest.fixture(scope="module", params=list(MODELS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp(request.param)
    trained(request.param).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def explain(folder: Path, tmp_path: Path) -> Callable[..., Result]:
    def run(*options: str) -> Result:
        output = ["--output", str(tmp_path / "out.html")]
        command = ["explain", "text", PROMPT, "--model", str(folder), *output, *options]
        return CliRunner().invoke(app, command)

    return run


def test_the_words_it_writes_are_told_and_written(
    explain: Callable[..., Result], tmp_path: Path
) -> None:
    result = explain("--generate", "2", "--maps", "npz")
    assert result.exit_code == 0, result.output
    assert "H I" in result.output
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert page.count("data-from=") == 2
    assert "weights sha256" in page
    with np.load(tmp_path / "out.npz") as archive:
        assert archive["relevance"].shape == (2, 11)


def test_json_is_what_the_call_gives(explain: Callable[..., Result], folder: Path) -> None:
    printed = json.loads(explain("--continuation", "H I", "--json").stdout)
    expected = explain_generation(str(folder), None, PROMPT, continuation="H I")
    for one, row in zip(printed["written"], expected.matrix, strict=True):
        assert one["relevance"] == pytest.approx(row.tolist(), rel=1e-4, abs=1e-5)


def test_a_contrast_is_of_the_next_word(explain: Callable[..., Result]) -> None:
    result = explain("--target", "H", "--contrast", "I", "--granularity", "piece", "--json")
    (one,) = json.loads(result.stdout)["written"]
    assert one["text"] == "H instead of I"
    assert int(np.argmax(one["relevance"][:8])) == 1
    again = explain("--target", "H", "--generate", "0", "--json")
    assert json.loads(again.stdout)["written"][0]["text"] == "H"


@pytest.mark.parametrize("hops", ["0", "1", "all"])
def test_hops_are_those_of_the_call(
    explain: Callable[..., Result], folder: Path, hops: str
) -> None:
    printed = json.loads(explain("--continuation", "H I", "--hops", hops, "--json").stdout)
    expected = explain_generation(
        str(folder), None, PROMPT, continuation="H I", hops="all" if hops == "all" else int(hops)
    )
    for one, row in zip(printed["written"], expected.matrix, strict=True):
        assert one["relevance"] == pytest.approx(row.tolist(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--hops", "two"), "found --hops two, expected a number from 0, or all"),
        (("--hops", "-1"), "found --hops -1, expected a number from 0, or all"),
        (("--hops", "1.5"), "found --hops 1.5, expected a number from 0, or all"),
        (("--contrast", "I"), "--contrast without --target"),
        (("--generate", "2", "--pair", "a b"), "without --pair"),
        (("--generate", "2", "--target", "H", "--target", "I"), "2 times --target"),
        (("--generate", "2", "--target", "K"), "in what was written"),
        (("--generate", "2", "--model", "bundled/sentiment"), "causal language model"),
    ],
)
def test_what_must_be_changed_is_told(
    explain: Callable[..., Result], options: tuple[str, ...], message: str
) -> None:
    result = explain(*options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_pairs_and_granularities_of_classifiers(tmp_path: Path) -> None:
    options = ["--pair", "But dull. Very dull.", "--granularity", "sentence", "--json"]
    output = ["--output", str(tmp_path / "pair.html")]
    command = ["explain", "text", "A gorgeous film.", *output, *options]
    (one,) = json.loads(CliRunner().invoke(app, command).stdout)["explained"]
    words = [text for text, _ in one["words"]]
    assert words == ["A gorgeous film.", "But dull.", "Very dull."]


@pytest.fixture(scope="module")
def seeing_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that sees, as `save_pretrained` writes it."""
    model, ours = llava()
    ours.tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor = LlavaProcessor(
        ours.image_processor, ours.tokenizer, patch_size=8, image_token="<image>",
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_model_that_sees_is_shown_a_picture(seeing_folder: Path, tmp_path: Path) -> None:
    picture, page = tmp_path / "photo.png", tmp_path / "out.html"
    photo().save(picture)
    command = ["explain", "text", "what is on the table", "--model", str(seeing_folder)]
    command += ["--image", str(picture), "--continuation", "a cat", "--output", str(page)]
    result = CliRunner().invoke(app, [*command, "--maps", "npz"])
    assert result.exit_code == 0, result.output
    assert page.read_text(encoding="utf-8").count("data-photo") > 0
    with np.load(tmp_path / "out.npz") as archive:
        assert archive["pixels/0"].shape == (2, *photo().size)
    result = CliRunner().invoke(app, [*command[:-1], str(picture)])
    assert result.exit_code == 2
    assert "photo.png" in result.output


@pytest.mark.parametrize("name", ["nowhere.png", "text.png"])
def test_a_picture_that_cannot_be_read_is_named_at_once(name: str, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    command = ["explain", "text", "what", "--model", "no/such", "--image", str(tmp_path / name)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code != 0
    assert name in result.output
    assert "no/such" not in result.output


def test_a_report_continues_its_texts(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    command = ["report", "--text", PROMPT, "--text", "a B c D ?", "--text-model", str(folder)]
    result = CliRunner().invoke(app, [*command, "--generate", "2", "--output", str(page)])
    assert result.exit_code == 0, result.output
    written = page.read_text(encoding="utf-8")
    assert written.count("Each row is a written word") == 2
    assert "attnlrp" in written
    result = CliRunner().invoke(app, [*command, "--contrast", "H", "--output", str(page)])
    assert result.exit_code == 2
    assert "--contrast without --target" in result.output
