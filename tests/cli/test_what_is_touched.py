"""What commands touch: no network, no other program, no pickle, and only the folders named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from PIL import Image

from captum_transformer_lrp import examples

WATCHED = Path(__file__).parent / "watched.py"
FAST = ("--method", "transformer_attribution", "--method", "attention_rollout")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, a text, and a model of each kind in a folder."""
    folder = tmp_path_factory.mktemp("work")
    Image.fromarray(examples.scenes()[0].image).save(folder / "a.png")
    (folder / "review.txt").write_text("a gorgeous film")
    model, tokenizer = examples.sentiment_classifier()
    model.save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    timm.models.save_for_hf(
        timm.create_model("test_vit", num_classes=3), folder / "timm", safe_serialization=True
    )
    return folder


@pytest.mark.slow
def test_commands_touch_nothing_but_their_folders(work: Path) -> None:
    scenes = [*FAST, "--image-model", "bundled/scenes"]
    commands = [
        ["explain", "image", "a.png", "--model", "timm", "--maps", "npz"],
        ["explain", "text", "--file", "review.txt", "--model", "text", "--output", "pages"],
        ["compare", "image", "a.png", "--model", "bundled/scenes", *FAST],
        ["compare", "text", "a witty film", "--model", "text", *FAST, "--maps", "json"],
        ["report", "a.png", "review.txt", *scenes],
    ]
    done = subprocess.run(
        [sys.executable, WATCHED, work, *(word for one in commands for word in ("--", *one))],
        cwd=work,
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            # What libraries keep between runs goes where it may.
            **dict.fromkeys(["HOME", "HF_HOME", "MPLCONFIGDIR", "TMPDIR"], str(work)),
            "TORCHINDUCTOR_CACHE_DIR": str(work),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    assert (work / "comparison.json").exists()
    assert json.loads(done.stderr.splitlines()[-1]) == []
