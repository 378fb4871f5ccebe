"""Inputs that several commands are tried on, and the commands themselves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from captum_transformer_lrp import examples
from captum_transformer_lrp.cli import app

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    """Runs a command in an empty folder."""

    def run(*command: str | Path) -> Result:
        before = Path.cwd()
        os.chdir(tmp_path)
        try:
            return CliRunner().invoke(app, [str(part) for part in command])
        finally:
            os.chdir(before)

    return run


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two scenes, a damaged picture, a review, one that is no UTF-8, and a table."""
    folder = tmp_path_factory.mktemp("mixed")
    scenes = {scene.name: scene.image for scene in examples.scenes()}
    Image.fromarray(scenes["cat-dog"]).save(folder / "a & b.png")
    # A slash cannot be part of a file's name.
    Image.fromarray(scenes["horse"]).save(folder / f"{HOSTILE.replace('/', '')}.png")
    whole = (folder / "a & b.png").read_bytes()
    (folder / "damaged.png").write_bytes(whole[: len(whole) // 2])
    (folder / "review.txt").write_text(f"A gorgeous, witty film. {HOSTILE}", encoding="utf-8")
    (folder / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (folder / "table.csv").write_text("1,2")
    return folder


# A program of its own, which watches its whole process.
collect_ignore = ["watched.py"]
