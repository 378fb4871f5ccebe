"""Results as they are shown in a terminal."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from captum_transformer_lrp.benchmarks.results import Figure, Result, Summary

METHODS = ("transformer_attribution:layers=[-1]", "partial_lrp", "random")
CONDITIONS = [f"target, k={k}" for k in range(10, 90, 10)]


@pytest.mark.parametrize("width", [60, 80, 120, 400])
def test_a_table_too_wide_for_the_terminal_goes_on_below_and_loses_nothing(width: int) -> None:
    figures = [
        Figure(method, "token-F1", condition, float(10 * row + column), 0.25, 199, unit="%")
        for row, method in enumerate(METHODS)
        for column, condition in enumerate(CONDITIONS)
    ]
    result = Result("rationale", {}, 199, (), Summary(tuple(figures)))
    console = Console(file=StringIO(), width=width)
    tables = result.tables(console.width)
    console.print(*tables, sep="\n")
    printed = console.file.getvalue()  # type: ignore[attr-defined]

    assert (len(tables) == 1) == (width == 400)
    assert max(map(len, printed.splitlines())) <= width
    assert "…" not in printed
    for figure in figures:
        # Neither cut nor broken: the value and its error stand on one line.
        assert f" {figure.value:.2f} ± 0.25 " in printed
    for condition in CONDITIONS:
        assert condition.split()[1] in printed
    assert printed.count("partial_lrp") == len(tables)
    assert printed.count("rationale, 199 examples") == 1
