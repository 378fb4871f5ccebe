"""What the command line says about itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from captum_transformer_lrp.attr.comparison import METHODS
from captum_transformer_lrp.verification.checks import TOLERANCES

COMMANDS = (
    ["explain", "image"],
    ["explain", "text"],
    ["compare", "image"],
    ["compare", "text"],
    ["report"],
    ["models"],
    ["demo"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example_of_this_very_command(
    run: Callable[..., Result], command: list[str]
) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    words = " ".join(re.sub(r"[│•]", " ", result.stdout).split())
    assert "Example" in words
    assert f"captum-transformer-lrp {' '.join(command)}" in words


def test_commands_are_listed_in_the_order_in_which_a_newcomer_needs_them(
    run: Callable[..., Result],
) -> None:
    listed = run("--help").stdout.split("Commands")[1]
    found = re.findall(r"^│ (\w+)", listed, re.MULTILINE)
    assert found == ["demo", "explain", "compare", "report", "models", "benchmark"]


@pytest.mark.parametrize("command", ["explain", "compare"])
def test_who_forgets_the_kind_of_input_is_reminded_of_it(
    run: Callable[..., Result], command: str
) -> None:
    result = run(command, "cat-dog.png")
    words = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == 2
    assert "expected image or text, found 'cat-dog.png'" in words
    assert f"{command} image cat-dog.png" in words


def test_a_text_that_looks_like_a_file_is_explained_as_a_text_and_that_is_said(
    run: Callable[..., Result],
) -> None:
    result = run("explain", "text", "review.txt")
    assert result.exit_code == 0
    assert "note: review.txt is explained as a text; --file review.txt reads" in result.stderr


def test_exit_codes_are_explained(run: Callable[..., Result]) -> None:
    words = " ".join(run("--help").stdout.split())
    assert "Exit codes: 0 all done, 1 something failed" in words


def test_the_installed_libraries_models_and_methods_are_listed(run: Callable[..., Result]) -> None:
    found = json.loads(run("models", "--json").stdout)
    assert found["libraries"]["captum"]
    assert set(found["bundled"]) == {"bundled/scenes", "bundled/sentiment"}
    assert found["methods"] == list(METHODS)
    printed = run("models").stdout
    assert "bundled/scenes" in printed
    assert "transformer_attribution" in printed


def test_architectures_are_found_by_a_pattern(run: Callable[..., Result]) -> None:
    names = run("models", "vit_tiny_patch16_*").stdout.split()
    assert "vit_tiny_patch16_224" in names
    assert all(name.startswith("vit_tiny_patch16_") for name in names)
    result = run("models", "no_such_thing*")
    assert result.exit_code == 2
    assert "knows no architecture" in result.stderr


def test_an_architecture_is_checked_as_by_verify(run: Callable[..., Result]) -> None:
    (checked,) = json.loads(run("models", "test_vit", "--check", "--json").stdout)["checked"]
    assert checked["explained"]
    assert checked["passed"]
    (relevance,) = (one for one in checked["checks"] if one["name"] == "relevance")
    assert relevance["found"] <= 1e-6
    assert "Σ R = 1" in run("models", "test_vit", "--check").stdout


def test_a_failed_check_is_a_failure(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, "relevance", -1.0)
    result = run("models", "test_vit", "--check")
    assert result.exit_code == 1
    assert re.search(r"relevance .* failed", result.stdout)


def test_an_architecture_without_attention_is_said_to_have_none(
    run: Callable[..., Result],
) -> None:
    result = run("models", "test_resnet", "--check", "--json")
    assert result.exit_code == 1
    (checked,) = json.loads(result.stdout)["checked"]
    assert "no softmax attention" in checked["error"]


@pytest.mark.parametrize(
    "command", ["explain image", "explain text", "compare image", "report", "benchmark rationale"]
)
def test_a_method_is_given_by_the_same_option_everywhere(
    run: Callable[..., Result], command: str
) -> None:
    assert "--method" in run(*command.split(), "--help").stdout


def test_rollout_is_attention_rollout(run: Callable[..., Result]) -> None:
    result = run("explain", "text", "a witty film", "--method", "rollout", "--json")
    assert json.loads(result.stdout)["method"] == "attention_rollout"


def test_the_exit_codes_are_in_one_table() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "command_line.md"
    codes = re.findall(r"^\| (\d+) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert codes == ["0", "1", "2", "130"]
