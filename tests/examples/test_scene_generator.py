"""The scene generator, with plain discs in place of emoji, so that no font is needed."""

from __future__ import annotations

import pytest
import torch

from captum_transformer_lrp.examples.training.scene_classifier import (
    patch_target_distribution,
    present_classes,
)
from captum_transformer_lrp.examples.training.scene_generator import (
    CLASSES,
    SCENERY,
    draw_scenes,
    load_sprites,
)


@pytest.fixture(scope="module")
def discs() -> torch.Tensor:
    axis = torch.linspace(-1, 1, 80)
    alpha = (axis[:, None] ** 2 + axis**2 < 0.95).float()
    return alpha.expand(len(CLASSES) + len(SCENERY), 4, 80, 80).clone()


def scenes_of(discs, seed=0, **options):
    return draw_scenes(32, discs, torch.Generator().manual_seed(seed), **options)


def test_one_seed_gives_one_batch(discs):
    first, same, other = scenes_of(discs), scenes_of(discs), scenes_of(discs, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize("objects", [1, 2, 3])
def test_a_scene_has_the_objects_asked_for_and_shows_each(discs, objects):
    scenes = scenes_of(discs, objects=objects)
    present = scenes.classes >= 0
    assert (present.sum(1) == objects).all()
    assert torch.equal(scenes.masks.flatten(2).any(2), present)
    assert (scenes.masks.sum(1) <= 1).all()
    assert scenes.images.min() >= 0
    assert scenes.images.max() <= 1


def test_targets_name_what_is_shown(discs):
    scenes = scenes_of(discs)
    target = present_classes(scenes.classes)
    assert torch.equal(target.sum(1), (scenes.classes >= 0).sum(1))

    patches = patch_target_distribution(scenes)
    assert patches.shape == (32, 144, len(CLASSES) + 1)
    torch.testing.assert_close(patches.sum(2), torch.ones(32, 144))
    # Where a scene's patches show a class, the scene's target has it.
    assert torch.equal(patches[:, :, :-1].sum(1) > 0, target)


def test_a_missing_font_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="fonts-noto-color-emoji"):
        load_sprites(tmp_path / "none.ttf")
