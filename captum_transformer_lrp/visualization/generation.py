"""Where written words come from: a matrix of words, and a page on which one points at a word."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from captum_transformer_lrp.visualization.colors import PERCENTILE, Scale
from captum_transformer_lrp.visualization.image import class_grid
from captum_transformer_lrp.visualization.matrices import token_matrix
from captum_transformer_lrp.visualization.page import render
from captum_transformer_lrp.visualization.report import Picture, Section, Table, report_html
from captum_transformer_lrp.visualization.text import TextExplanation, text_figure

_MOST_ROWS, _MOST_COLUMNS, _BEST = 100, 200, 5
_MOST_PANELS = 23


def figure_of(story: Any) -> Figure:
    """What is explained × words, the words on both axes; of a single target the coloured words.

    Args:
        story: a `GenerationResult`. Of a long one the first words are drawn.
    """
    if len(story.explained) == 1:
        return text_figure(_as_texts(story))
    rows, columns = story.explained[:_MOST_ROWS], story.words[:_MOST_COLUMNS]
    return token_matrix(
        story.matrix[: len(rows), : len(columns)],
        [word.text for word in columns],
        [one.text for one in rows],
        x_label="comes from",
        y_label="written",
    )


def section_of(story: Any, title: str = "") -> Section:
    """The matrix, or of a single target the coloured words, with the best words as a table."""
    heading = title or "Where the words come from"
    (method,) = story.about.get("methods", [""])
    if len(story.explained) == 1:
        texts = {method: _as_texts(story)}
        return Section(heading, pictures=_photos(story), texts=texts, tables=[table_of(story)])
    count, shown = len(story.explained), min(len(story.explained), _MOST_ROWS)
    more = f" The first {shown} of {count} words." if count > shown else ""
    alt = f"A matrix of {shown} written words × the words before them; bright is relevant."
    hops = story.about.get("options", {}).get("hops")
    passed = f" Relevance on written words was passed on to their sources; hops: {hops}."
    text = (
        f"Each row is a written word, each column a word before it.{passed if hops else ''}{more}"
    )
    shown_pictures = [Picture("", figure_of(story), alt), *_photos(story)]
    return Section(heading, text, shown_pictures, tables=[table_of(story)])


def _photos(story: Any) -> list[Picture]:
    """Each picture that the model saw, beside what each written word comes from in it."""
    written = story.written[:_MOST_PANELS]
    return [
        Picture(
            "" if len(story.pictures) == 1 else f"picture {number + 1}",
            class_grid(
                photo, [one.pixels[number] for one in written], [one.text for one in written],
                image_title="seen", panel_inches=1.6,
            ),
            f"What the model saw, and where in it {len(written)} written words come from.",
        )
        for number, photo in enumerate(story.pictures)
    ]  # fmt: skip


def _as_png(colours: Any) -> str:
    """An array (H, W, 3 or 4), 0 to 1, as an address that holds the picture itself."""
    file = io.BytesIO()
    Image.fromarray(np.uint8(255 * np.clip(colours, 0, 1))).save(file, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def table_of(story: Any) -> Table:
    """For each written word its probability and the words that it mostly comes from."""
    rows = []
    for one in story.written:
        best = [word for word in one.topk(_BEST) if word.attribution > 0]
        listed = ", ".join(f"{word.text} {word.attribution:.2g}" for word in best)
        rows.append([one.text, f"{100 * one.probability:.1f} %", listed])
    return Table("What each written word comes from", ["written", "probability", "from"], rows)


def page_of(story: Any, *, lang: str = "en", footer: Mapping[str, str] | None = None) -> str:
    """One page on which one points at a written word, and the words that it comes from light up.

    Everything that comes from the caller is escaped. The page's policy allows its own script, by
    its hash, and nothing from elsewhere.

    Args:
        story: a `GenerationResult`.
        lang: the page's language as a BCP 47 tag.
        footer: names with values that stand at the page's end.
    """
    if len(story.explained) == 1:
        about = footer or {}
        return report_html([section_of(story)], title="Why this word?", lang=lang, footer=about)
    folder = files("captum_transformer_lrp.visualization") / "templates"
    script = (folder / "generation.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    rows = {one.pieces: number for number, one in enumerate(story.explained)}
    values = story.matrix
    written, words = story.written, []
    for word in story.words:
        row = rows.get(tuple(place - story.start for place in word.pieces))
        shown, pixels = ([], []) if row is None else (values[row], written[row].pixels)
        # A written word's maps are laid over the pictures.
        over = [_as_png(Scale.of([one], PERCENTILE).overlay_colors(one)) for one in pixels]
        words.append((word, " ".join(f"{value:.3g}" for value in shown), " ".join(over)))
    return render(
        "generation.html.jinja",
        title="Where the words come from",
        lang=lang,
        words=words,
        photos=[_as_png(one) for one in story.pictures],
        section=section_of(story),
        script=Markup(script),  # the file beside the template, in which nothing is put
        digest=digest,
        footer=footer or {},
    )


def _as_texts(story: Any) -> list[TextExplanation]:
    return [TextExplanation(one.text, one.words, one.probability) for one in story.written]
