"""`captum-transformer-lrp benchmark`: files, tables, mistakes; and the same under torchrun."""

from __future__ import annotations

import csv
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from captum_transformer_lrp.cli import app

from .conftest import write_photo

# The package has the function of that name.
perturbation = importlib.import_module("captum_transformer_lrp.benchmarks.perturbation")


@pytest.fixture
def benchmark(checkpoint: Path, photos: Path, tmp_path: Path) -> Callable[..., Result]:
    def run(kind: str, *options: str, data: Path = photos) -> Result:
        command = ["benchmark", kind, "--model", "test_vit", "--checkpoint", str(checkpoint)]
        command += ["--data", str(data), "--output", str(tmp_path / "out"), *options]
        return CliRunner().invoke(app, command, env={"COLUMNS": "200"})

    return run


def test_all_files_are_written(benchmark: Callable[..., Result], tmp_path: Path) -> None:
    result = benchmark(
        "perturbation", "--methods", "transformer_attribution,random", "--limit", "4"
    )
    assert result.exit_code == 0, result.output
    assert "4 examples" in result.output
    assert "transformer_attribution" in result.output
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert written["settings"]["seed"] == 0
    assert len(written["settings"]["checkpoint_sha256"]) == 64
    assert "torch" in written["settings"]["versions"]
    with (tmp_path / "out/results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(written["figures"])
    for row, figure in zip(rows, written["figures"], strict=True):
        assert float(row["value"]) == figure["value"]
        assert row["setting: checkpoint_sha256"] == written["settings"]["checkpoint_sha256"]
    assert (tmp_path / "out/results.md").read_text().startswith("| method |")
    with Image.open(tmp_path / "out/curves.png") as figure:
        assert figure.width > 1000


def test_methods_are_compiled_on_demand(benchmark: Callable[..., Result], tmp_path: Path) -> None:
    options = ["--methods", "raw_attention", "--explain", "predicted", "--limit", "1"]
    result = benchmark("perturbation", *options, "--compile", "eager")
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert written["settings"]["compile"] == "eager"


def test_ctrl_c_says_how_much_is_done_and_how_to_go_on(
    benchmark: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = perturbation.read_rgb
    files: list[object] = []

    def stopped(file: Path) -> Image.Image:
        files.append(file)
        if len(files) == 3:
            raise KeyboardInterrupt
        return read(file)

    monkeypatch.setattr(perturbation, "read_rgb", stopped)
    result = benchmark("perturbation", "--methods", "random")
    assert result.exit_code == 130
    assert result.stderr.endswith("stopped: 2 of 6 done, repeat the command to go on\n")
    assert benchmark("perturbation", "--methods", "random").exit_code == 0
    assert len(files) == 3 + 4


def test_quiet_prints_nothing(benchmark: Callable[..., Result], tmp_path: Path) -> None:
    result = benchmark("perturbation", "--methods", "random", "--limit", "2", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert (tmp_path / "out/results.json").exists()


def test_damaged_photos_are_named_also_where_it_is_quiet(
    benchmark: Callable[..., Result], tmp_path: Path
) -> None:
    write_photo(tmp_path / "data/0_x.png", 0)
    (tmp_path / "data/1_y.png").write_text("no photo")
    result = benchmark("perturbation", "--methods", "random", "--quiet", data=tmp_path / "data")
    assert result.exit_code == 0
    assert result.output.startswith("skipped 1_y.png (1): cannot be read as an image")


def test_too_few_classes_for_a_grid_are_told(benchmark: Callable[..., Result]) -> None:
    result = benchmark("grid-pointing", "--methods", "random", "--confidence", "0")
    assert result.exit_code == 1
    assert "for 6 of 6 photos, expected 4 of different classes" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--methods", "rolout"], 1, "there is no method 'rolout'"),
        (["--explain", "both"], 2, "'both' is not one of"),
        (["--device", "cuda:99"], 2, "--device cuda:99 cannot be used here"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    benchmark: Callable[..., Result], options: list[str], code: int, message: str
) -> None:
    result = benchmark("perturbation", *options)
    assert result.exit_code == code
    assert message in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output


def test_a_missing_folder_is_told_before_the_model_is_loaded(
    benchmark: Callable[..., Result], tmp_path: Path
) -> None:
    result = benchmark("perturbation", data=tmp_path / "missing")
    assert (result.exit_code, "found no folder" in result.output) == (2, True)
    result = benchmark("segmentation", data=tmp_path / "missing")
    assert (result.exit_code, "found no folder" in result.output) == (2, True)


@pytest.mark.slow
def test_torchrun_shares_the_work_and_finds_the_same(
    benchmark: Callable[..., Result], checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    options = ["--model", "test_vit", "--checkpoint", str(checkpoint), "--data", str(photos)]
    options += ["--methods", "transformer_attribution,gradient_shap,random"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += ["-m", "captum_transformer_lrp.benchmarks", "perturbation", *options]
    subprocess.run(
        [*command, "--output", str(tmp_path / "two")],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    result = benchmark("perturbation", "--methods", "transformer_attribution,gradient_shap,random")
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in (tmp_path / "two").glob("records*")) == [
        "records-0-of-2.jsonl",
        "records-1-of-2.jsonl",
    ]
    assert (tmp_path / "two/results.json").read_bytes() == (
        tmp_path / "out/results.json"
    ).read_bytes()
