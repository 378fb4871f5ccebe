"""The tables and ranks of the page are those which scripts make of the committed measurements."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def script(script_of: Callable[[str], ModuleType]) -> ModuleType:
    return script_of("methods_compared")


@pytest.fixture(scope="module")
def ranked(script_of: Callable[[str], ModuleType]) -> ModuleType:
    return script_of("methods_ranked")


@pytest.mark.parametrize("name", ["benchmarks", "metrics", "robustness", "letters"])
def test_the_committed_tables_are_those_that_the_script_makes(
    script: ModuleType, name: str
) -> None:
    assert (script.MEASURED / f"{name}.csv").read_text(encoding="utf-8") == script.table(name)


def test_the_page_has_the_ranks(ranked: ModuleType) -> None:
    text = ranked.PAGE.read_text(encoding="utf-8")
    assert ranked.compared.filled(text, {"ranks": ranked.significance()}) == text
    assert ranked.TABLE.read_text(encoding="utf-8") == ranked.table()


@pytest.mark.parametrize("page", ["", "<!-- end -->", "<!-- values -->\nthe rest of the page"])
def test_a_page_without_a_place_for_the_table_is_refused(script: ModuleType, page: str) -> None:
    with pytest.raises(ValueError, match="no place for a table"):
        script.filled(page, {"values": "| a |"})


def test_the_type_says_how_a_method_compares_with_the_reference(script: ModuleType) -> None:
    """LeGrad in grids is worse, BiAttention in mIoU better, and in pixel accuracy neither."""
    rows = {row[0].strip("`"): row[1:] for row in csv.reader(script.table().splitlines()[1:])}
    place = {column.metric: index for index, column in enumerate(script.COLUMNS)}
    assert "*" not in rows["legrad"][place["localisation"]]
    assert rows["bi_attention"][place["mIoU"]].startswith("**")
    assert rows["bi_attention"][place["pixel accuracy"]].startswith("*7")


def test_figures_are_means_with_paired_differences(script: ModuleType) -> None:
    values = script.measured("segmentation")["values"]
    ours, theirs = (
        np.array(values[name]["mIoU"]) for name in ("transformer_attribution", "legrad")
    )
    figure = script.figures()["legrad", "mIoU"]

    def error(of: np.ndarray) -> float:
        return float(of.std(ddof=1) / np.sqrt(len(of)))

    assert figure.value == pytest.approx(theirs.mean())
    assert figure.standard_error == pytest.approx(error(theirs))
    assert figure.difference == pytest.approx((theirs - ours).mean())
    assert figure.difference_standard_error == pytest.approx(error(theirs - ours))


def test_measurements_agree_with_those_of_the_six_methods_of_the_paper(script: ModuleType) -> None:
    """The page of benchmarks has them from the benchmark's own summary, on the same 88 masks."""
    figure = script.figures()["transformer_attribution", "mIoU"]
    text = f"{figure.value:.2f} ± {figure.standard_error:.2f}"
    table = (DOCS / "methods_compared" / "segmentation.csv").read_text(encoding="utf-8")
    rows = {row["method"]: row for row in csv.DictReader(table.splitlines())}
    assert rows["`transformer_attribution`"]["mIoU"] == text


def run(folder: Path, methods: dict[str, list[int]], **settings: Any) -> Path:
    """The folder of a perturbation run: how many steps are right, for each photo."""
    folder.mkdir()
    about = {"benchmark": "perturbation", "model": "tiny", "methods": list(methods), **settings}
    (folder / "settings.json").write_text(json.dumps(about))
    lines = []
    for index in range(len(next(iter(methods.values())))):
        of_methods = {
            name: {
                "predicted": {
                    test: [1] * right[index] + [0] * (9 - right[index])
                    for test in ("positive", "negative")
                }
            }
            for name, right in methods.items()
        }
        lines.append(json.dumps({"index": index, "id": f"{index}.jpg", "methods": of_methods}))
    (folder / "records-0-of-1.jsonl").write_text("\n".join(lines) + '\n{"index": 9, "id": "9')
    return folder


def test_runs_are_joined_on_the_examples_that_all_have(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "MEASURED", tmp_path / "measured")
    first = run(tmp_path / "a", {"legrad": [9, 0, 4]}, seed=0)
    second = run(tmp_path / "b", {"attcat": [1, 2], "legrad": [0, 0]}, seed=0)
    found = json.loads(script.collect("perturbation", [first, second]).read_text())
    assert found["examples"] == ["0.jpg", "1.jpg"]
    # The trapezoid rule over nine points: all right is 80, the first one alone is half a step.
    assert found["values"]["legrad"]["positive AUC"] == [80.0, 0.0]
    assert found["values"]["attcat"]["positive AUC"] == [5.0, 15.0]


