"""The tutorials run from the first cell to the last, and are fit to be read as they are."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = Path(__file__).resolve().parents[2] / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))
MEGABYTE = 1_000_000


def read(file: Path) -> Any:
    return nbformat.read(file, as_version=4)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_there_are_six() -> None:
    assert [file.name[0] for file in NOTEBOOKS] == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_outputs_are_committed_and_fit_to_read(file: Path) -> None:
    notebook = read(file)
    nbformat.validate(notebook)
    assert file.stat().st_size < MEGABYTE
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        text = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
        # Paths of a machine, addresses of objects, colours of a terminal.
        assert not re.search(r"/(home|root|tmp|work|Users)/|\bat 0x|\x1b|Warning", text), text


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_metadata_say_nothing_about_the_machine(file: Path) -> None:
    notebook = read(file)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert not any(cell.metadata for cell in notebook.cells)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_cells_were_run_once_from_the_first_to_the_last(file: Path) -> None:
    code = [cell for cell in read(file).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        ast.parse(re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_every_cell_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder of its own, and no hub: everything that a tutorial needs comes with the package.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    root = str(TUTORIALS.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    client = NotebookClient(
        read(file),
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()  # raises with the cell and its traceback
