"""Relevant words: as an HTML page, in the terminal, and as a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from captum_transformer_lrp.printing import printable
from captum_transformer_lrp.visualization.colors import Scale
from captum_transformer_lrp.visualization.labels import percent, text_width, wrap
from captum_transformer_lrp.visualization.page import render
from captum_transformer_lrp.visualization.words import Word

if TYPE_CHECKING:
    from rich.console import Group

_SIZE = 12.0
_LINE_POINTS = 1.9 * _SIZE
_MARGIN_POINTS = 14.0
_PADDING_POINTS = 2.0


@dataclass(frozen=True)
class TextExplanation:
    """Why a model says (or does not say) that a text belongs to a class.

    Args:
        class_name: the explained class.
        words: the text's words in order, from `words_from_pieces`.
        probability: what the model gives to the class, 0 to 1; None leaves it out.
    """

    class_name: str
    words: Sequence[Word]
    probability: float | None = None

    @property
    def title(self) -> str:
        """The class name with its probability, and whether no word is relevant.

        >>> TextExplanation("positive", [], 0.987).title
        'positive, 98.7 %'
        >>> TextExplanation("positive", [Word("film", 0.0)]).title
        'positive, zero everywhere'
        """
        parts = [self.class_name]
        if self.probability is not None:
            parts.append(percent(self.probability))
        if self.words and not any(word.attribution for word in self.words):
            parts.append("zero everywhere")
        return ", ".join(parts)

    @property
    def scale(self) -> Scale:
        """The colours of the words: white is no relevance."""
        return Scale.from_zero(np.array([word.attribution for word in self.words] or [0.0]))


def text_html(
    explanations: Sequence[TextExplanation],
    *,
    title: str = "Relevant words",
    lang: str = "en",
    footer: Mapping[str, str] | None = None,
) -> str:
    """One self-contained HTML page: the text once per class, its words coloured by relevance.

    Everything that comes from the caller is escaped: a token may be `<script>`.

    Args:
        explanations: one per explained class.
        title: the page's heading.
        lang: the text's language as a BCP 47 tag, which screen readers and browsers go by.
        footer: names with values that stand at the page's end, such as how it was computed.

    Example:
        >>> page = text_html([TextExplanation("positive", [Word("<b>", 1.0)])])
        >>> "<b>" in page, "&lt;b&gt;" in page
        (False, True)
    """
    return render(
        "text.html.jinja", title=title, lang=lang, texts=explanations, footer=footer or {}
    )


def text_terminal(explanations: Sequence[TextExplanation]) -> Group:
    """The same for a terminal: a rich renderable, to be given to `rich.print`.

    Rich comes with the extra `cli`.

    Example:
        >>> from rich.console import Console
        >>> words = [Word("[red]good", 0.9), Word("film", 0.1, before=" ")]
        >>> Console(color_system=None).print(text_terminal([TextExplanation("positive", words)]))
        positive
        [red]good film
    """
    from rich.console import Group
    from rich.text import Text

    lines = []
    for explanation in explanations:
        lines.append(Text(printable(explanation.title), style="bold"))
        line = Text()
        for word in explanation.words:
            # Line breaks of the text itself stay; all other control characters are shown as such.
            before = word.before.replace("\t", " ")
            line.append("\n" if "\n" in before else printable(before))
            color = explanation.scale.text_color(word.attribution)
            line.append(printable(word.text), style=f"#111111 on {color}")
        lines.append(line)
    return Group(*lines)


def text_figure(explanations: Sequence[TextExplanation], *, width: float = 6.5) -> Figure:
    """The same as a figure of coloured boxes, for papers and slides.

    Args:
        explanations: one per explained class.
        width: the figure's width in inches; lines are broken to fit it.

    Example:
        >>> words = [Word("good", 0.9), Word("film", 0.1, before=" ")]
        >>> figure = text_figure([TextExplanation("positive", words)])
        >>> [text.get_text() for text in figure.texts]
        ['positive', 'good', 'film']
    """
    room = 72 * width - 2 * _MARGIN_POINTS
    blocks = [
        (wrap(one.title, room, _SIZE, weight="bold"), _lines(one.words, room), one.scale)
        for one in explanations
    ]
    rows = sum(len(titles) + len(lines) + 0.6 for titles, lines, _ in blocks)
    height = rows * _LINE_POINTS + 2 * _MARGIN_POINTS
    figure = Figure(figsize=(width, height / 72))
    # Notebooks do not show figures without axes.
    figure.add_axes((0, 0, 1, 1)).set_axis_off()

    def write(x: float, y: float, text: str, **style: Any) -> None:
        # By the baseline: by their tops, words with accents would stand lower than others.
        baseline = _MARGIN_POINTS + y + 0.95 * _SIZE
        position = (_MARGIN_POINTS + x) / (72 * width), 1 - baseline / height
        figure.text(*position, text, fontsize=_SIZE, va="baseline", parse_math=False, **style)

    def colour(x: float, y: float, text: str, color: str, *, touches: bool) -> None:
        # No `bbox` of the text: that of a comma would be drawn over the end of the word before it.
        before = 0.0 if touches else _PADDING_POINTS
        wide = before + text_width(text, _SIZE) + _PADDING_POINTS
        high = 1.2 * _SIZE + 2 * _PADDING_POINTS
        left, top = _MARGIN_POINTS + x - before, _MARGIN_POINTS + y - _PADDING_POINTS
        corner = left / (72 * width), 1 - (top + high) / height
        box = Rectangle(corner, wide / (72 * width), high / height, facecolor=color, linewidth=0)
        box.set_transform(figure.transFigure)
        figure.add_artist(box)

    y = 0.0
    for titles, lines, scale in blocks:
        for title in titles:
            write(0, y, title, weight="bold")
            y += _LINE_POINTS
        for line in lines:
            end = -1.0
            for x, text, attribution in line:
                colour(x, y, text, scale.text_color(attribution), touches=math.isclose(x, end))
                write(x, y, text, color="#111111")
                end = x + text_width(text, _SIZE)
            y += _LINE_POINTS
        y += 0.6 * _LINE_POINTS
    return figure


def _lines(words: Sequence[Word], room: float) -> list[list[tuple[float, str, float]]]:
    """Words as (x in points, text, attribution), broken into lines."""
    space = text_width("n", _SIZE)
    lines: list[list[tuple[float, str, float]]] = [[]]
    x = 0.0
    for word in words:
        gap = space if word.before and lines[-1] else 0.0
        for text in wrap(word.text, room, _SIZE, max_lines=99):
            if lines[-1] and x + gap + text_width(text, _SIZE) > room:
                lines.append([])
                x = gap = 0.0
            lines[-1].append((x + gap, text, word.attribution))
            x += gap + text_width(text, _SIZE)
            gap = 0.0
    return lines
