"""What the README tells a reader to paste runs as printed, and its code draws its pictures."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from captum_transformer_lrp import GenerationResult
from tests.docs.test_pages import commands

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
MOST_WORDS = 900

HUB_MODEL = 'timm.create_model("deit_tiny_patch16_224", pretrained=True)'
"""What the README downloads, as it says so."""


def run(block: str) -> dict[str, object]:
    """Paste a block into a new session of Python."""
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    return names


def block_with(text: str) -> str:
    """The one block that has a text."""
    (found,) = (block for block in BLOCKS if text in block)
    return found


def with_weights(block: str, folder: Path) -> str:
    """The block with weights of that model from a folder instead of the hub's."""
    file = folder / "models" / "deit_tiny_imagenet" / "model.safetensors"
    overlay = f', pretrained_cfg_overlay={{"file": {str(file)!r}}})'
    return block.replace(HUB_MODEL, HUB_MODEL.removesuffix(")") + overlay)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader works."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def language_model(folder: Path) -> Path:
    """A tiny language model with a tokenizer, as `save_pretrained` writes them."""
    words = ["[UNK]", "The", "capital", "of", "France", "is"]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(
        folder / "gpt2"
    )
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=6, n_positions=16, n_embd=16, n_layer=2, n_head=2,
                        bos_token_id=None, eos_token_id=None)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder / "gpt2")
    return folder / "gpt2"


def test_every_block_is_run_by_a_test_below() -> None:
    marks = ('"why.png"', "torch.randn", '"words.png"', '"gpt2"')
    known = [block_with(text) for text in marks]
    assert sorted(known) == sorted(BLOCKS)
    assert ">>>" not in README


@pytest.mark.parametrize("picture", ["why.png", "words.png"])
def test_the_code_beside_a_picture_draws_it(
    picture: str, folder: Path, script_of: Callable[[str], ModuleType], shared: Path
) -> None:
    """The mean colour differs by less than fonts and versions of matplotlib make of it."""
    assert picture in script_of("figures").PICTURES
    pytest.importorskip("skimage.data")
    run(with_weights(block_with(f'"{picture}"'), shared))
    drawn, committed = (
        Image.open(file).convert("RGB")
        for file in (folder / picture, ROOT / "docs" / "images" / picture)
    )
    assert abs(drawn.width - committed.width) <= 4
    small = [np.asarray(one.resize((96, 32)), dtype=float) for one in (drawn, committed)]
    assert np.abs(small[0] - small[1]).mean() < 4


def test_tensors_are_explained_with_the_call_of_captum(shared: Path) -> None:
    names = run(with_weights(block_with("torch.randn"), shared))
    attributions = names["attributions"]
    assert isinstance(attributions, torch.Tensor)
    assert attributions.shape == (2, 3, 224, 224)
    assert attributions.any()


def test_a_language_model_is_explained(language_model: Path) -> None:
    names = run(block_with('"gpt2"'))  # the folder has the name of the hub's model
    story = names["story"]
    assert isinstance(story, GenerationResult)
    assert story.maps.shape == (3, 8)
    assert story.maps[2].any()
    page = (language_model.parent / "story.html").read_text(encoding="utf-8")
    assert page.count("data-from=") == 3


def test_the_readme_is_short() -> None:
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) <= MOST_WORDS


def test_the_first_picture_and_the_first_code_are_on_the_first_screen() -> None:
    first_lines = README.splitlines()[:12]
    assert any(line.startswith("![") for line in first_lines)
    assert "```python" in first_lines


@pytest.mark.slow
def test_the_package_can_be_installed_as_printed() -> None:
    """Nothing is written, and nothing is downloaded: what the package needs is left out."""
    printed = commands(ROOT / "README.md", "pip")
    assert len(printed) == 2
    for line in printed:
        # Pip wants a host.
        words = shlex.split(line.replace("REPOSITORY", f"file://localhost{ROOT}"))
        assert words[:2] == ["pip", "install"]
        (what,) = words[2:]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps",
             "--no-build-isolation", "--disable-pip-version-check", what],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
