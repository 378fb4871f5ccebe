"""The pages: links lead somewhere, messages are the code's, commands work."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from captum_transformer_lrp.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACEHOLDERS = (
    "PHOTO",
    "TEXT",
    "PATTERN",
    "INPUT",
    "...",
    "NAME",
    "FOLDER",
    "MASKS",
    "…",
    "gtsegs",
    "photo.jpg",
)


def literals() -> list[str]:
    """Every text in the code, what is put into it at run time as ``…``."""
    found = []
    for file in sorted((ROOT / "captum_transformer_lrp").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                ]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def messages() -> list[str]:
    """The messages that the troubleshooting page is keyed by."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE)
    return [message for cell in cells for message in re.findall("`([^`]+)`", cell)]


LITERALS = literals()


@pytest.mark.parametrize("message", messages())
def test_the_code_says_what_the_troubleshooting_page_is_keyed_by(message: str) -> None:
    parts = [part.strip() for part in message.split("…") if part.strip()]
    in_order = re.compile(".*".join(re.escape(part) for part in parts), re.DOTALL)
    assert any(in_order.search(text) for text in LITERALS)


def test_the_troubleshooting_page_has_messages() -> None:
    assert len(messages()) > 90


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for address in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in address:
            continue
        path, _, anchor = address.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), address
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in anchors, address


def commands(page: Path, program: str) -> list[str]:
    """The lines of plain code blocks that call a program, comments taken off."""
    found, fence = [], None
    for line in page.read_text(encoding="utf-8").splitlines():
        line = line.removeprefix(".venv/bin/")
        if line.startswith("```"):
            fence = line if fence is None else None
        elif fence == "```" and line.startswith(program + " "):
            found.append(line.split(" #")[0].strip())
    return found


def local_commands() -> list[str]:
    """The commands of README and the command line's page that need no download."""
    found = []
    for page in (ROOT / "README.md", ROOT / "docs" / "command_line.md"):
        # `make demo` runs the demo in an environment that it makes.
        found += ["captum-transformer-lrp demo"] * ("make demo" in commands(page, "make"))
        found += commands(page, "captum-transformer-lrp")
    # Three spaces stand before the explanation in a list of commands.
    skipped = (*PLACEHOLDERS, "--install-completion", "   ")
    return list(dict.fromkeys(c for c in found if not any(mark in c for mark in skipped)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run, one after the other, as a reader would."""
    return tmp_path_factory.mktemp("reader")


def test_there_are_commands_to_run() -> None:
    assert len(local_commands()) >= 8
    assert local_commands()[0] == "captum-transformer-lrp demo"


@pytest.mark.slow
def test_the_commands_of_the_pages_work_in_the_order_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for command in local_commands():
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}\n{result.output}"


@pytest.mark.parametrize("command", local_commands())
def test_every_command_has_the_options_that_the_pages_give_it(command: str) -> None:
    words = shlex.split(command)[1:]
    names = [word for word in words[:2] if re.fullmatch("[a-z-]+", word) and word != words[-1]]
    names = names if words[0] in ("explain", "compare", "benchmark") else words[:1]
    result = CliRunner().invoke(app, [*names, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for option in (word for word in words if word.startswith("--")):
        assert option in result.output, f"{option} of {command}"


def test_every_target_of_make_that_the_pages_name_exists() -> None:
    named = {
        target
        for page in PAGES
        for command in commands(page, "make")
        for target in command.split()[1:]
    }
    assert {"demo", "test", "slow", "docs"} <= named
    for target in sorted(named):
        # -n: only print what would be done.
        done = subprocess.run(
            ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_tests_that_the_readme_names_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`pytest [^`]*?(tests/[\w/]+\.py)[^`]*`", readme)
    assert named
    for path in named:
        assert (ROOT / path).is_file(), path
