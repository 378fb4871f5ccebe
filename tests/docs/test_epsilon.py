"""The table on ε is that which its script makes of the committed measurements."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from captum_transformer_lrp.rules import DEFAULT_EPSILON

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def script(script_of: Callable[[str], ModuleType]) -> ModuleType:
    return script_of("epsilon")


def test_the_page_has_the_table(script: ModuleType) -> None:
    text = (DOCS / "epsilon.md").read_text(encoding="utf-8")
    assert script.compared.filled(text, {"epsilon": script.table()}) == text


@pytest.mark.parametrize("benchmark", ["perturbation", "segmentation", "grid-pointing"])
def test_halves_are_all(script: ModuleType, benchmark: str) -> None:
    found = json.loads((DOCS / "epsilon" / f"{benchmark}.json").read_text(encoding="utf-8"))
    for of_epsilon in found["values"].values():
        counts = [len(next(iter(of_epsilon[half].values()))) for half in (*script.HALVES, "all")]
        assert counts[0] + counts[1] == counts[2] == len(found["examples"])


def test_the_default_is_the_chosen_one_and_no_column_says_otherwise(script: ModuleType) -> None:
    """By two standard errors it is worse than eq. 2 as printed in no column, better in three."""
    assert float(script.CHOSEN) == DEFAULT_EPSILON
    better = 0
    for benchmark in script.BENCHMARKS:
        file = DOCS / "epsilon" / f"{benchmark}.json"
        values = json.loads(file.read_text(encoding="utf-8"))["values"]
        for column in script.compared.COLUMNS:
            if column.benchmark != benchmark:
                continue
            pairs = zip(
                values[script.CHOSEN]["all"][column.metric],
                values["0"]["all"][column.metric],
                strict=True,
            )
            mean, error = script.mean_and_error([one - other for one, other in pairs])
            mean = mean if column.larger else -mean
            assert mean > -2 * error, column.metric
            better += mean > 2 * error
    assert better >= 3
