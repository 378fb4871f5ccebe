"""What figures are laid out by: lines broken by the width of letters, places in inches."""

from __future__ import annotations

from functools import lru_cache

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from captum_transformer_lrp.printing import printable

ELLIPSIS = "…"


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """The width of one line of text in points, in matplotlib's default font.

    >>> text_width("WW", 10) > text_width("ll", 10) > 0
    True
    """
    if not text:
        return 0.0
    width, _, _ = text_to_path.get_text_width_height_descent(
        text, FontProperties(size=size, weight=weight), ismath=False
    )
    return float(width)


def axes_at(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """New axes, placed in inches from the lower left of a figure."""
    wide, high = figure.get_size_inches()
    return figure.add_axes((x / wide, y / high, width / wide, height / high))


def percent(probability: float) -> str:
    """A probability for a reader.

    >>> percent(0.9876), percent(0.00002)
    ('98.8 %', '< 0.1 %')
    """
    return "< 0.1 %" if 0 < probability < 0.0005 else f"{100 * probability:.1f} %"


def wrap(
    text: str, width: float, size: float, *, max_lines: int = 3, weight: str = "normal"
) -> list[str]:
    """Break a text into lines no wider than `width` points.

    Words that are too long for a line are broken; text beyond `max_lines` becomes an ellipsis.

    >>> wrap("soft-coated wheaten terrier", 90, 10)
    ['soft-coated', 'wheaten terrier']
    >>> len(wrap("W" * 100, 80, 10, max_lines=2))
    2
    """

    def fits(line: str) -> bool:
        return text_width(line, size, weight) <= width

    lines: list[str] = []
    line = ""
    for word in printable(" ".join(text.split())).split(" "):
        candidate = f"{line} {word}" if line else word
        if fits(candidate):
            line = candidate
            continue
        if line:
            lines.append(line)
        rest = word
        while not fits(rest) and len(rest) > 1:
            # At least one letter, however narrow the line, so that this ends.
            head = next((n for n in range(2, len(rest)) if not fits(rest[:n])), len(rest)) - 1
            # Rather after an underscore than within a word.
            head = rest.rfind("_", 1, head) + 1 or head
            lines.append(rest[:head])
            rest = rest[head:]
        line = rest
    lines.append(line)
    if len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while last and not fits(last + ELLIPSIS):
        last = last[:-1]
    return [*lines[: max_lines - 1], last + ELLIPSIS]
