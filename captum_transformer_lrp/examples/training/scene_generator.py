"""Random pictures of emoji on busy backgrounds, with the exact mask of every object.

Everything is vectorised over the batch and runs on the device of the random generator, so that
a GPU draws scenes faster than it can train on them. A scene is made in two steps, which keeps
chance and drawing apart: `draw_placement` decides what goes where, `render` draws it. One seed
on one device gives one batch of scenes.

Images are float32 in [0, 1], shaped (N, 3, 96, 96). Lengths are in pixels of that image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

IMAGE_SIZE = 96
MAX_OBJECTS = 3

DEFAULT_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
"""Where Debian's package fonts-noto-color-emoji puts the font."""

CLASSES = {
    "elephant": "🐘",
    "zebra": "🦓",
    "cat": "🐈",
    "dog": "🐕",
    "horse": "🐎",
    "tiger": "🐅",
    "giraffe": "🦒",
    "penguin": "🐧",
    "turtle": "🐢",
    "butterfly": "🦋",
    "rabbit": "🐇",
    "crocodile": "🐊",
    "car": "🚗",
    "bus": "🚌",
    "bicycle": "🚲",
    "airplane": "✈",
    "sailboat": "⛵",
    "tractor": "🚜",
    "pizza": "🍕",
    "banana": "🍌",
    "strawberry": "🍓",
    "hamburger": "🍔",
    "ice cream": "🍦",
    "carrot": "🥕",
}
"""Class names in the order of the logits, and the emoji that draws each."""

SCENERY = "🌲🌳🌵🌴🌻🌷🍄🍁⭐🎈⚽🏠⛺⛄🎁🔔"
"""Emoji that belong to no class. They are drawn behind the objects, as distractors."""

# A colour font of bitmaps has one size only.
_FONT_SIZE = 109
_SPRITE_SIZE = 80
# Objects are drawn this much larger and averaged down; small ones would flicker otherwise.
_SUPERSAMPLING = 2
_MAX_SCENERY = 4
# Drawn at once on a CPU, where a batch's canvases would not fit into the cache: six times faster
# than a batch of 128 at once.
_SCENES_IN_CACHE = 8


@dataclass(frozen=True)
class Ranges:
    """The intervals that a scene's objects are drawn from, uniformly.

    Attributes:
        size: longest side of an object, in pixels, by the number of objects in the scene.
        rotation: angle, in degrees, to either side.
        stretch: natural logarithm of width over height, to either side of the emoji's own.
        brightness: factor on an object's colour.
        tint: factor on each colour channel of an object.
    """

    size: tuple[tuple[float, float], ...] = ((28.0, 68.0), (27.0, 50.0), (25.0, 40.0))
    rotation: tuple[float, float] = (0.0, 25.0)
    stretch: tuple[float, float] = (0.0, 0.25)
    brightness: tuple[float, float] = (0.7, 1.2)
    tint: tuple[float, float] = (0.85, 1.15)


TRAINING_RANGES = Ranges()
UNSEEN_RANGES = Ranges(rotation=(25.0, 40.0), stretch=(0.25, 0.4), brightness=(0.55, 0.7))
"""Every object more rotated, more stretched and darker than any in training."""


class Scenes(NamedTuple):
    """A batch of scenes.

    Attributes:
        images: float32 (N, 3, H, W) in [0, 1].
        classes: int64 (N, 3), class indices, −1 where a scene has fewer than three objects.
        masks: bool (N, 3, H, W), the pixels where each object is what one sees.
    """

    images: Tensor
    classes: Tensor
    masks: Tensor


@dataclass
class Placement:
    """What is drawn where: S emoji in each of N scenes, from the back to the front.

    Attributes:
        sprite: int64 (N, S), index into the sprites, −1 for nothing.
        centre: float32 (N, S, 2), x and y in pixels from the top left corner.
        size: float32 (N, S), longest side in pixels.
        rotation: float32 (N, S), radians.
        stretch: float32 (N, S), natural logarithm of the change of width over height.
        flip: float32 (N, S), −1 for mirrored, else 1.
        gain: float32 (N, S, 3), factor on each colour channel.
    """

    sprite: Tensor
    centre: Tensor
    size: Tensor
    rotation: Tensor
    stretch: Tensor
    flip: Tensor
    gain: Tensor


def load_sprites(font: Path = DEFAULT_FONT) -> Tensor:
    """Draw every class's emoji, then the scenery, as squares with premultiplied alpha.

    Args:
        font: Noto Color Emoji, as a TrueType file.

    Returns:
        float32 (classes + scenery, 4, 80, 80) in [0, 1]: red, green, blue, alpha. The longest
        side of each emoji fills its square.

    Raises:
        FileNotFoundError: there is no font at that path.
    """
    if not font.exists():
        raise FileNotFoundError(
            f"There is no font at {font}. Install Debian's package fonts-noto-color-emoji or "
            "name another copy of NotoColorEmoji.ttf."
        )
    typeface = ImageFont.truetype(str(font), _FONT_SIZE)
    return torch.stack([_draw_emoji(emoji, typeface) for emoji in (*CLASSES.values(), *SCENERY)])


