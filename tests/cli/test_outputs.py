"""What commands write: one file for each input, whole or not at all, and never over an input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import Result

from captum_transformer_lrp import examples
from captum_transformer_lrp.cli.errors import UsageError
from captum_transformer_lrp.cli.outputs import check_no_input, output_names
from captum_transformer_lrp.result import write_whole

SCENES = ("--model", "bundled/scenes")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """The picture of a horse."""
    path = tmp_path / "a.png"
    (horse,) = (scene for scene in examples.scenes() if scene.name == "horse")
    Image.fromarray(horse.image).save(path)
    return path


def test_two_inputs_of_one_name_get_two_files(
    run: Callable[..., Result], photo: Path, tmp_path: Path
) -> None:
    for folder in ("cat", "dog"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(photo.read_bytes())
        (tmp_path / folder / "1.txt").write_text(f"a good {folder}")
    result = run("explain", "image", "cat", "dog", *SCENES, "--output", "out", "--json")
    outputs = [each["output"] for each in json.loads(result.stdout)["results"]]
    assert sorted(os.listdir(tmp_path / "out")) == sorted(Path(one).name for one in outputs)
    assert len(set(outputs)) == 2
    run("explain", "text", "--file", "cat", "--file", "dog", "--output", "pages")
    assert sorted(os.listdir(tmp_path / "pages")) == ["cat-1.txt.html", "dog-1.txt.html"]


@pytest.mark.parametrize(
    "files",
    [
        ["a/1.png", "b/1.png", "b/a-1.png"],
        ["a/1.png", "a-1.png", "b/1.png", "c/a-1.png"],
        ["x/a/1.png", "y/a/1.png", "z/a/1.png"],
        ["A.png", "a.png"],
        ["caf\u00e9.png", "cafe\u0301.png"],
        ["stra\u00dfe.png", "STRASSE.png"],
    ],
)
def test_names_differ_on_every_file_system(files: list[str]) -> None:
    names = output_names([(Path(file), Path(file).name) for file in files])
    folded = {unicodedata.normalize("NFC", name).casefold() for name in names}
    assert len(folded) == len(files)


def _hard_link(photo: Path) -> Path:
    output = photo.with_name(f"b{photo.suffix}")
    os.link(photo, output)
    return output


def _symbolic_link(photo: Path) -> Path:
    output = photo.with_name(f"b{photo.suffix}")
    output.symlink_to(photo)
    return output


def _other_spelling(photo: Path) -> Path:
    (photo.parent / "below").mkdir()
    return photo.parent / "below" / ".." / photo.name


@pytest.mark.parametrize("name", [_hard_link, _symbolic_link, _other_spelling])
@pytest.mark.parametrize("command", ["explain", "compare", "report"])
def test_an_input_under_another_name_is_not_overwritten(
    run: Callable[..., Result],
    photo: Path,
    name: Callable[[Path], Path],
    command: str,
) -> None:
    before = photo.read_bytes()
    kind = [] if command == "report" else ["image"]
    if command == "report":
        photo = photo.rename(photo.with_suffix(".html"))  # a report ends so, and so may a photo
    model = "--image-model" if command == "report" else "--model"
    result = run(command, *kind, photo, model, "bundled/scenes", "--output", name(photo))
    assert result.exit_code == 2
    assert "is an input, which would be lost" in result.stderr
    assert photo.read_bytes() == before


def test_an_input_linked_into_the_folder_of_outputs_is_not_overwritten(
    run: Callable[..., Result], photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(photo.read_bytes())
    os.link(tmp_path / "in" / "b.png", tmp_path / "out" / "a.png.png")
    result = run("explain", "image", "in", *SCENES, "--output", "out")
    assert result.exit_code == 2
    assert "a.png.png is an input" in result.stderr


def test_another_case_of_the_file_system_is_the_same_file(
    photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = Path.stat
    lower = lambda path, **options: stat(Path(str(path).lower()), **options)  # noqa: E731
    monkeypatch.chdir(photo.parent)
    monkeypatch.setattr(Path, "stat", lower)  # as on macOS and Windows
    with pytest.raises(UsageError, match=r"A\.PNG is an input"):
        check_no_input([Path("A.PNG")], [Path("a.png")])


def test_the_checkpoint_is_an_input_too(run: Callable[..., Result], photo: Path) -> None:
    weights = photo.with_name("weights.png")
    weights.write_bytes(b"weights")
    result = run("explain", "image", photo, *SCENES, "--checkpoint", weights, "--output", weights)
    assert result.exit_code == 2
    assert weights.read_bytes() == b"weights"


def test_a_pipe_is_no_output(run: Callable[..., Result], photo: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    result = run("explain", "image", photo, *SCENES, "--output", "pipe.png")
    assert result.exit_code == 2
    assert "is a device or a pipe" in result.stderr


def test_a_link_stays_a_link_and_permissions_stay(tmp_path: Path) -> None:
    (tmp_path / "real.html").write_text("before")
    (tmp_path / "real.html").chmod(0o640)
    (tmp_path / "link.html").symlink_to("real.html")
    write_whole(tmp_path / "link.html", "after")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "real.html").read_text() == "after"
    assert (tmp_path / "real.html").stat().st_mode & 0o777 == 0o640
    (tmp_path / "plain.html").write_text("")
    write_whole(tmp_path / "new.html", "")
    assert (tmp_path / "new.html").stat().st_mode == (tmp_path / "plain.html").stat().st_mode


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    output = tmp_path / "page.html"
    output.write_text("before")

    # In a process of its own: a limit cannot be taken back.  There is room for all that libraries
    # write when they are imported.
    program = """
import resource, sys
from captum_transformer_lrp.cli import app, main
app([*sys.argv[1:-1], sys.argv[-1].replace("page.html", "first.html")], standalone_mode=False)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
main()
"""
    command = [sys.executable, "-c", program, "explain", "text", "good"]
    done = subprocess.run(
        [*command, "--output", str(output)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1, done.stderr
    assert "error: cannot write" in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == [tmp_path / "first.html", output]
    assert output.read_text() == "before"


def test_a_failure_in_the_middle_leaves_nothing(
    run: Callable[..., Result], photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for command in (
        ["explain", "image", photo, *SCENES],
        ["explain", "image", photo, "--frame", "all", *SCENES],
        ["compare", "text", "good", "--method", "attention_rollout"],
        ["report", "--text", "good", "--method", "attention_rollout"],
        ["demo", "--output", "d"],
    ):
        result = run(*command)
        assert result.exit_code == 1
        assert "No space left on device" in result.stderr
        assert "give another place" in result.stderr
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [photo]
