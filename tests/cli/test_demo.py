"""`make demo`: what it writes, without a network."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image
from typer.testing import CliRunner

from captum_transformer_lrp.cli import app


def test_the_demo_writes_a_report_with_pictures_and_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    pictures = sorted((tmp_path / "demo").glob("picture-*.png"))
    assert pictures
    for picture in pictures:
        with Image.open(picture) as image:
            image.verify()
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == len(pictures)
    assert "gorgeous" in page
    assert not re.search(r'alt=""', page)
    assert not re.search(r"""(src|href)=["']?http""", page)


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("")
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / "demo")])
    assert result.exit_code == 2
    assert "is a file, expected a folder" in result.stderr
