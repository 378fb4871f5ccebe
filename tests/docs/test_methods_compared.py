"""The table of the page is that which its script makes of the committed measurements."""

from __future__ import annotations

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


def test_the_page_holds_what_the_script_makes(script: ModuleType) -> None:
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.filled(text, {"values": script.table()}) == text


@pytest.mark.parametrize("page", ["", "<!-- end -->", "<!-- values -->\nthe rest of the page"])
def test_a_page_without_a_place_for_the_table_is_refused(script: ModuleType, page: str) -> None:
    with pytest.raises(ValueError, match="no place for a table"):
        script.filled(page, {"values": "| a |"})


def test_the_type_says_how_a_method_compares_with_the_reference(script: ModuleType) -> None:
    """LeGrad in grids is worse, BiAttention in mIoU better, and in pixel accuracy neither."""
    rows = {row.split("`")[1]: row.split(" | ")[1:] for row in script.table().splitlines()[2:]}
    place = {column.metric: index for index, column in enumerate(script.columns())}
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
    """docs/benchmarks.md has them from the benchmark's own summary, on the same 88 masks."""
    figure = script.figures()["transformer_attribution", "mIoU"]
    text = f"{figure.value:.2f} ± {figure.standard_error:.2f}"
    rows = (DOCS / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    of_segmentation = [row for row in rows if row.startswith("| `transformer_attribution` |")][1]
    assert text in of_segmentation


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
