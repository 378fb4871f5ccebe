"""The site that `make docs` builds: it stands by itself, and every link leads somewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest

import captum_transformer_lrp

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """The addresses that a page links to and loads, and its pictures without words."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.silent = 0
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors.add(values.get("id", ""))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.loaded += [values[name] for name in ("src", "srcset", "data") if name in values]
        self.loaded += [values["href"]] if tag == "link" else []
        self.silent += tag == "img" and not values.get("alt")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` builds it; a warning is an error there, a dead link is a warning."""
    if find_spec("sphinx") is None or find_spec("furo") is None:
        pytest.skip("Sphinx is not installed: make install")
    folder = tmp_path_factory.mktemp("docs") / "site"
    # `make -n` prints the command, so that the test and the target cannot differ.
    (command,) = (
        line
        for line in subprocess.run(
            ["make", "-n", "docs"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        if "-m sphinx" in line
    )
    _, options = command.split(" -m sphinx ")
    assert options.endswith(" -d build/doctrees . site")
    options = options.replace("-d build/doctrees . site", "")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options.split(), "-d", str(folder.parent / "doctrees"),
         ".", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in sorted(site.rglob("*.html"))}


def test_tutorials_methods_and_reference_are_there(site: Path) -> None:
    for name in ("index", "docs/rules", "tutorials/1_image_classifier", "docs/sweep_timm"):
        assert (site / f"{name}.html").is_file()


def test_every_link_leads_to_a_page_and_a_place_on_it(pages: dict[Path, Page]) -> None:
    for file, page in pages.items():
        for address in page.links:
            path, _, anchor = unquote(address).partition("#")
            if "://" in path or path.startswith("mailto:"):
                continue
            target = Path(os.path.normpath(file.parent / path)) if path else file
            assert target.exists(), f"{file.name}: {address}"
            if anchor and target in pages:
                assert anchor in pages[target].anchors, f"{file.name}: {address}"


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page]) -> None:
    for file, page in pages.items():
        for address in page.loaded:
            assert not address.startswith(("http:", "https:", "//")), f"{file.name}: {address}"


def test_every_picture_is_described(pages: dict[Path, Page], site: Path) -> None:
    written = {file: page for file, page in pages.items() if file.parent.name != "tutorials"}
    assert not [file.name for file, page in written.items() if page.silent]


def test_the_reference_documents_every_public_name_and_attribute(pages: dict[Path, Page]) -> None:
    anchors = {anchor for page in pages.values() for anchor in page.anchors}
    for name in captum_transformer_lrp.__all__:
        assert f"captum_transformer_lrp.{name}" in anchors
    assert "captum_transformer_lrp.TransformerAttribution.attribute" in anchors


def test_formulas_need_no_script(pages: dict[Path, Page], site: Path) -> None:
    reference = site / "docs" / "api" / "attribution.html"
    assert "<math" in reference.read_text(encoding="utf-8")
    assert not [address for address in pages[reference].loaded if "mathjax" in address.lower()]
