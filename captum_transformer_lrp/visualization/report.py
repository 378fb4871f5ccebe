"""A report: figures, texts and tables on one HTML page that needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from captum_transformer_lrp.visualization.page import render
from captum_transformer_lrp.visualization.text import TextExplanation

# Larger than life (96): letters of ten points are then easily read, and panels are not tiny.
_CSS_PIXELS_PER_INCH = 125


@dataclass(frozen=True)
class Picture:
    """One figure of a report.

    Args:
        title: what stands below it; empty for none.
        figure: what is shown.
        alt: what the figure shows, in words, for readers who do not see it.
    """

    title: str
    figure: Figure
    alt: str

    @property
    def data_uri(self) -> str:
        """The figure as WebP, a fifth of a PNG's size, inside the address itself."""
        file = io.BytesIO()
        self.figure.savefig(file, format="webp", dpi=200, pil_kwargs={"quality": 85})
        return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")

    @property
    def width(self) -> int:
        """How wide it is shown where there is room, in CSS pixels."""
        return round(_CSS_PIXELS_PER_INCH * self.figure.get_figwidth())


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Args:
        caption: what it says.
        header: one name per column; the first column names the rows.
        rows: one text per column.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A heading with what belongs to it, usually one input.

    Args:
        title: the heading.
        text: a paragraph below it.
        pictures: figures.
        texts: for each method by name, its explanations, one per class. The same words are
            expected of all of them.
        tables: tables, below everything else.
    """

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    texts: Mapping[str, Sequence[TextExplanation]] = field(default_factory=dict)
    tables: Sequence[Table] = ()

    @property
    def numbers(self) -> Table | None:
        """The relevance of every word for every class by every method."""
        columns = [(method, one) for method, found in self.texts.items() for one in found]
        if not columns:
            return None
        rows = [
            [word.text, *(f"{one.words[place].attribution:.3g}" for _, one in columns)]
            for place, word in enumerate(columns[0][1].words)
        ]
        header = ["word", *(f"{method}: {one.class_name}" for method, one in columns)]
        return Table("", header, rows)


def report_html(
    sections: Sequence[Section],
    *,
    title: str = "Explanations",
    introduction: str = "",
    lang: str = "en",
    footer: Mapping[str, str] | None = None,
) -> str:
    """One self-contained page, readable on a phone; everything that comes from you is escaped.

    Args:
        sections: what is shown, in order; figures are embedded.
        title: the page's heading.
        introduction: a paragraph below the heading.
        lang: the page's language as a BCP 47 tag.
        footer: names with values that stand at the page's end, such as how it was computed.

    Example:
        >>> section = Section("Photos", pictures=[Picture("A cat", Figure(), "a cat, lit up")])
        >>> page = report_html([section], introduction="a < b")
        >>> 'alt="a cat, lit up"' in page, "a &lt; b" in page
        (True, True)
    """
    return render(
        "report.html.jinja",
        title=title,
        introduction=introduction,
        lang=lang,
        sections=sections,
        footer=footer or {},
    )
