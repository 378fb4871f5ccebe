"""`make demo`: what it writes, without a network."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from captum_transformer_lrp.cli import app
from captum_transformer_lrp.cli.demo import OURS, _this_program
from captum_transformer_lrp.results.classes import method_label

pytestmark = pytest.mark.slow  # it is `make demo`


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the demo."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def demo(folder: Path) -> Result:
    """One run of the demo."""
    result = CliRunner().invoke(app, ["demo", "--output", str(folder)])
    assert result.exit_code == 0, result.output
    return result


def test_the_demo_writes_a_report_with_pictures_and_a_sentence(demo: Result, folder: Path) -> None:
    assert str(folder / "report.html") in demo.output.replace("\n", "")
    pictures = sorted(folder.glob("*.png"))
    assert pictures
    for picture in pictures:
        with Image.open(picture) as image:
            image.verify()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/webp;base64,') == len(pictures)
    assert not re.search(r'alt=""', page)
    assert not re.search(r"""(src|href)=["']?http""", page)
    # Both classes of the scene and both sentiments of the sentence, by every method.
    assert {"elephant", "zebra", "POSITIVE", "NEGATIVE", "gorgeous"} <= set(
        re.findall(r"[A-Za-z]+", page)
    )
    for method in (*OURS, "integrated_gradients"):
        assert f"<h3>{method_label(method)}</h3>" in page
        assert f'<th scope="row">{method_label(method)}</th>' in page


def test_the_scenes_are_written_and_the_command_that_is_printed_explains_one(
    demo: Result, tmp_path_factory: pytest.TempPathFactory
) -> None:
    command = demo.output.replace("\n", " ").split("captum-transformer-lrp ")[-1].split()
    assert command[:2] == ["explain", "image"]
    figure = tmp_path_factory.mktemp("figure") / "cat-dog.png"
    result = CliRunner().invoke(app, [*command, "--output", str(figure), "--json"])
    assert [each["name"] for each in json.loads(result.stdout)["explained"]] == ["cat", "dog"]


def test_the_table_says_that_the_paper_s_method_tells_the_two_animals_apart(
    demo: Result, folder: Path
) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    row = page.split('<th scope="row">transformer attribution</th>')[1].split("</tr>")[0]
    in_it, in_other, also_in_it, also_in_other = (
        int(share) for share in re.findall(r"<td>(\d+) %</td>", row)
    )
    # Measured: 87 % and 1 %, 85 % and 1 %.
    assert min(in_it, also_in_it) > 75
    assert max(in_other, also_in_other) < 10


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("")
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / "demo")])
    assert result.exit_code == 2
    assert "is a file, expected a folder" in result.stderr


@pytest.mark.parametrize("path", ["", "bin", "other/bin"])
def test_the_printed_command_can_be_pasted(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make demo` calls the program by its path, in an environment that is not active."""
    program = tmp_path / "bin" / "captum-transformer-lrp"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / path) if path else "")
    monkeypatch.setattr("sys.argv", [str(program), "demo"])
    found = shutil.which(program.name)
    assert _this_program() == (program.name if found else str(program))
    assert bool(found) == (path == "bin")


def test_a_path_with_a_space_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.argv", ["my env/bin/captum-transformer-lrp", "demo"])
    assert shlex.split(_this_program()) == ["my env/bin/captum-transformer-lrp"]
