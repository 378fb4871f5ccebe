"""Explained images and texts as sections of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from captum_transformer_lrp.cli.predictions import Prediction
from captum_transformer_lrp.cli.subjects import ExplainedImage, ExplainedText

if TYPE_CHECKING:
    from captum_transformer_lrp.visualization import Section

HOW_TO_READ = (
    "Each picture and each text below is explained once per class: bright pixels and coloured "
    "words are those by which the model recognises that class. Each map uses all colours, so a "
    "class that the model hardly believes in has bright pixels, too: look at its probability "
    "first. Methods with values below zero are drawn in two colours, against and for, on a picture "
    "that shows through where values are near zero."
)


def image_section(title: str, found: ExplainedImage, *, text: str = "") -> Section:
    """A photo: one row of overlays by a single method, a grid by several."""
    from captum_transformer_lrp.visualization import (
        Picture,
        Section,
        class_grid,
        method_class_grid,
    )

    maps, photo, title_of_photo = found.drawn_maps(), found.drawn_photo(), found.photo_title()
    if len(maps) == 1:
        (of_class,) = maps.values()
        figure = class_grid(
            photo,
            list(of_class.values()),
            list(of_class),
            [each.probability for each in found.explained],
            image_title=title_of_photo,
            columns=3,  # two classes side by side; more could not be read on a phone
            panel_inches=1.3,
        )
    else:
        figure = method_class_grid(maps, photo, image_title=title_of_photo, panel_inches=1.3)
    classes = listed(found.explained)
    alt = (
        f"{title}: the picture, then where each class is seen, lit up. "
        f"Classes: {classes}. By: {', '.join(maps)}."
    )
    return Section(title, text or f"Explained for: {classes}.", [Picture("", figure, alt)])


def text_section(title: str, found: ExplainedText, *, text: str = "") -> Section:
    """A text, coloured for each class by each method."""
    from captum_transformer_lrp.visualization import Section

    return Section(
        title, text or f"Explained for: {listed(found.explained)}.", texts=found.labelled()
    )


def listed(explained: Sequence[Prediction]) -> str:
    """Classes with their probabilities as a text.

    >>> listed([Prediction(0, "cat", 0.75), Prediction(1, "dog", 0.25)])
    'cat (75.0 %), dog (25.0 %)'
    """
    from captum_transformer_lrp.visualization.labels import percent

    return ", ".join(f"{each.name} ({percent(each.probability)})" for each in explained)
