"""Makes the table of ``docs/epsilon.md`` from measurements.

Two steps: folders of ``captum-transformer-lrp benchmark`` become small files of one number for each
example, value of ε and metric, in ``docs/epsilon/``; these become the table::

    python docs/epsilon.py collect perturbation FOLDER
    python docs/epsilon.py table
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
sys.path.insert(0, str(HERE))

import methods_compared as compared  # noqa: E402

EPSILONS: Final = ("0", "0.01", "0.03", "0.1", "0.3", "1")
CHOSEN: Final = "1"
REPORTED: Final = "reported on"
HALVES: Final = {"chosen on": slice(0, None, 2), REPORTED: slice(1, None, 2)}
"""Every other example, in the order of their names."""

BENCHMARKS: Final = list(dict.fromkeys(column.benchmark for column in compared.COLUMNS))
"""What ε was chosen by: the paper's tests, on photos and texts."""

Values = dict[str, dict[str, list[float]]]
"""By ε and metric, a number for each example."""


def collect(benchmark: str, folder: Path) -> Path:
    """Write what a folder of a benchmark measured for each ε.

    Args:
        benchmark: its name.
        folder: of one run whose methods are ``transformer_attribution:epsilon=...``.

    Returns:
        The file.
    """
    records, values_of = compared.records_of(folder), compared.OF_BENCHMARK[benchmark]
    lines = []
    for epsilon in EPSILONS:
        found = [
            one.methods[f"transformer_attribution:epsilon={epsilon}"] for one in records.values()
        ]
        parts = {**HALVES, "all": slice(None)}
        measured = {part: values_of(found[places]) for part, places in parts.items()}
        lines.append(f'"{epsilon}": {json.dumps(measured)}')
    file = HERE / "epsilon" / f"{benchmark}.json"
    file.parent.mkdir(exist_ok=True)
    about = {"settings": compared.settings_of(folder), "examples": list(records)}
    text = json.dumps(about, ensure_ascii=False)[:-1] + ',\n"values": {\n' + ",\n".join(lines)
    file.write_text(text + "\n}}\n", encoding="utf-8")
    return file


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error.

    >>> mean_and_error([1.0, 3.0])
    (2.0, 1.0)
    """
    count, mean = len(values), math.fsum(values) / len(values)
    square = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(square / (count - 1) / count)


def table() -> str:
    """The table in Markdown: ε = 0, and paired differences from it."""
    heads = ["metric", "examples", "ε = 0 (as printed)", *(f"ε = {one}" for one in EPSILONS[1:])]
    rows = ["| " + " | ".join(heads) + " |", "|---|---:|" + "---:|" * len(EPSILONS)]
    for benchmark in BENCHMARKS:
        file = HERE / "epsilon" / f"{benchmark}.json"
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))["values"]
            rows += [
                _row(column, found) for column in compared.COLUMNS if column.benchmark == benchmark
            ]
    return "\n".join(rows)


def _row(column: compared.Column, found: dict[str, Values]) -> str:
    """What the half of the examples says on which ε was not chosen."""
    printed = found["0"][REPORTED][column.metric]
    mean, error = mean_and_error(printed)
    cells = [f"{mean:.{column.digits}f} ± {error:.{column.digits}f}"]
    digits = column.digits + (column.digits < 3)
    for epsilon in EPSILONS[1:]:
        values = found[epsilon][REPORTED][column.metric]
        differences = [one - other for one, other in zip(values, printed, strict=True)]
        mean, error = mean_and_error(differences)
        text = f"{mean:+.{digits}f} ± {error:.{digits}f}"
        better = mean if column.larger else -mean
        cells.append(f"**{text}**" if better > 2 * error else text)
    return f"| {column.title} | {len(printed)} | {' | '.join(cells)} |"


def main() -> None:
    """Run a step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    collecting = steps.add_parser("collect", help="records to docs/epsilon/")
    collecting.add_argument("benchmark", choices=BENCHMARKS)
    collecting.add_argument("folder", type=Path)
    steps.add_parser("table", help="docs/epsilon/ to the page")
    given = parser.parse_args()
    if given.step == "collect":
        print(collect(given.benchmark, given.folder))
    else:
        page = HERE / "epsilon.md"
        text = compared.filled(page.read_text(encoding="utf-8"), {"epsilon": table()})
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
