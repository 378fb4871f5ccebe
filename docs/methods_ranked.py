"""Ranks the methods of ``docs/methods.md`` over all metrics, and draws how metrics agree.

From the measurements in ``docs/methods_compared/``::

    python docs/methods_ranked.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import friedmanchisquare, rankdata, spearmanr, studentized_range

HERE: Final = Path(__file__).parent
sys.path.insert(0, str(HERE))

import methods_compared as compared  # noqa: E402

PAGE: Final = HERE / "methods.md"
TABLE: Final = compared.MEASURED / "ranks.csv"
PICTURE: Final = HERE / "images" / "metrics_agree.png"
DRAWS: Final = 2000
"""Of the bootstrap."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """The methods that all of some metrics have measured.

    Args:
        columns: the metrics.
    """

    columns: Sequence[compared.Column]

    @cached_property
    def methods(self) -> list[str]:
        """In the order of the tables."""
        found = [compared.measured(one.benchmark)["values"] for one in self.columns]
        return [name for name in compared.METHODS if all(name in values for values in found)]

    @cached_property
    def values(self) -> list[Array]:
        """For each metric, by method and example; higher is better, or nearer to 0."""
        found = []
        for column in self.columns:
            values = compared.measured(column.benchmark)["values"]
            of_methods = np.array([values[name][column.metric] for name in self.methods])
            found.append(of_methods if column.larger or column.zero else -of_methods)
        return found

    def scores(self, chosen: dict[str, NDArray[np.int64]] | None = None) -> Array:
        """By method and metric, over all examples or over those chosen of each benchmark."""
        scores = []
        for column, values in zip(self.columns, self.values, strict=True):
            some = values if chosen is None else values[:, chosen[column.benchmark]]
            score = (np.median if column.heavy else np.mean)(some, axis=1)
            scores.append(-np.abs(score) if column.zero else score)
        return np.stack(scores, axis=1)

    @cached_property
    def ranks(self) -> Array:
        """By method and metric: 1 is best, ties share the mean."""
        return rankdata(-self.scores(), axis=0)

    @cached_property
    def intervals(self) -> Array:
        """The 2.5th and the 97.5th percentile of each method's mean rank, by paired bootstrap.

        Each draw takes examples of each benchmark with replacement, the same ones for all methods
        and metrics.
        """
        generator = np.random.default_rng(0)
        counts = {one.benchmark: compared.count(one.benchmark) for one in self.columns}
        means = []
        for _ in range(DRAWS):
            chosen = {name: generator.integers(0, n, n) for name, n in counts.items()}
            means.append(rankdata(-self.scores(chosen), axis=0).mean(1))
        return np.percentile(means, [2.5, 97.5], axis=0).T

    def friedman(self) -> float:
        """Friedman's p, of no method being better in any metric, were metrics independent."""
        return float(friedmanchisquare(*self.ranks).pvalue)

    def critical_difference(self) -> float:
        """Nemenyi's, of two mean ranks, at 5 % (Demšar, JMLR 2006)."""
        methods, metrics = self.ranks.shape
        quantile = studentized_range.ppf(0.95, methods, np.inf) / np.sqrt(2)
        return float(quantile * np.sqrt(methods * (methods + 1) / (6 * metrics)))

    def agreement(self) -> Array:
        """Spearman's correlation over the methods of each metric with each."""
        scores = self.scores()
        count = scores.shape[1]
        return np.array(
            [
                [float(spearmanr(scores[:, i], scores[:, j]).statistic) for j in range(count)]
                for i in range(count)
            ]
        )


def rankings() -> dict[str, Ranking]:
    """Of photos and of texts."""
    columns = compared.measured_of([*compared.COLUMNS, *compared.SINGLE, *compared.ROBUST])
    return {
        "photos": Ranking(
            sorted(
                (one for one in columns if one.asks in compared.ASKED),
                key=lambda one: compared.ASKED.index(one.asks),
            )
        ),
        "texts": Ranking([one for one in columns if one.asks == compared.TEXTS]),
    }


def table() -> str:
    """Mean ranks as CSV, the best on photos first."""
    photos, texts = rankings().values()
    asked = [one for one in compared.ASKED if any(of.asks == one for of in photos.columns)]
    rows = [["method", *asked, "photos", "texts"]]
    order = [photos.methods[place] for place in photos.ranks.mean(1).argsort(kind="stable")]
    for method in [*order, *(name for name in texts.methods if name not in order)]:
        cells = [f"`{method}`"]
        for name in asked:
            places = [place for place, one in enumerate(photos.columns) if one.asks == name]
            cells.append(_mean_rank(photos, method, places))
        cells += [_with_interval(one, method) for one in (photos, texts)]
        rows.append(cells)
    return compared.as_csv(rows)


def significance() -> str:
    """What Friedman's test and Nemenyi's say of the ranks."""
    return "\n".join(
        f"* {len(one.columns)} metrics of {name}: Friedman's p is {one.friedman():.0e}, "
        f"and Nemenyi's critical difference {one.critical_difference():.1f} ranks."
        for name, one in rankings().items()
    )


def _mean_rank(ranking: Ranking, method: str, places: Sequence[int]) -> str:
    if method not in ranking.methods:
        return ""
    return f"{ranking.ranks[ranking.methods.index(method), places].mean():.1f}"


def _with_interval(ranking: Ranking, method: str) -> str:
    if method not in ranking.methods:
        return ""
    low, high = ranking.intervals[ranking.methods.index(method)]
    mean = _mean_rank(ranking, method, range(len(ranking.columns)))
    return f"{mean} ({low:.1f}–{high:.1f})"


def draw(file: Path) -> None:
    """Draw the agreement of the metrics of photos and of texts."""
    from matplotlib.figure import Figure

    found = rankings()
    widths = [len(one.columns) for one in found.values()]
    figure = Figure(figsize=(9.5, 6.4), layout="constrained")
    grid = figure.subplots(1, 2, width_ratios=[widths[0], widths[1] + 1])
    for axes, (name, ranking) in zip(grid, found.items(), strict=True):
        _heat(axes, ranking)
        axes.set_title(f"{name}, {len(ranking.methods)} methods", fontsize=10)
        axes.set_anchor("N")
    figure.savefig(file, dpi=110, facecolor="white", metadata={"Software": None})


def _heat(axes: Any, ranking: Ranking) -> None:
    values = ranking.agreement()
    titles = [one.title.rstrip(" ↑↓→0") for one in ranking.columns]
    axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1)
    places = range(len(titles))
    axes.set_xticks(places, titles, rotation=90, fontsize=8)
    axes.set_yticks(places, titles, fontsize=8)
    for row in places:
        for column in places:
            value = values[row, column]
            color = "white" if abs(value) > 0.6 else "black"
            text = f"{value:.1f}".replace("-0.0", "0.0")
            axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=color)
    edges = [
        place
        for place in places[1:]
        if ranking.columns[place].asks != ranking.columns[place - 1].asks
    ]
    for edge in edges:
        axes.axhline(edge - 0.5, color="black", linewidth=0.8)
        axes.axvline(edge - 0.5, color="black", linewidth=0.8)


def main() -> None:
    """Write the table, fill the page and draw the picture."""
    TABLE.write_text(table(), encoding="utf-8")
    text = compared.filled(PAGE.read_text(encoding="utf-8"), {"ranks": significance()})
    PAGE.write_text(text, encoding="utf-8")
    draw(PICTURE)


if __name__ == "__main__":
    main()
