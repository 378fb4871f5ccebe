"""Relevance maps over photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from captum_transformer_lrp.visualization.arrays import (
    ArrayLike,
    FloatArray,
    ImageLike,
    to_map,
    to_rgb,
)
from captum_transformer_lrp.visualization.colors import PERCENTILE, Scale
from captum_transformer_lrp.visualization.labels import axes_at, percent, wrap

_Panel: TypeAlias = tuple[FloatArray, list[str], str]
"""Pixels, the lines of the title, and what stands across the picture."""

PANEL_INCHES = 2.4
_TITLE_SIZE = 10.0
_LINE_INCHES = 1.3 * _TITLE_SIZE / 72
# Space around the figure, between panels, for row labels, and for the colour bar with its words.
_MARGIN, _GAP, _LABEL_INCHES, _COLOR_BAR_INCHES = 0.12, 0.1, 0.42, 1.05
_CAPTION_SIZE = 7.5
_NOTE_STYLE: dict[str, Any] = {
    "ha": "center",
    "va": "center",
    "fontsize": _CAPTION_SIZE,
    "color": "white",
    "bbox": {"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 2},
}
# How the eye weighs red, green and blue (ITU-R BT.601): the photo under an overlay is grey, so that
# its own colours are not taken for relevance.
_LUMINANCE = (0.299, 0.587, 0.114)


def blend(
    image: ImageLike, attribution: ArrayLike, *, opacity: float = 0.6, scale: Scale | None = None
) -> FloatArray:
    """One photo in grey under its relevance map in colour, as (H, W, 3) floats between 0 and 1.

    Args:
        image: what `overlay_image` takes.
        attribution: (H, W), (C, H, W) or (1, C, H, W); channels are added up.
        opacity: how much of the map is seen, 0 (the photo alone) to 1 (the map alone). A map with
            both signs is transparent where it is near zero, and its opacity grows with its size.
        scale: the values at the ends of the colour map; by default, those of the map up to the
            99th percentile of its sizes.

    Raises:
        ValueError: where the map and the photo have different sizes, or contain NaN.

    Example:
        >>> blend(np.zeros((2, 2, 3)), np.eye(2)).shape
        (2, 2, 3)
    """
    photo, relevance = to_rgb(image), to_map(attribution)
    if photo.shape[:2] != relevance.shape:
        raise ValueError(
            f"found a map of {_size(relevance)} on an image of {_size(photo)} pixels, expected the "
            "same size: draw the image as the model saw it, and attribute with granularity='input'"
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"found opacity={opacity}, expected a number between 0 and 1")
    scale = scale or Scale.of([relevance], PERCENTILE)
    grey = (photo @ np.asarray(_LUMINANCE))[..., None]
    colors = scale.overlay_colors(relevance)
    most = opacity
    if scale.signed:
        # They hide the photo only where they are large, so they may hide more of it there; on a
        # photo that is somewhat darker, both colours are seen.
        most, grey = min(1.0, 1.5 * opacity), (1 - 0.6 * opacity) * grey
    share = most * colors[..., 3:]
    return np.clip((1 - share) * grey + share * colors[..., :3], 0, 1)


def overlay(
    image: ImageLike,
    attribution: ArrayLike,
    *,
    box: tuple[float, float, float, float] | None = None,
    opacity: float = 0.6,
) -> npt.NDArray[np.uint8]:
    """One photo under its relevance map, at the photo's own size, as an array to show or to save.

    It stands where pytorch-grad-cam's `show_cam_on_image` stands. The map may be of any size; it
    is enlarged to the photo.

    Args:
        image: a photo of any size, else as `overlay_image` takes it.
        attribution: (H, W), (C, H, W) or (1, C, H, W); channels are added up.
        box: the part of the photo that the map is of, as (left, top, right, bottom) in pixels,
            where the model was given a crop; `captum_transformer_lrp.photos.seen_part` finds it.
            The whole photo by default.
        opacity: as in `blend`.

    Returns:
        (H, W, 3), uint8, red, green, blue.

    Example:
        >>> overlay(np.zeros((480, 640, 3), dtype=np.uint8), np.random.rand(14, 14)).shape
        (480, 640, 3)
    """
    photo = to_rgb(image)
    relevance = on_photo(attribution, (photo.shape[1], photo.shape[0]), box)
    return np.round(255 * blend(photo, relevance, opacity=opacity)).astype(np.uint8)


def on_photo(
    attribution: ArrayLike,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> FloatArray:
    """A map enlarged to a photo, zero where the model saw nothing of it.

    Args:
        attribution: as `overlay` takes it.
        size: the photo's width and height.
        box: as `overlay` takes it.

    Returns:
        (height, width). Values between those of the map are interpolated; none is larger.

    Example:
        >>> on_photo(np.ones((2, 2)), (6, 2), (2, 0, 4, 2))
        array([[0., 0., 1., 1., 0., 0.],
               [0., 0., 1., 1., 0., 0.]])
    """
    left, top, right, bottom = (round(side) for side in box or (0, 0, *size))
    if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        raise ValueError(
            f"found box={box}, expected (left, top, right, bottom) within a photo of "
            f"{size[0]}x{size[1]} pixels"
        )
    relevance = Image.fromarray(to_map(attribution).astype(np.float32))
    placed = np.zeros((size[1], size[0]))
    enlarged = relevance.resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    placed[top:bottom, left:right] = np.asarray(enlarged)
    return placed


def overlay_image(
    image: ImageLike, attribution: ArrayLike, *, title: str = "", opacity: float = 0.6
) -> Figure:
    """Draw one relevance map over its photo, with a colour bar in the attribution's own units.

    Args:
        image: a PIL image; an array (H, W, 3), uint8 or float between 0 and 1; or a float tensor
            (3, H, W) between 0 and 1. It must be the image as the model saw it, not normalised.
        attribution: (H, W), (C, H, W) or (1, C, H, W); channels are added up.
        title: what stands above; long titles are wrapped.
        opacity: how much of the map is seen, 0 to 1.

    Raises:
        ValueError: where the map and the photo have different sizes, or contain NaN.

    Example:
        >>> figure = overlay_image(np.zeros((8, 8, 3)), np.eye(8), title="identity")
        >>> [axes.get_title() for axes in figure.axes]
        ['identity', '']
    """
    relevance = to_map(attribution)
    scale = Scale.of([relevance], PERCENTILE)
    panel = _panel(image, relevance, opacity, scale, *([title] if title else []))
    return _draw([[panel]], [], {0: scale}, shared=True)


def class_grid(
    image: ImageLike | None,
    attributions: Sequence[ArrayLike],
    names: Sequence[str],
    probabilities: Sequence[float] | None = None,
    *,
    image_title: str = "photo",
    columns: int = 4,
    opacity: float = 0.6,
    shared_scale: bool = False,
    panel_inches: float = PANEL_INCHES,
) -> Figure:
    r"""Draw the photo, then one overlay per explained class.

    Args:
        image: what `overlay_image` takes; None draws the maps alone.
        attributions: one map per class, each as `overlay_image` takes it.
        names: one class name per map.
        probabilities: one per map, 0 to 1; left out of the titles by default.
        image_title: what stands above the photo.
        columns: panels in a row.
        opacity: how much of the maps is seen, 0 to 1.
        shared_scale: whether equal colours mean equal relevance across classes. By default each
            map uses the whole colour range, as the paper's figures do.
        panel_inches: the width of a square panel. Letters do not shrink with it, so small panels
            stay readable on small screens.

    Raises:
        ValueError: where the lengths disagree, or a map does not fit the photo.

    Example:
        >>> maps = [np.eye(8), np.ones((8, 8))]
        >>> figure = class_grid(np.zeros((8, 8, 3)), maps, ["cat", "dog"], [0.9, 0.1])
        >>> [axes.get_title() for axes in figure.axes[:3]]
        ['photo', 'cat\n90.0 %', 'dog\n10.0 %']
    """
    if len(attributions) != len(names) or not len(names):
        raise ValueError(
            f"found {len(attributions)} maps and {len(names)} names, expected one name per map "
            "and at least one map"
        )
    if probabilities is not None and len(probabilities) != len(names):
        raise ValueError(
            f"found {len(probabilities)} probabilities, expected one for each of {len(names)} names"
        )
    if columns < 1:
        raise ValueError(f"found columns={columns}, expected at least 1")
    chances = [""] * len(names) if probabilities is None else list(map(percent, probabilities))
    maps = [to_map(attribution) for attribution in attributions]
    scales = _scales(maps, shared_scale)
    panels: list[_Panel] = []
    if image is None:
        image, opacity = np.zeros((*maps[0].shape, 3)), 1.0
    else:
        panels.append((to_rgb(image), [image_title], ""))
    for relevance, scale, name, chance in zip(maps, scales, names, chances, strict=True):
        lines = (name, chance) if chance else (name,)
        panels.append(_panel(image, relevance, opacity, scale, *lines))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    return _draw(rows, [], {0: scales[0]}, shared=shared_scale, panel_inches=panel_inches)


def method_class_grid(
    maps: Mapping[str, Mapping[str, ArrayLike]],
    image: ImageLike,
    *,
    image_title: str = "photo",
    opacity: float = 0.6,
    panel_inches: float = PANEL_INCHES,
) -> Figure:
    """Draw a table of overlays: one row per method, one column per class, the photo at the left.

    Each map uses the whole colour range. Methods whose maps have negative values are drawn on a
    diverging scale with a colour bar of its own.

    Args:
        maps: the map of each class by each method. Every method must explain the same classes.
        image: what `overlay_image` takes.
        image_title: what stands above the photo.
        opacity: how much of the maps is seen, 0 to 1.
        panel_inches: as in `class_grid`.

    Raises:
        ValueError: where methods explain different classes, or a map does not fit the photo.

    Example:
        >>> classes = {"cat": np.eye(8), "dog": np.ones((8, 8))}
        >>> maps = {"rollout": classes, "transformer attribution": classes}
        >>> figure = method_class_grid(maps, np.zeros((8, 8, 3)))
        >>> [axes.get_ylabel() for axes in figure.axes[::3][:2]]
        ['rollout', 'transformer attribution']
    """
    classes = list(next(iter(maps.values()), {}))
    for method, of_class in maps.items():
        if list(of_class) != classes:
            raise ValueError(
                f"{method!r} explains {list(of_class)}, expected {classes} as the first method does"
            )
    if not classes:
        raise ValueError("found no maps, expected at least one method with at least one class")
    arrays = [[to_map(of_class[name]) for name in classes] for of_class in maps.values()]
    scales = [_scales(row, shared=False) for row in arrays]
    rows = [
        [
            (to_rgb(image), [image_title], ""),
            *(
                _panel(image, relevance, opacity, scale, name)
                for relevance, scale, name in zip(row, of_row, classes, strict=True)
            ),
        ]
        for row, of_row in zip(arrays, scales, strict=True)
    ]
    # The column's name stands once, above the first row.
    rows[1:] = [[(panel, [], note) for panel, _, note in row] for row in rows[1:]]
    # A colour bar beside the first row of each kind.
    signed = [of_row[0].signed for of_row in scales]
    bars = {signed.index(kind): scales[signed.index(kind)][0] for kind in set(signed)}
    return _draw(rows, list(maps), bars, shared=False, panel_inches=panel_inches)


def _scales(maps: Sequence[FloatArray], shared: bool) -> list[Scale]:
    """One scale per map: all diverge from zero as soon as one map is signed."""
    together = Scale.of(maps, PERCENTILE)
    if shared:
        return [together] * len(maps)
    own = [Scale.of([relevance], PERCENTILE) for relevance in maps]
    if together.signed:
        own = [Scale(-scale.high, scale.high, signed=True) for scale in own]
    return own


def _panel(
    image: ImageLike, relevance: FloatArray, opacity: float, scale: Scale, *lines: str
) -> _Panel:
    """The photo under a map. Who sees a photo without colours must be told why."""
    pixels = blend(image, relevance, opacity=opacity, scale=scale)
    return pixels, list(lines), "" if relevance.any() else "zero everywhere"


def _size(array: FloatArray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _draw(
    rows: Sequence[Sequence[_Panel]],
    labels: Sequence[str],
    bars: Mapping[int, Scale],
    *,
    shared: bool,
    panel_inches: float = PANEL_INCHES,
) -> Figure:
    """Panels in rows, with titles above, labels at the left and colour bars beside some rows.

    Everything is placed in inches: room for the titles is known once they are wrapped.
    """
    pixels_high, pixels_wide = rows[0][0][0].shape[:2]
    panel_width = max(panel_inches * min(1.0, pixels_wide / pixels_high), panel_inches / 3)
    panel_height = panel_width * pixels_high / pixels_wide
    left = _MARGIN + (_LABEL_INCHES if labels else 0)
    titles = [
        [[line for part in lines for line in wrap(part, 72 * panel_width, _TITLE_SIZE)]
         for _, lines, _ in row]
        for row in rows
    ]  # fmt: skip
    title_heights = [
        _LINE_INCHES * max(len(one) * any(one) for one in row) + _GAP for row in titles
    ]
    columns = max(len(row) for row in rows)
    width = left + columns * (panel_width + _GAP) + _COLOR_BAR_INCHES
    caption = wrap(
        f"Colours end at the {PERCENTILE}th percentile of {'all maps' if shared else 'each map'}.",
        72 * (width - left - _MARGIN),
        _CAPTION_SIZE,
    )
    caption_height = 1.3 * _CAPTION_SIZE / 72 * len(caption) + _GAP / 2
    height = sum(title_heights) + len(rows) * panel_height + 2 * _MARGIN + caption_height
    figure = Figure(figsize=(width, height))
    figure.text(
        left / width, _MARGIN / height, "\n".join(caption), fontsize=_CAPTION_SIZE, color="#444444"
    )

    top = height - _MARGIN
    x_bar = left + columns * (panel_width + _GAP)
    bottoms = []
    for index, row in enumerate(rows):
        top -= title_heights[index] + panel_height
        for column, (panel, _, note) in enumerate(row):
            x = left + column * (panel_width + _GAP)
            axes = axes_at(figure, x, top, panel_width, panel_height)
            axes.imshow(panel, interpolation="bicubic", aspect="auto")
            axes.set_xticks([])
            axes.set_yticks([])
            if note:
                axes.text(0.5, 0.5, note, transform=axes.transAxes, **_NOTE_STYLE)
            title = "\n".join(titles[index][column])
            axes.set_title(title, fontsize=_TITLE_SIZE, pad=4, parse_math=False)
            if labels and not column:
                label = "\n".join(wrap(labels[index], 72 * panel_height, _TITLE_SIZE, max_lines=2))
                axes.set_ylabel(label, fontsize=_TITLE_SIZE, parse_math=False)
        bottoms.append(top)
    for index, scale in sorted(bars.items()):
        axes = axes_at(figure, x_bar, bottoms[index], 0.13, panel_height)
        _color_bar(figure, axes, scale, in_units=shared and scale.high > scale.low)
    return figure


def _color_bar(figure: Figure, axes: Axes, scale: Scale, *, in_units: bool) -> None:
    """A bar in the attribution's units, or, where each map has its own scale, in words."""
    # The power of ten stands in the label: above the bar it would touch titles.
    power = int(np.floor(np.log10(scale.high))) if in_units else 0
    power = 0 if -2 <= power <= 3 else power
    limits = (scale.low / 10.0**power, scale.high / 10.0**power) if in_units else (0.0, 1.0)
    bar = figure.colorbar(ScalarMappable(Normalize(*limits), scale.overlay_bar), cax=axes)
    axes.tick_params(labelsize=_TITLE_SIZE - 1.5)
    if in_units:
        axes.ticklabel_format(axis="y", style="plain", useOffset=False)
        unit = f", in units of 1e{power}" if power else ""
        bar.set_label(f"relevance{unit}", fontsize=_TITLE_SIZE - 1)
        return
    words = ["against", "neutral", "for"] if scale.signed else ["least", "most"]
    bar.set_ticks(list(np.linspace(0, 1, len(words))), labels=words)
    # Words at the ends stay beside the bar, so that those of two bars do not touch.
    axes.get_yticklabels()[0].set_verticalalignment("bottom")
    axes.get_yticklabels()[-1].set_verticalalignment("top")
    bar.set_label("relevance", fontsize=_TITLE_SIZE - 1)
