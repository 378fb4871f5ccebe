"""A few steps of the scene classifier's training, on discs in place of emoji."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from captum_transformer_lrp.examples.training import scene_classifier
from captum_transformer_lrp.examples.training.scene_classifier import (
    RandomPatches,
    load,
    rows_at,
    train,
)
from captum_transformer_lrp.examples.training.scene_generator import CLASSES, SCENERY


@pytest.fixture(scope="module")
def discs() -> Tensor:
    axis = torch.linspace(-1, 1, 80)
    alpha = (axis[:, None] ** 2 + axis**2 < 0.95).float()
    return alpha.expand(len(CLASSES) + len(SCENERY), 4, 80, 80).clone()


def trained(
    discs: Tensor, folder: Path, *, steps: int = 2, bfloat16: bool = False, **more: Any
) -> Path:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    options = {"batch_size": 4, "learning_rate": 1e-3, "patch_weight": 0.2, **more}
    train(discs, generator, folder, steps=steps, bfloat16=bfloat16, **options)
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "scene_classifier.safetensors")


@pytest.mark.parametrize("bfloat16", [False, True])
def test_what_training_saves_is_a_model_in_evaluation_mode(
    discs: Tensor, tmp_path: Path, bfloat16: bool
) -> None:
    model = load(trained(discs, tmp_path / "new" / "folder", bfloat16=bfloat16))
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 96, 96)).isfinite().all()


def test_the_same_seed_gives_the_same_weights_and_each_step_others(
    discs: Tensor, tmp_path: Path
) -> None:
    first, same = (weights(trained(discs, tmp_path / name)) for name in ("first", "same"))
    longer = weights(trained(discs, tmp_path / "longer", steps=3))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["head.weight"], longer["head.weight"])


def test_half_of_the_patches_are_seen_until_the_last_steps_and_each_scene_twice(
    discs: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws, seen = [], []

    def draw(*args: Any, **kwargs: Any) -> Any:
        draws.append(args)
        return drawn(*args, **kwargs)

    def rows(tokens: Tensor, index: Tensor) -> Tensor:
        seen.append(index.shape[1])
        return rows_at(tokens, index)

    drawn = scene_classifier.draw_scenes
    monkeypatch.setattr(scene_classifier, "draw_scenes", draw)
    monkeypatch.setattr(scene_classifier, "rows_at", rows)
    folder = trained(discs, tmp_path, steps=5, views=2, kept_patches=0.5, whole=0.4)
    assert len(draws) == 3  # before steps 1, 3 and 5
    assert seen == [72] * 6  # tokens and their labels, in steps 1 to 3 of 5
    with torch.no_grad():
        assert load(folder)(torch.zeros(1, 3, 96, 96)).isfinite().all()


def test_kept_patches_are_other_ones_for_each_scene_and_the_class_token_stays() -> None:
    patches = RandomPatches(torch.Generator().manual_seed(0), 0.25)
    tokens = torch.arange(9.0).reshape(1, 9, 1).expand(3, 9, 2)
    kept = patches(tokens)
    assert kept.shape == (3, 3, 2)
    assert (kept[:, 0] == 0).all()
    assert torch.equal(kept[:, 1:, 0], patches.kept + 1.0)
    assert len({tuple(sorted(row)) for row in patches.kept.tolist()}) > 1


class CutOffError(Exception):
    """Raised in the place of a power cut."""


def test_a_training_that_was_cut_off_is_resumed_to_the_same_weights(
    discs: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene_classifier, "_STEPS_BETWEEN_SAVES", 2)
    options = {"steps": 6, "views": 2, "kept_patches": 0.5, "whole": 0.2}
    whole = weights(trained(discs, tmp_path / "whole", **options))
    assert {file.suffix for file in (tmp_path / "whole").iterdir()} == {".safetensors", ".json"}

    drawn, draws = scene_classifier.draw_scenes, []

    def draw(*args: Any) -> Any:
        draws.append(args)
        if len(draws) == 3:
            raise CutOffError
        return drawn(*args)

    monkeypatch.setattr(scene_classifier, "draw_scenes", draw)
    with pytest.raises(CutOffError):
        trained(discs, tmp_path / "cut", **options)
    with pytest.raises(ValueError, match="give the same options"):
        trained(discs, tmp_path / "cut", **{**options, "steps": 8}, resume=True)
    resumed = weights(trained(discs, tmp_path / "cut", **options, resume=True))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(ValueError, match="no training to resume"):
        trained(discs, tmp_path / "cut", **options, resume=True)
