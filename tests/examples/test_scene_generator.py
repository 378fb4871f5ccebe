"""The scene generator, with plain discs in place of emoji, so that no font is needed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer_lrp.examples.training.scene_classifier import (
    patch_target_distribution,
    present_classes,
)
from captum_transformer_lrp.examples.training.scene_generator import (
    CLASSES,
    DEFAULT_FONT,
    SCENERY,
    Placement,
    draw_backgrounds,
    draw_placement,
    draw_scenes,
    load_sprites,
    render,
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


def drawn_plainly(
    placement: Placement, sprites: Tensor, backgrounds: Tensor
) -> tuple[Tensor, Tensor]:
    """Images and masks, all slots of all scenes at once, the empty ones too."""
    number, slots = placement.sprite.shape
    layers, shares = torch.zeros(number, 4, 192, 192), []
    for slot in range(slots):
        stretch, rotation = placement.stretch[:, slot], placement.rotation[:, slot]
        width = (stretch / 2 - stretch.abs() / 2).exp() * placement.flip[:, slot]
        height = (-stretch / 2 - stretch.abs() / 2).exp()
        across = torch.stack([rotation.cos() / width, rotation.sin() / width], 1)
        down = torch.stack([-rotation.sin() / height, rotation.cos() / height], 1)
        turn = torch.stack([across, down], 1) * (96 / placement.size[:, slot, None, None])
        centre = placement.centre[:, slot, :, None] * (2 / 96) - 1
        theta = torch.cat([turn, -turn @ centre], 2)
        grid = F.affine_grid(theta, [number, 4, 192, 192], align_corners=False)
        sprite = placement.sprite[:, slot]
        layer = F.grid_sample(sprites[sprite.clamp(min=0)], grid, align_corners=False)
        layer = layer * (sprite >= 0)[:, None, None, None]
        alpha = layer[:, 3:]
        colour = torch.minimum(layer[:, :3] * placement.gain[:, slot, :, None, None], alpha)
        layers = torch.cat([colour, alpha], 1) + (1 - alpha) * layers
        if slot >= slots - 3:
            shares = [share * (1 - alpha) for share in shares] + [alpha]
    layers = F.avg_pool2d(layers, 2)
    images = layers[:, :3] + (1 - layers[:, 3:]) * backgrounds
    return images, F.avg_pool2d(torch.cat(shares, 1), 2) > 0.5


@pytest.mark.parametrize("picture", ["discs", "emoji"])
def test_leaving_empty_slots_out_and_a_few_scenes_at_a_time_changes_no_bit(discs, picture):
    if picture == "emoji" and not DEFAULT_FONT.exists():
        pytest.skip(f"no font at {DEFAULT_FONT}")
    sprites = load_sprites() if picture == "emoji" else discs
    generator = torch.Generator().manual_seed(0)
    placement = draw_placement(21, generator)  # not a multiple of what is drawn at a time
    empty = placement.sprite < 0
    assert empty[:, :4].any()  # of scenery
    assert empty[:, -2:].any()  # of objects
    backgrounds = draw_backgrounds(21, generator)

    state = generator.get_state()
    scenes = render(placement, sprites, backgrounds, generator)

    images, masks = drawn_plainly(placement, sprites, backgrounds)
    generator.set_state(state)
    exposure = 0.85 + (1.15 - 0.85) * torch.rand(21, 1, 1, 1, generator=generator)
    spread = 0.05 * torch.rand(21, 1, 1, 1, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    assert torch.equal(scenes.images, (images * exposure + spread * noise).clamp(0, 1))
    assert torch.equal(scenes.masks, masks)


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