def _draw_emoji(emoji: str, typeface: ImageFont.FreeTypeFont) -> Tensor:
    canvas = Image.new("RGBA", (2 * _FONT_SIZE, 2 * _FONT_SIZE))
    ImageDraw.Draw(canvas).text((20, 20), emoji, font=typeface, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"The font has no picture for {emoji!r}. Is it Noto Color Emoji?")
    glyph = canvas.crop(box)
    # One empty pixel around it, so that interpolation at the border fades to nothing.
    scale = (_SPRITE_SIZE - 2) / max(glyph.size)
    glyph = glyph.resize(
        (round(glyph.width * scale), round(glyph.height * scale)), Image.Resampling.LANCZOS
    )
    square = Image.new("RGBA", (_SPRITE_SIZE, _SPRITE_SIZE))
    square.paste(glyph, ((_SPRITE_SIZE - glyph.width) // 2, (_SPRITE_SIZE - glyph.height) // 2))
    pixels = torch.from_numpy(np.asarray(square, dtype=np.float32) / 255).permute(2, 0, 1)
    return torch.cat([pixels[:3] * pixels[3:], pixels[3:]])


def draw_scenes(
    number: int,
    sprites: Tensor,
    generator: torch.Generator,
    *,
    objects: int | None = None,
    ranges: Ranges = TRAINING_RANGES,
) -> Scenes:
    """Draw random scenes.

    Args:
        number: how many, N.
        sprites: what `load_sprites` returned, on the generator's device.
        generator: source of all chance; its device does the work.
        objects: 1, 2 or 3 in every scene; None draws 1 (half of the scenes), 2 or 3.
        ranges: the intervals to draw sizes, angles and colours from.

    Returns:
        the images with their objects' classes and masks.
    """
    placement = draw_placement(number, generator, objects=objects, ranges=ranges)
    return render(placement, sprites, draw_backgrounds(number, generator), generator)


def draw_placement(
    number: int,
    generator: torch.Generator,
    *,
    objects: int | None = None,
    ranges: Ranges = TRAINING_RANGES,
) -> Placement:
    """Draw what goes where: up to four pieces of scenery, and in front up to three objects.

    The objects of a scene are of different classes and hardly overlap. Their slots are the
    last three. Arguments as for `draw_scenes`.
    """
    device = generator.device
    if objects is None:
        weights = torch.tensor([0.5, 0.35, 0.15], device=device)
        count = 1 + torch.multinomial(weights, number, replacement=True, generator=generator)
    else:
        count = torch.full((number,), objects, device=device)
    present = torch.arange(MAX_OBJECTS, device=device) < count[:, None]
    order = torch.rand(number, len(CLASSES), generator=generator, device=device).argsort(1)
    classes = order[:, :MAX_OBJECTS].masked_fill(~present, -1)

    smallest, largest = torch.tensor(ranges.size, device=device)[count - 1, :, None].unbind(1)
    chance = torch.rand(number, MAX_OBJECTS, generator=generator, device=device)
    size = smallest + (largest - smallest) * chance
    centre = _centres_apart(size, present, generator)

    shape = (number, _MAX_SCENERY)
    scenery = torch.randint(len(SCENERY), shape, generator=generator, device=device)
    scenery_count = torch.randint(_MAX_SCENERY + 1, (number, 1), generator=generator, device=device)
    empty = torch.arange(_MAX_SCENERY, device=device) >= scenery_count
    scenery = (scenery + len(CLASSES)).masked_fill(empty, -1)
    scenery_size = _uniform((14.0, 40.0), shape, generator)
    scenery_centre = _uniform((0.0, float(IMAGE_SIZE)), (*shape, 2), generator)

    shape = (number, _MAX_SCENERY + MAX_OBJECTS)
    brightness = _uniform(ranges.brightness, (*shape, 1), generator)
    return Placement(
        sprite=torch.cat([scenery, classes], 1),
        centre=torch.cat([scenery_centre, centre], 1),
        size=torch.cat([scenery_size, size], 1),
        rotation=_either_side(ranges.rotation, shape, generator) * (math.pi / 180),
        stretch=_either_side(ranges.stretch, shape, generator),
        flip=_sign(shape, generator),
        gain=brightness * _uniform(ranges.tint, (*shape, 3), generator),
    )


def render(
    placement: Placement, sprites: Tensor, backgrounds: Tensor, generator: torch.Generator
) -> Scenes:
    """Draw the emoji over the backgrounds, from the first slot to the last.

    Args:
        placement: what goes where; the last three slots are the objects.
        sprites: float32 (emoji, 4, 80, 80), premultiplied.
        backgrounds: float32 (N, 3, H, W) in [0, 1].
        generator: source of the pixel noise and the exposure.
    """
    number = len(backgrounds)
    at_once = _SCENES_IN_CACHE if backgrounds.device.type == "cpu" else number
    scenes = torch.arange(number, device=backgrounds.device).split(at_once)
    drawn, visible = zip(
        *[_draw_emoji_of(placement, some, sprites) for some in scenes], strict=True
    )
    layers, masks = torch.cat(drawn), torch.cat(visible) > 0.5
    images = layers[:, :3] + (1 - layers[:, 3:]) * backgrounds

    exposure = _uniform((0.85, 1.15), (number, 1, 1, 1), generator)
    spread = _uniform((0.0, 0.05), (number, 1, 1, 1), generator)
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    images = (images * exposure + spread * noise).clamp(0, 1)
    return Scenes(images, placement.sprite[:, -MAX_OBJECTS:], masks)


def _draw_emoji_of(placement: Placement, scenes: Tensor, sprites: Tensor) -> tuple[Tensor, Tensor]:
    """Draw the emoji of some scenes, from the first slot to the last, before nothing.

    Returns:
        float32 (scenes, 4, H, W), premultiplied, and float32 (scenes, 3, H, W): how much of each
        pixel shows each object.
    """
    slots = placement.sprite.shape[1]
    side = IMAGE_SIZE * _SUPERSAMPLING
    layers = sprites.new_zeros(len(scenes), 4, side, side)
    shares = sprites.new_zeros(len(scenes), MAX_OBJECTS, side, side)
    for slot in range(slots):
        # About half of the slots are empty.
        rows = (placement.sprite[scenes, slot] >= 0).nonzero()[:, 0]
        if not len(rows):
            continue
        layer = _layer(placement, scenes[rows], slot, sprites, side)
        behind = 1 - layer[:, 3:]
        layers[rows] = layer + behind * layers[rows]
        shares[rows] *= behind
        number_of_object = slot - (slots - MAX_OBJECTS)
        if number_of_object >= 0:
            shares[rows, number_of_object] = layer[:, 3]
    return F.avg_pool2d(layers, _SUPERSAMPLING), F.avg_pool2d(shares, _SUPERSAMPLING)


def _layer(placement: Placement, rows: Tensor, slot: int, sprites: Tensor, side: int) -> Tensor:
    """The emoji of one slot of some scenes, alone on transparent canvases (rows, 4, side, side)."""
    rotation, stretch = placement.rotation[rows, slot], placement.stretch[rows, slot]
    cosine, sine = rotation.cos(), rotation.sin()
    half = stretch.abs() / 2
    width = (stretch / 2 - half).exp() * placement.flip[rows, slot]
    height = (-stretch / 2 - half).exp()
    # From a place on the canvas to the place on the sprite that is seen there, both in [-1, 1].
    to_sprite = torch.stack(
        [
            torch.stack([cosine / width, sine / width], 1),
            torch.stack([-sine / height, cosine / height], 1),
        ],
        1,
    ) * (IMAGE_SIZE / placement.size[rows, slot, None, None])
    centre = placement.centre[rows, slot] * (2 / IMAGE_SIZE) - 1
    theta = torch.cat([to_sprite, -to_sprite @ centre[:, :, None]], 2)
    grid = F.affine_grid(theta, [len(rows), 4, side, side], align_corners=False)
    layer = F.grid_sample(sprites[placement.sprite[rows, slot]], grid, align_corners=False)
    colour, alpha = layer[:, :3], layer[:, 3:]
    # Premultiplied colour is never brighter than its alpha.
    colour = torch.minimum(colour * placement.gain[rows, slot, :, None, None], alpha)
    return torch.cat([colour, alpha], 1)


def _centres_apart(size: Tensor, present: Tensor, generator: torch.Generator) -> Tensor:
    """Centres (N, 3, 2) at which the objects lie inside the picture and keep their distance.

    Of 24 random layouts per scene the first without overlap is taken, else the one that
    overlaps least.
    """
    tries = 24
    margin = 0.45 * size[:, None, :, None]
    chance = _uniform((0.0, 1.0), (len(size), tries, MAX_OBJECTS, 2), generator)
    centres = margin + chance * (IMAGE_SIZE - 2 * margin)
    gaps = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        distance = (centres[:, :, i] - centres[:, :, j]).norm(dim=-1)
        gap = distance - 0.45 * (size[:, i] + size[:, j])[:, None]
        both = (present[:, i] & present[:, j])[:, None]
        gaps.append(gap.where(both, torch.full_like(gap, math.inf)))
    gap = torch.stack(gaps).amin(0).clamp(max=0)
    best = gap.argmax(1)  # the first of several equal ones
    return centres[torch.arange(len(size), device=size.device), best]


def draw_backgrounds(number: int, generator: torch.Generator) -> Tensor:
    """Draw backgrounds: a ramp or horizon, clouds, stripes and blobs, each in some scenes only.

    Returns:
        float32 (N, 3, 96, 96) in [0, 1].
    """
    device = generator.device
    axis = (torch.arange(IMAGE_SIZE, device=device) + 0.5) * (2 / IMAGE_SIZE) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    image = _ramp(number, x, y, generator)
    image = image + _clouds(number, generator)
    image = image + _stripes(number, x, y, generator)
    for _ in range(6):
        image = _add_blob(image, x, y, generator)
    return image.clamp(0, 1)


def _ramp(number: int, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Two colours that meet in a line of any direction, softly or sharply."""
    one = (number, 1, 1, 1)
    distance = _along_random_direction(number, x, y, generator)
    sharpness = _uniform((0.0, math.log(30.0)), one, generator).exp()
    mix = torch.sigmoid(sharpness * (distance - _uniform((-0.6, 0.6), one, generator)))
    return torch.lerp(_colours(number, generator), _colours(number, generator), mix)


def _clouds(number: int, generator: torch.Generator) -> Tensor:
    """Smooth noise of five grain sizes, grey or coloured."""
    one = (number, 1, 1, 1)
    clouds = torch.zeros(number, 3, IMAGE_SIZE, IMAGE_SIZE, device=generator.device)
    for cells in (3, 6, 12, 24, 48):
        strength = _uniform((0.0, 0.35), one, generator) * _coin(one, generator)
        coloured = _uniform((-0.5, 0.5), (number, 3, cells, cells), generator)
        grey = coloured.mean(1, keepdim=True)
        noise = torch.lerp(grey, coloured, _uniform((0.0, 1.0), one, generator))
        noise = F.interpolate(noise, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
        clouds = clouds + strength * noise
    return clouds


def _stripes(number: int, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Waves of any direction and width, from soft to hard edged."""
    one = (number, 1, 1, 1)
    distance = _along_random_direction(number, x, y, generator)
    frequency = _uniform((3.0, 30.0), one, generator)
    phase = _uniform((0.0, 2 * math.pi), one, generator)
    hardness = _uniform((0.3, 4.0), one, generator)
    wave = torch.tanh(hardness * torch.sin(frequency * distance + phase))
    colour = _uniform((-0.18, 0.18), (number, 3, 1, 1), generator)
    return wave * colour * _coin(one, generator)


def _add_blob(image: Tensor, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Lay one ellipse or rounded rectangle over each image, or none."""
    number = len(image)
    one = (number, 1, 1, 1)
    angle = _uniform((0.0, math.pi), one, generator)
    dx = x - _uniform((-1.0, 1.0), one, generator)
    dy = y - _uniform((-1.0, 1.0), one, generator)
    u = (dx * angle.cos() + dy * angle.sin()) / _uniform((0.08, 0.6), one, generator)
    v = (dy * angle.cos() - dx * angle.sin()) / _uniform((0.08, 0.6), one, generator)
    power = torch.where(_coin(one, generator) > 0, 2.0, 8.0)
    radius = (u.abs() ** power + v.abs() ** power) ** (1 / power)
    edge = _uniform((3.0, 25.0), one, generator)
    opacity = _uniform((0.2, 1.0), one, generator) * _coin(one, generator)
    return torch.lerp(
        image, _colours(number, generator), opacity * torch.sigmoid(edge * (1 - radius))
    )


def _along_random_direction(
    number: int, x: Tensor, y: Tensor, generator: torch.Generator
) -> Tensor:
    angle = _uniform((0.0, 2 * math.pi), (number, 1, 1, 1), generator)
    return x * angle.cos() + y * angle.sin()


def _colours(number: int, generator: torch.Generator) -> Tensor:
    """Colours (N, 3, 1, 1) from grey to saturated."""
    colour = _uniform((0.05, 0.95), (number, 3, 1, 1), generator)
    saturation = _uniform((0.2, 1.0), (number, 1, 1, 1), generator)
    return torch.lerp(colour.mean(1, keepdim=True), colour, saturation)


def _uniform(
    interval: tuple[float, float], shape: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    low, high = interval
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def _coin(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """0 or 1, each half of the time, as float32."""
    return (_uniform((0.0, 1.0), shape, generator) < 0.5).float()


def _sign(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2 * _coin(shape, generator) - 1


def _either_side(
    interval: tuple[float, float], shape: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    return _uniform(interval, shape, generator) * _sign(shape, generator)
