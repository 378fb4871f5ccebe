"""What a benchmark finds: figures with standard errors, curves, and how they are written down."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from captum_transformer_lrp.printing import printable
from captum_transformer_lrp.result import without_nan

MODEL = "model"
"""The method of figures that are the model's own, such as its accuracy."""


@dataclass(frozen=True)
class Figure:
    """One number of a result.

    Args:
        method: the method that it is of, or :data:`MODEL`.
        metric: what was measured, such as ``"positive AUC"``.
        condition: under which condition, such as ``"predicted"`` or ``"k=10"``; may be empty.
        value: the number, in ``unit``.
        standard_error: of the value, over the examples; NaN if there is only one.
        count: how many examples it is of.
        unit: such as ``"%"``.
        difference: the mean over the examples of this method's value minus the reference
            method's on the same example; None for the reference method itself.
        difference_standard_error: of the difference.
    """

    method: str
    metric: str
    condition: str
    value: float
    standard_error: float
    count: int
    unit: str = ""
    difference: float | None = None
    difference_standard_error: float | None = None

    @property
    def title(self) -> str:
        """The metric with its condition.

        >>> Figure("rollout", "positive AUC", "predicted", 20.0, 1.0, 500).title
        'positive AUC, predicted'
        """
        return ", ".join(part for part in (self.metric, self.condition) if part)


@dataclass(frozen=True)
class Curve:
    """A metric over steps, such as accuracy over the share of pixels removed.

    Args:
        method: the method that it is of.
        panel: curves of the same panel are drawn into the same axes.
        x: the steps.
        y: the values.
        standard_errors: of the values.
        x_label: what the steps are, with their unit.
        y_label: what the values are, with their unit.
    """

    method: str
    panel: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    standard_errors: tuple[float, ...]
    x_label: str
    y_label: str


class Panel(NamedTuple):
    """Curves of a metric, one for each method: x by condition, and the labels of x and y."""

    title: str
    metric: str
    x: Mapping[str, float]
    labels: tuple[str, str]

    def curve(self, figures: Sequence[Figure]) -> Curve:
        """The curve through figures of one method."""
        y, errors = zip(*((one.value, one.standard_error) for one in figures), strict=True)
        x = tuple(map(float, self.x.values()))
        return Curve(figures[0].method, self.title, x, y, errors, *self.labels)


@dataclass(frozen=True)
class Summary:
    """What a benchmark makes of all records.

    Args:
        figures: in the order of the table.
        curves: in the order of the legend.
        columns: the metrics (their :attr:`Figure.title`) that go into tables; None for all.
    """

    figures: tuple[Figure, ...]
    curves: tuple[Curve, ...] = ()
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Result:
    """A finished benchmark.

    Args:
        benchmark: its name.
        settings: everything that the figures depend on.
        examples: how many examples it is of, skipped ones included.
        skipped: the examples that could not be read, with the reason.
        summary: figures and curves.
        pending: examples that an unfinished run has still to do.
        seconds: for each method, the mean time that one example took.
    """

    benchmark: str
    settings: Mapping[str, Any]
    examples: int
    skipped: tuple[tuple[str, str], ...]
    summary: Summary
    pending: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All figures."""
        return self.summary.figures

    def figure(self, method: str, metric: str, condition: str = "") -> Figure:
        """The figure of a method; a KeyError lists what there is."""
        for one in self.figures:
            if (one.method, one.metric, one.condition) == (method, metric, condition):
                return one
        known = sorted({f"{one.method}: {one.title}" for one in self.figures})
        raise KeyError(f"no {metric!r} ({condition!r}) of {method!r}; there are {known}")

    def tables(self, width: int) -> list[Table]:
        """Tables for a terminal of so many characters: a row for each method, ± one standard error.

        Metrics that do not fit beside each other go into further tables below.
        """
        titles, rows = self._cells()
        methods = [printable(method) for method, _ in rows]
        longest = min(max(map(len, ["method", *methods])), max(width // 3, len("method")))
        needed = [
            # Titles are broken between words, cells are not.
            max(map(len, [*title.split(), *(cells[place] for _, cells in rows)]))
            for place, title in enumerate(titles)
        ]
        tables: list[Table] = []
        for columns in _side_by_side(needed, width - longest):
            table = Table(title=None if tables else f"{self.benchmark}, {self._counted()}")
            table.add_column("method", overflow="fold", width=longest)
            for place in columns:
                table.add_column(titles[place], justify="right", min_width=needed[place])
            for method, (_, cells) in zip(methods, rows, strict=True):
                table.add_row(Text(method), *(cells[place] for place in columns))
            tables.append(table)
        return tables

    def markdown(self) -> str:
        """The same table in Markdown, to paste."""
        titles, rows = self._cells()
        lines = [
            "| " + " | ".join(["method", *titles]) + " |",
            "|" + "---|" + "---:|" * len(titles),
            *("| " + " | ".join([f"`{method}`", *cells]) + " |" for method, cells in rows),
            "",
            f"{self._counted()}; ± one standard error.",
        ]
        lines += [
            f"{one.title[:1].upper()}{one.title[1:]}: {_number(one)}."
            for one in self.figures
            if one.method == MODEL
        ]
        lines += [f"Skipped: `{identifier}` ({reason})." for identifier, reason in self.skipped]
        return "\n".join(lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Everything but the times, as JSON: the same settings give the same bytes."""
        return {
            "benchmark": self.benchmark,
            "examples": self.examples,
            "pending": self.pending,
            "skipped": [{"id": name, "reason": reason} for name, reason in self.skipped],
            "settings": dict(self.settings),
            "figures": without_nan([asdict(one) for one in self.figures]),
            "curves": without_nan([asdict(one) for one in self.summary.curves]),
        }

    def save(self, folder: Path) -> None:
        """Write results.json, results.csv, results.md, seconds.json and curves.png."""
        folder.mkdir(parents=True, exist_ok=True)
        files = {
            "results.json": json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n",
            "results.md": self.markdown(),
            "seconds.json": json.dumps(dict(self.seconds), indent=1) + "\n",
            "results.csv": self._csv(),
        }
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8", newline="")
        if self.summary.curves:
            curves_figure(self.summary.curves).savefig(folder / "curves.png", dpi=150)

    def _csv(self) -> str:
        """One row for each figure; every setting is a column, so that files can be joined."""
        about = {
            "benchmark": self.benchmark,
            "examples": self.examples,
            "skipped": len(self.skipped),
            **{
                f"setting: {name}": value if isinstance(value, str) else json.dumps(value)
                for name, value in self.settings.items()
            },
        }
        stream = StringIO(newline="")
        writer = csv.DictWriter(stream, [*Figure.__dataclass_fields__, *about])
        writer.writeheader()
        writer.writerows(without_nan(asdict(one)) | about for one in self.figures)
        return stream.getvalue()

    def _counted(self) -> str:
        used = self.examples - len(self.skipped)
        without = f" ({len(self.skipped)} skipped)" if self.skipped else ""
        pending = f", {self.pending} still to do" if self.pending else ""
        return f"{used} examples{without}{pending}"

    def _cells(self) -> tuple[list[str], list[tuple[str, list[str]]]]:
        shown = {(one.method, one.title): one for one in self.figures if one.method != MODEL}
        titles = list(self.summary.columns or dict.fromkeys(title for _, title in shown))
        units = {title: one.unit for (_, title), one in shown.items()}
        rows = []
        for method in dict.fromkeys(method for method, _ in shown):
            found = [shown.get((method, title)) for title in titles]
            rows.append((method, [_number(one, unit=False) if one else "" for one in found]))
        return [f"{one} [{units[one]}]" if units.get(one) else one for one in titles], rows


