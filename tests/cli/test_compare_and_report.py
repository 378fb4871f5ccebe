"""Methods beside each other, and pages of anything."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import Result

FAST = ("--method", "transformer_attribution", "--method", "attention_rollout")


def elements(page: str) -> set[str]:
    """What elements a browser would make of a page."""
    found: set[str] = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.add(tag)
    parser.feed(page)
    return found


def test_a_grid_has_a_row_for_each_method_and_a_column_for_each_class(
    run: Callable[..., Result], mixed: Path, tmp_path: Path
) -> None:
    command = ["compare", "image", mixed / "a & b.png", "--model", "bundled/scenes", *FAST]
    result = run(*command, "--target", "cat", "--target", "dog", "--output", tmp_path / "grid.png")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "grid.png") as figure:
        assert figure.width > figure.height  # two rows of three panels


def test_json_says_how_alike_the_classes_look_to_each_method(
    run: Callable[..., Result], mixed: Path
) -> None:
    command = ["compare", "image", mixed / "a & b.png", "--model", "bundled/scenes", *FAST]
    printed = json.loads(run(*command, "--target", "cat", "--target", "dog", "--json").stdout)
    alike = printed["correlation_with_first_class"]
    # Rollout does not know the class.
    assert alike["attention_rollout"]["dog"] == pytest.approx(1)
    assert alike["transformer_attribution"]["dog"] < 0.5


def test_a_text_is_compared_on_a_page_and_in_json(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    result = run("compare", "text", "a witty <script> film", *FAST, "--json", "--output", "p.html")
    (explained, _) = json.loads(result.stdout)["explained"]
    assert explained["name"] == "POSITIVE"
    assert list(explained["words"]) == ["transformer_attribution", "attention_rollout"]
    words = [word for word, _ in explained["words"]["transformer_attribution"]]
    assert words == ["a", "witty", "<", "script", ">", "film"]
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "script" not in elements(page)
    assert "attention rollout" in page


def test_the_default_comparison_holds_the_paper_s_methods_and_integrated_gradients(
    run: Callable[..., Result],
) -> None:
    printed = json.loads(run("compare", "text", "a witty film", "--json").stdout)
    assert set(printed["methods"]) == {
        "transformer_attribution",
        "attention_rollout",
        "raw_attention",
        "attention_gradcam",
        "partial_lrp",
        "transformer_lrp",
        "integrated_gradients",
    }


def test_a_report_shows_images_and_texts_and_says_what_it_could_not_read(
    run: Callable[..., Result], mixed: Path, tmp_path: Path
) -> None:
    command = ["report", mixed, "--text", "not <b>bad</b>", "--image-model", "bundled/scenes"]
    result = run(*command, *FAST, "--title", "<script>", "--output", "page.html")
    assert result.exit_code == 1
    assert "explained 4 of 6" in result.stdout
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert elements(page).isdisjoint({"script", "b"})
    assert page.count("<img ") == 2
    assert "bright pixels and coloured words are those by which the model" in page
    assert not re.search(r'alt=""|(src|href)=.?http', page)
    for name in ("a &amp; b.png", "review.txt", "&lt;script&gt;alert(1)&lt;script&gt;.png"):
        assert name in page
    not_explained = page.split("Not explained</h2>")[1]
    assert "damaged.png" in not_explained
    assert "latin.txt" in not_explained


def test_a_report_of_nothing_is_a_mistake(run: Callable[..., Result]) -> None:
    result = run("report")
    assert result.exit_code == 2
    assert "found nothing to explain" in result.stderr
    result = run("report", "missing.png")
    assert result.exit_code == 2
    assert "found no image or text file at missing.png" in result.stderr
