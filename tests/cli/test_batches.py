"""Folders of inputs: every file is explained or named, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

SCENES = ("--model", "bundled/scenes")


def test_a_corrupt_image_is_named_and_the_others_are_explained(
    run: Callable[..., Result], mixed: Path, tmp_path: Path
) -> None:
    result = run("explain", "image", mixed, *SCENES, "--output", tmp_path / "maps")
    assert result.exit_code == 1
    assert "damaged.png: cannot read" in " ".join(result.stderr.split())
    # That one file is all that stderr speaks of.
    assert {line.split(":")[0] for line in result.stderr.splitlines()} == {"note", "failed"}
    assert "explained 2 of 3" in result.stdout
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [
        "<script>alert(1)<script>.png.png",
        "a & b.png.png",
    ]


def test_what_is_left_out_of_a_folder_is_said(run: Callable[..., Result], mixed: Path) -> None:
    result = run("explain", "image", mixed, *SCENES)
    assert "left out of" in result.stderr
    assert "table.csv" in result.stderr


def test_json_of_a_batch_lists_results_and_failures(
    run: Callable[..., Result], mixed: Path
) -> None:
    result = run("explain", "image", mixed, *SCENES, "--json", "--target", "cat")
    printed = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [each["explained"][0]["name"] for each in printed["results"]] == ["cat", "cat"]
    (failed,) = printed["failed"]
    assert failed["input"].endswith("damaged.png")
    assert "cannot read" in failed["error"]


def test_all_good_files_are_exit_code_0(
    run: Callable[..., Result], mixed: Path, tmp_path: Path
) -> None:
    photo = mixed / "a & b.png"
    result = run("explain", "image", photo, photo, *SCENES, "--output", tmp_path / "maps")
    assert result.exit_code == 0, result.output
    assert "explained 1 of 1" in result.stdout  # the same file twice is one file


def test_text_files_become_a_page_each(
    run: Callable[..., Result], mixed: Path, tmp_path: Path
) -> None:
    result = run("explain", "text", "--file", mixed, "--output", tmp_path / "pages")
    assert result.exit_code == 1
    assert "latin.txt: cannot read" in " ".join(result.stderr.split())
    page = (tmp_path / "pages" / "review.txt.html").read_text(encoding="utf-8")
    assert "gorgeous" in page
    assert "<script" not in page


def test_a_mistake_in_the_command_ends_the_whole(run: Callable[..., Result], mixed: Path) -> None:
    result = run("explain", "image", mixed, *SCENES, "--target", "dragon")
    assert result.exit_code == 2
    assert result.stderr.count("no class is called 'dragon'") == 1


def test_outputs_stay_apart_from_inputs(run: Callable[..., Result], mixed: Path) -> None:
    result = run("explain", "image", mixed, *SCENES, "--output", mixed)
    assert result.exit_code == 2
    assert "is the folder of the inputs" in result.stderr


def test_a_folder_without_images_is_an_error(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("explain", "image", tmp_path, *SCENES)
    assert result.exit_code == 2
    assert "found no image files in the folder" in result.stderr


def test_a_text_and_a_file_are_not_both_taken(run: Callable[..., Result], mixed: Path) -> None:
    for command in (["good", "--file", mixed], []):
        result = run("explain", "text", *command)
        assert result.exit_code == 2
        assert "expected a text or --file" in result.stderr


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    run: Callable[..., Result], mixed: Path, kind: str
) -> None:
    inputs = [mixed / "a & b.png"] if kind == "file" else [mixed]
    place = mixed / "table.csv" / "below a file"  # nobody can write there, root neither
    output = place / "x.png" if kind == "file" else place
    result = run("explain", "image", *inputs, "--model", "no such model", "--output", output)
    assert result.exit_code == 2
    assert "cannot be written (Not a directory): give another place" in result.stderr
