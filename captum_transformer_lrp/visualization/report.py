"""A report: figures and texts on one HTML page that needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from captum_transformer_lrp.visualization.page import render
from captum_transformer_lrp.visualization.text import TextExplanation


@dataclass(frozen=True)
class Picture:
    """One figure of a report.

    Args:
        title: the heading above it.
        figure: what is shown.
        alt: what the figure shows, in words, for readers who do not see it.
    """

    title: str
    figure: Figure
    alt: str

    @property
    def data_uri(self) -> str:
        """The figure as a PNG inside a `data:` address."""
        file = io.BytesIO()
        self.figure.savefig(file, format="png", dpi=150)
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def report_html(
    pictures: Sequence[Picture],
    texts: Sequence[TextExplanation] = (),
    *,
    title: str = "Explanations",
    introduction: str = "",
    lang: str = "en",
) -> str:
    """One self-contained page of figures and texts, readable on a phone.

    Args:
        pictures: the figures, in order; they are embedded.
        texts: the texts below them, one per explained class.
        title: the page's heading.
        introduction: a paragraph below the heading.
        lang: the page's language as a BCP 47 tag.

    Example:
        >>> page = report_html([Picture("A cat", Figure(), "a cat, lit up")], introduction="a < b")
        >>> 'alt="a cat, lit up"' in page, "a &lt; b" in page
        (True, True)
    """
    return render(
        "report.html.jinja",
        title=title,
        introduction=introduction,
        lang=lang,
        pictures=pictures,
        texts=texts,
    )
