"""What must be downloaded and cannot be is told at once, with what to do instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from typer.testing import Result

from captum_transformer_lrp.cli.options import how_many
from captum_transformer_lrp.hub import check_reachable
from captum_transformer_lrp.models import ModelLoadError, load_image_model, load_text_model


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("explain image https://example.org/cat.jpg", "download it first"),
        ("explain text --file ftp://example.org/a.txt", "download it first"),
        ("compare image http://example.org/cat.jpg", "download it first"),
        ("report https://example.org/cat.jpg", "download it first"),
        ("explain image {photo} --checkpoint https://example.org/w.pt", "download the weights"),
        ("benchmark perturbation --model bundled/scenes --data s3://bucket/x", "and give the fold"),
        (
            "explain image {photo} --model https://huggingface.co/google/vit-base-patch16-224",
            "give its name there, google/vit-base-patch16-224",
        ),
        ("explain text good --model https://example.org/model", "and give the folder"),
    ],
)
def test_an_address_is_no_file_and_no_name(
    run: Callable[..., Result], mixed: Path, command: str, told: str
) -> None:
    photo = mixed / "a & b.png"
    result = run(*(part.format(photo=photo) for part in command.split()))
    assert result.exit_code in (1, 2)
    message = " ".join(result.stderr.split())
    assert "the address" in message
    assert "://" in message
    assert told in message


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What the hub is asked, which nobody answers."""
    asked: list[str] = []

    class Session:
        def head(self, address: str, timeout: float) -> Any:
            asked.append(address)
            raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return asked


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (load_image_model, "vit_tiny_patch16_224"),
        (load_image_model, "timm/vit_tiny_patch16_224.augreg_in21k"),
        (load_image_model, "hf-hub:somebody/vit"),
        (load_image_model, "google/vit-base-patch16-224"),
        (load_text_model, "distilbert/distilbert-base-uncased-finetuned-sst-2-english"),
    ],
)
def test_a_hub_that_cannot_be_reached_is_asked_once(
    asked: list[str], load: Callable[[str], Any], name: str
) -> None:
    with pytest.raises(ModelLoadError, match=r"cannot be reached: Name or .*give .* (with|folder)"):
        load(name)
    assert asked == [constants.ENDPOINT]


def test_a_model_in_the_cache_needs_no_hub(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "models--somebody--vit").mkdir()
    check_reachable("somebody/vit")
    assert asked == []


def test_classes_below_one_per_cent_are_explained_where_they_are_asked_for(
    run: Callable[..., Result], mixed: Path
) -> None:
    """The scene model is sure of its bundled scenes: all but the two objects are far below."""
    scene = mixed / "a & b.png"
    command = ["explain", "image", scene, "--model", "bundled/scenes", "--json"]
    command += ["--method", "raw_attention"]
    explained = {
        options: json.loads(run(*command, *options.split()).stdout)["explained"]
        for options in ("", "--top-k 4", "--target zebra")
    }
    lengths = {name: len(found) for name, found in explained.items()}
    assert lengths == {"": 2, "--top-k 4": 4, "--target zebra": 1}
    assert all(each["probability"] >= how_many(None, 3)["least"] for each in explained[""])
    assert explained["--target zebra"][0]["probability"] < 0.01


def test_more_classes_than_there_are_stand_for_all(run: Callable[..., Result]) -> None:
    found = json.loads(run("explain", "text", "a gorgeous film", "--top-k", "99", "--json").stdout)
    assert {each["name"] for each in found["explained"]} == {"NEGATIVE", "POSITIVE"}