def _side_by_side(widths: Sequence[int], room: int) -> list[list[int]]:
    """Which columns of a table stand together, so that each group fits into the room beside names.

    >>> _side_by_side([9, 9, 9], room=30)
    [[0, 1], [2]]
    """
    border, between = 4, 3
    groups: list[list[int]] = [[]]
    for place, width in enumerate(widths):
        taken = border + sum(widths[one] + between for one in groups[-1])
        if groups[-1] and taken + width + between > room:
            groups.append([])
        groups[-1].append(place)
    return groups


def _number(figure: Figure, *, unit: bool = True) -> str:
    """The value with its standard error, both to the digits that the error leaves meaningful.

    >>> _number(Figure("m", "AUC", "", 12.3456, 0.123, 50, unit="%"))
    '12.35 ± 0.12 %'
    """
    digits = 4 if abs(figure.value) < 1 and figure.unit != "%" else 2
    text = f"{figure.value:.{digits}f}"
    if not math.isnan(figure.standard_error):
        text += f" ± {figure.standard_error:.{digits}f}"
    return f"{text} {figure.unit}" if unit and figure.unit else text


def curves_figure(curves: Sequence[Curve]) -> Any:
    """Draw each panel's curves into axes of their own, ± one standard error shaded.

    Of more than seven methods the errors are not shaded: shades one over the other hide the curves.

    Example:
        >>> figure = curves_figure([Curve("ours", "positive", (10, 20), (9, 5), (1, 1), "x", "y")])
        >>> [axes.get_title() for axes in figure.axes]
        ['positive']
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure as Drawing

    panels = list(dict.fromkeys(curve.panel for curve in curves))
    methods = list(dict.fromkeys(curve.method for curve in curves))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Drawing(figsize=(columns * 4.2 + 2.6, rows * 3.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    palette = colormaps["tab10" if len(methods) <= 10 else "tab20"]
    for axes, panel in zip(grid, panels, strict=False):
        for curve in (one for one in curves if one.panel == panel):
            number = methods.index(curve.method)
            color = palette(number % palette.N)
            # Twenty colours are hard to tell apart; the first method is the thickest line.
            width = 1.2 if number else 2.2
            axes.plot(curve.x, curve.y, color=color, linewidth=width, label=curve.method)
            if len(methods) <= 7:
                y, error = np.array(curve.y), np.array(curve.standard_errors)
                axes.fill_between(curve.x, y - error, y + error, color=color, alpha=0.12, lw=0)
            axes.set_xlabel(curve.x_label)
            axes.set_ylabel(curve.y_label)
        axes.set_title(panel, parse_math=False)
        axes.grid(alpha=0.25)
    for unused in grid[len(panels) :]:
        unused.set_visible(False)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    return figure
