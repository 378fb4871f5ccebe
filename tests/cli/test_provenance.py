"""Where numbers come from: written beside maps, and at the end of pages."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import Result

from captum_transformer_lrp import examples
from captum_transformer_lrp.attr.comparison import compare
from captum_transformer_lrp.benchmarks.runner import weights_digest
from captum_transformer_lrp.models import load_image_model
from captum_transformer_lrp.photos import read_photo

SCENES = ("--model", "bundled/scenes")


def test_maps_are_the_attribution_s_numbers_and_say_where_they_come_from(
    run: Callable[..., Result], mixed: Path, tmp_path: Path
) -> None:
    photo = mixed / "a & b.png"
    command = ["explain", "image", photo, *SCENES, "--target", "cat", "--target", "dog"]
    printed = json.loads(run(*command, "--maps", "npz", "--json").stdout)
    assert run(*command, "--maps", "json").exit_code == 0
    loaded = load_image_model("bundled/scenes")
    pixels = loaded.preprocess(read_photo(photo))[None]
    maps = compare(loaded.model, pixels, {"cat": 2}, ["transformer_attribution"])
    expected = maps["transformer_attribution"]["cat"][0]
    with np.load(tmp_path / "explanation.npz", allow_pickle=False) as archive:
        about = json.loads(str(archive["provenance"]))
        of_cat = torch.from_numpy(archive["transformer_attribution/2"])
        names = set(archive)
    torch.testing.assert_close(of_cat, expected)
    assert names == {"provenance", "transformer_attribution/2", "transformer_attribution/3"}
    assert about["model"] == printed["model"] == "bundled/scenes"
    assert about["weights_sha256"] == printed["weights_sha256"] == weights_digest(loaded.model)
    assert about["methods"] == ["transformer_attribution"]
    assert [target["name"] for target in about["targets"]] == ["cat", "dog"]
    assert about["options"]["targets"] == ["cat", "dog"]
    assert about["versions"]["torch"] == version("torch")
    same = json.loads((tmp_path / "explanation.json").read_text())
    assert same["provenance"] == about
    np.testing.assert_allclose(same["maps"]["transformer_attribution/2"], of_cat)


def test_words_have_their_numbers_beside_them(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a witty film")
    command = ["explain", "text", "--file", "texts", "--target", "POSITIVE", "--maps", "json"]
    assert run(*command).exit_code == 0
    found = json.loads((tmp_path / "explanations" / "a.txt.json").read_text())
    assert found["maps"]["words"] == ["a", "witty", "film"]
    (key,) = set(found["maps"]) - {"words"}
    assert len(found["maps"][key]) == 3
    assert found["provenance"]["input"] == "texts/a.txt"


def test_pages_end_with_how_they_were_computed(
    run: Callable[..., Result], mixed: Path, tmp_path: Path
) -> None:
    model, _ = examples.sentiment_classifier()
    method = ("--method", "attention_rollout")
    run("explain", "text", "good", *method, "--output", "1.html")
    run("compare", "text", "good", *method, "--output", "2.html")
    run(
        *("report", mixed / "a & b.png", "--text", "good", "--image-model", "bundled/scenes"),
        *(*method, "--output", "3.html"),
    )
    for number in (1, 2, 3):
        footer = (tmp_path / f"{number}.html").read_text(encoding="utf-8").split("<footer>")[1]
        for expected in (
            *("bundled/sentiment", weights_digest(model), "attention_rollout", "device cpu"),
            *("most probable", f"torch {version('torch')}", "captum-transformer-lrp"),
        ):
            assert expected in footer
    assert "bundled/scenes; bundled/sentiment" in footer
    assert weights_digest(examples.scene_classifier()) in footer


def test_a_checkpoint_is_named(run: Callable[..., Result], mixed: Path, tmp_path: Path) -> None:
    state = {name: value * 0.5 for name, value in examples.scene_classifier().state_dict().items()}
    save_file(state, tmp_path / "half.safetensors")
    command = ["explain", "image", mixed / "a & b.png", *SCENES, "--json"]
    plain = json.loads(run(*command).stdout)
    halved = json.loads(run(*command, "--checkpoint", "half.safetensors").stdout)
    assert halved["checkpoint"] == "half.safetensors"
    assert halved["weights_sha256"] != plain["weights_sha256"]


def test_a_model_without_its_head_is_not_explained(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    model, tokenizer = examples.sentiment_classifier()
    model.save_pretrained(tmp_path / "f")
    tokenizer.save_pretrained(tmp_path / "f")
    state = load_file(tmp_path / "f" / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        state.pop(name)
    save_file(state, tmp_path / "f" / "model.safetensors", metadata={"format": "pt"})
    for command in (
        ["explain", "text", "good", "--model", "f"],
        ["compare", "text", "good", "--model", "f"],
        ["report", "--text", "good", "--text-model", "f"],
    ):
        result = run(*command)
        assert result.exit_code == 1
        assert "missing: classifier.bias, classifier.weight" in result.stderr
        assert not list(tmp_path.glob("*.html"))
    config = json.loads((tmp_path / "f" / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "f" / "config.json").write_text(json.dumps(config))
    result = run("explain", "text", "good", "--model", "f")
    assert result.exit_code == 1
    assert "--trust-remote-code" in result.stderr


@pytest.mark.filterwarnings("default::UserWarning")  # not an error, as for the suite
def test_averaged_weights_are_told_on_stderr(
    run: Callable[..., Result], mixed: Path, tmp_path: Path
) -> None:
    state = examples.scene_classifier().state_dict()
    torch.save({"state_dict": state, "state_dict_ema": state}, tmp_path / "w.pth")
    result = run("explain", "image", mixed / "a & b.png", *SCENES, "--checkpoint", "w.pth")
    assert result.exit_code == 0
    assert "note: w.pth holds weights under state_dict_ema, state_dict" in result.stderr
