"""Relevance maps over photos: nothing clipped, nothing NaN, nothing global touched."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from captum_transformer_lrp.visualization import (
    blend,
    class_grid,
    method_class_grid,
    on_photo,
    overlay,
    overlay_image,
)
from captum_transformer_lrp.visualization.colors import Scale

LONG_NAMES = [
    "axolotl, mud puppy, Ambystoma mexicanum, with a description that goes on for ever",
    "W" * 200,
    "costs $5 or $6^2$",
    "cat",
]


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).random((32, 32, 3))


@pytest.fixture
def relevance() -> torch.Tensor:
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def assert_nothing_is_clipped(figure: Figure) -> None:
    FigureCanvasAgg(figure).draw()
    inside = figure.bbox
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box.x0 >= inside.x0, axes.get_title()
        assert box.x1 <= inside.x1, axes.get_title()
        assert box.y0 >= inside.y0, axes.get_title()
        assert box.y1 <= inside.y1, axes.get_title()
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    boxes = [text.get_window_extent() for text in texts]
    for number, box in enumerate(boxes):
        assert box.x0 >= inside.x0, texts[number]
        assert box.x1 <= inside.x1, texts[number]
        for other, text in zip(boxes[:number], texts, strict=False):
            assert not box.overlaps(other), (texts[number], text)


@pytest.mark.parametrize("columns", [2, 4, 9])
@pytest.mark.parametrize("size", [(32, 32), (32, 96), (96, 32)])
def test_long_class_names_are_neither_clipped_nor_overlapping(
    size: tuple[int, int], columns: int
) -> None:
    maps = [np.random.default_rng(index).random(size) for index in range(4)]
    figure = class_grid(
        np.zeros((*size, 3)), maps, LONG_NAMES, [0.5, 0.25, 0.125, 1.0], columns=columns
    )
    assert_nothing_is_clipped(figure)
    assert [axes.get_title().splitlines()[-1] for axes in figure.axes[1:5]] == [
        "50.0 %",
        "25.0 %",
        "12.5 %",
        "100.0 %",
    ]


def test_a_table_of_methods_and_classes_is_not_clipped(photo: np.ndarray) -> None:
    maps = {
        method: {name: np.random.default_rng(0).random((32, 32)) for name in LONG_NAMES}
        for method in ["transformer attribution", "a very long method name " * 5]
    }
    figure = method_class_grid(maps, photo)
    assert_nothing_is_clipped(figure)
    assert len(figure.axes) == 2 * (1 + len(LONG_NAMES)) + 1  # the last is the colour bar


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_one_overlay_is_not_clipped(photo: np.ndarray, scale: float) -> None:
    values = scale * np.random.default_rng(0).random((32, 32))
    assert_nothing_is_clipped(overlay_image(photo, values, title=LONG_NAMES[0]))


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_constant_map_has_colours(photo: np.ndarray, value: float) -> None:
    constant = np.full((32, 32), value)
    assert np.isfinite(blend(photo, constant)).all()
    for shared in (False, True):
        assert_nothing_is_clipped(class_grid(photo, [constant], ["cat"], shared_scale=shared))


def test_zero_is_the_centre_of_a_signed_map() -> None:
    black = np.zeros((1, 3, 3))
    colors = blend(black, np.array([[-1.0, 0.0, 4.0]]), opacity=1.0)[0]
    mirrored = blend(black, np.array([[-4.0, 0.0, 1.0]]), opacity=1.0)[0]
    np.testing.assert_array_equal(colors[1], mirrored[1])
    assert not np.allclose(colors[0], colors[2])


def test_a_signed_map_is_transparent_near_zero_and_hides_the_photo_where_it_is_large(
    photo: np.ndarray,
) -> None:
    values = np.zeros((32, 32))
    values[0, :3] = [-1.0, 0.5, 1.0]
    empty = blend(photo, np.zeros((32, 32)), scale=Scale(-1.0, 1.0, signed=True))
    moved = np.abs(blend(photo, values) - empty).max(-1)
    assert not moved[1:].any()
    grey = np.full((32, 32, 3), 0.5)
    (_, half, whole), *_ = np.abs(
        blend(grey, values) - blend(grey, 0 * values, scale=Scale(-1.0, 1.0, signed=True))
    ).max(-1)[:, :3]
    assert half == pytest.approx(whole / 2)


def test_one_extreme_pixel_does_not_take_the_colours_of_the_others(photo: np.ndarray) -> None:
    values = np.random.default_rng(0).normal(size=(32, 32))
    values[5, 5] = 3
    extreme = values.copy()
    extreme[5, 5] = 1e6
    elsewhere = np.arange(32) != 5
    difference = np.abs(blend(photo, values) - blend(photo, extreme))
    assert difference[elsewhere].max() < 0.02
    # Where few values are not zero, the percentile is, too; they must be seen nonetheless.
    single = np.zeros((32, 32))
    single[3, 3] = 2
    assert blend(photo, single)[3, 3].sum() > 1.5


@pytest.mark.parametrize("signed", [False, True])
def test_an_empty_map_says_so(photo: np.ndarray, signed: bool) -> None:
    beside = np.random.default_rng(0).random((32, 32)) - signed
    figure = class_grid(photo, [np.zeros((32, 32)), beside], ["none", "some"])
    said = [[text.get_text() for text in axes.texts] for axes in figure.axes[:3]]
    assert said == [[], ["zero everywhere"], []]


@pytest.mark.parametrize("shared", [False, True])
def test_the_caption_says_where_the_colours_end(photo: np.ndarray, shared: bool) -> None:
    figure = class_grid(photo, [photo[..., 0]], ["cat"], shared_scale=shared)
    (caption,) = (" ".join(text.get_text().split()) for text in figure.texts)
    which = "all maps" if shared else "each map"
    assert caption == f"Colours end at the 99th percentile of {which}."


def test_words_of_two_colour_bars_do_not_touch(photo: np.ndarray) -> None:
    random = np.random.default_rng(0)
    maps = {"signed": {"cat": random.normal(size=(32, 32))}, "not": {"cat": photo[..., 0]}}
    for panel_inches in (1.3, 2.4):
        assert_nothing_is_clipped(method_class_grid(maps, photo, panel_inches=panel_inches))


def test_channels_are_added_up(photo: np.ndarray, relevance: torch.Tensor) -> None:
    np.testing.assert_array_equal(blend(photo, relevance), blend(photo, relevance[0].sum(0)))


def test_every_kind_of_image_is_drawn_alike(relevance: torch.Tensor) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).movedim(-1, 0)
    expected = blend(pixels, relevance)
    for image in (pixels / 255, Image.fromarray(pixels), tensor, tensor.double() / 255):
        np.testing.assert_allclose(blend(image, relevance), expected, atol=1e-12)


def test_half_precision_attributions_that_need_gradients_are_drawn(photo: np.ndarray) -> None:
    values = torch.rand(32, 32, dtype=torch.bfloat16, requires_grad=True)
    assert np.isfinite(blend(photo, values)).all()


def test_pyplot_is_not_touched() -> None:
    pyplot = sys.modules.get("matplotlib.pyplot")
    before = pyplot.get_fignums() if pyplot else None
    overlay_image(np.zeros((4, 4, 3)), np.eye(4))
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert (pyplot.get_fignums() if pyplot else None) == before


@pytest.mark.parametrize(
    ("image", "values", "message"),
    [
        (np.zeros((4, 4, 3)), np.eye(2), "found a map of 2x2 on an image of 4x4 pixels"),
        (np.zeros((4, 4, 3)), np.full((4, 4), np.nan), "16 values that are NaN"),
        (np.zeros((4, 4, 3)), np.zeros((2, 3, 4, 4)), "pick one example of the batch"),
        (np.zeros((4, 4, 5)), np.eye(4), r"expected \(H, W, 3\)"),
        (np.full((4, 4, 3), 2.0), np.eye(4), "undo the model's normalisation"),
    ],
)
def test_errors_say_what_to_do(image: np.ndarray, values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blend(image, values)


def test_each_map_needs_its_name(photo: np.ndarray) -> None:
    with pytest.raises(ValueError, match="found 1 maps and 2 names"):
        class_grid(photo, [np.eye(32)], ["cat", "dog"])
    with pytest.raises(ValueError, match="found 2 probabilities"):
        class_grid(photo, [np.eye(32)], ["cat"], [0.5, 0.5])


def test_methods_must_explain_the_same_classes(photo: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"'b' explains \['dog'\], expected \['cat'\]"):
        method_class_grid({"a": {"cat": np.eye(32)}, "b": {"dog": np.eye(32)}}, photo)


def test_an_overlay_has_the_size_of_the_photo_and_the_map_in_its_place() -> None:
    photo = np.full((30, 60, 3), 128, dtype=np.uint8)
    values = np.zeros((4, 4))
    values[0, 0] = 1.0
    drawn = overlay(photo, values, box=(20, 0, 40, 20))
    assert drawn.shape == photo.shape
    assert drawn.dtype == np.uint8
    brightest = np.unravel_index(drawn.sum(-1, dtype=int).argmax(), drawn.shape[:2])
    assert 0 <= brightest[0] < 5
    assert 20 <= brightest[1] < 25
    # Nothing is said of what the model did not see.
    np.testing.assert_array_equal(drawn[:, :20], np.broadcast_to(drawn[29, 59], (30, 20, 3)))


def test_an_overlay_of_the_photo_s_own_size_is_what_blend_draws(photo: np.ndarray) -> None:
    values = np.random.default_rng(1).normal(size=(32, 32))
    np.testing.assert_allclose(overlay(photo, values) / 255, blend(photo, values), atol=0.003)


def test_a_map_on_a_photo_exceeds_nothing_that_the_map_has() -> None:
    values = np.random.default_rng(0).random((7, 7))
    placed = on_photo(values, (101, 57))
    assert placed.shape == (57, 101)
    assert placed.min() >= values.min() - 1e-6
    assert placed.max() <= values.max() + 1e-6


def test_a_box_outside_of_the_photo_is_refused() -> None:
    with pytest.raises(ValueError, match="within a photo of 60x30 pixels"):
        on_photo(np.eye(4), (60, 30), (0, 0, 80, 30))