def test_runs_of_other_settings_are_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "MEASURED", tmp_path / "measured")
    first = run(tmp_path / "a", {"legrad": [1]}, seed=0)
    second = run(tmp_path / "b", {"attcat": [1]}, seed=1)
    with pytest.raises(ValueError, match="differ in seed"):
        script.collect("perturbation", [first, second])


def measured(folder: Path, values: dict[str, dict[str, list[float]]]) -> None:
    """A file of single metrics, as `collect` writes it."""
    folder.mkdir()
    count = len(next(iter(next(iter(values.values())).values())))
    about = {"examples": list(map(str, range(count))), "values": values}
    (folder / "metrics.json").write_text(json.dumps(about))


def test_the_median_ranks_a_metric_that_a_single_photo_would_decide(
    ranked: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its mean, LeGrad would be the least stable."""
    compared = ranked.compared
    monkeypatch.setattr(compared, "MEASURED", tmp_path / "measured")
    of_methods = {
        "legrad": {"stability": [1.0, 1.0, 1e6], "deletion": [0.1] * 3, "saco": [0.5, 0.5, 0.8]},
        "attcat": {"stability": [2.0, 2.0, 2.0], "deletion": [0.2] * 3, "saco": [0.6] * 3},
        "random": {"stability": [3.0, 3.0, 3.0], "deletion": [0.2] * 3, "saco": [0.1] * 3},
    }
    measured(tmp_path / "measured", of_methods)
    columns = [
        compared.Column("metrics", "stability", "", False, heavy=True),
        compared.Column("metrics", "deletion", "", False),
        compared.Column("metrics", "saco", ""),
    ]
    ranking = ranked.Ranking(columns)
    assert ranking.methods == ["legrad", "attcat", "random"]
    assert ranking.ranks.tolist() == [[1, 1, 1.5], [2, 2.5, 1.5], [3, 2.5, 3]]
    # Of three photos drawn, the third is none, one, or more: SaCo ranks LeGrad 2, 1.5 or 1, and
    # from two on the median of its stability is the worst.  The second case has the lowest mean.
    assert ranking.intervals[0].tolist() == pytest.approx([3.5 / 3, 5 / 3])
    assert ranking.intervals[2].tolist() == pytest.approx([7.5 / 3, 8.5 / 3])
    assert ranking.agreement()[0].tolist() == pytest.approx([1.0, 0.866, 0.866], abs=1e-3)


def test_the_critical_difference_is_that_of_the_published_table(
    ranked: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Demšar, JMLR 2006, Table 5(a): 2.343 is the critical value of three classifiers."""
    monkeypatch.setattr(ranked.compared, "MEASURED", tmp_path / "measured")
    values = {name: {"saco": [0.1, 0.2]} for name in ("legrad", "attcat", "random")}
    measured(tmp_path / "measured", values)
    columns = [ranked.compared.Column("metrics", "saco", "")] * 4
    found = ranked.Ranking(columns).critical_difference()
    assert found == pytest.approx(2.343 * np.sqrt(3 * 4 / (6 * 4)), abs=2e-3)


def test_metrics_are_collected_by_name_and_condition(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "MEASURED", tmp_path / "measured")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "settings.json").write_text('{"benchmark": "metrics", "model": "tiny"}')
    found = {"deletion:blur:cells=14": {"": 0.25}, "mprt": {"100 %": 0.5, "entropy": 0.125}}
    record = {"index": 0, "id": "0.jpg", "methods": {"legrad": found}}
    (folder / "records-0-of-1.jsonl").write_text(json.dumps(record) + "\n")
    values = json.loads(script.collect("robustness", [folder]).read_text())["values"]
    assert values == {"legrad": {"deletion": [0.25], "mprt 100 %": [0.5], "mprt entropy": [0.125]}}


def test_a_correlation_that_chance_makes_negative_is_no_better_than_none(
    ranked: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranked.compared, "MEASURED", tmp_path / "measured")
    found = {"legrad": [-0.5, -0.1], "attcat": [0.3, -0.3], "random": [0.2, 0.0]}
    measured(tmp_path / "measured", {name: {"mprt": one} for name, one in found.items()})
    ranking = ranked.Ranking([ranked.compared.Column("metrics", "mprt", "", False, zero=True)])
    assert ranking.ranks[:, 0].tolist() == [3, 1, 2]
