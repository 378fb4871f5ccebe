"""What is imported when: help comes at once, and hubs' libraries come when they are used."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import timm

import captum_transformer_lrp
from captum_transformer_lrp import api, names
from captum_transformer_lrp.attr import comparison
from captum_transformer_lrp.cli.options import timm_architectures

HEAVY = ("torch", "captum", "transformers", "timm", "torchvision", "matplotlib", "scipy")
REPORT = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"
# The name by which the program is called is part of the name of the variable of completion.
CALL = f"""
import atexit
import sys
from captum_transformer_lrp.cli import main

def report():
    print("imported", [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)

atexit.register(report)
sys.argv = ["captum-transformer-lrp", *sys.argv[1:]]
main()
"""  # fmt: skip


def command_line(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CALL, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def completed(*words: str) -> subprocess.CompletedProcess[str]:
    """What a shell would offer for the last of the words."""
    return command_line(
        _CAPTUM_TRANSFORMER_LRP_COMPLETE="complete_bash",
        COMP_WORDS=" ".join(["captum-transformer-lrp", *words]),
        COMP_CWORD=str(len(words)),
    )


@pytest.mark.parametrize(
    "arguments", ["--help", "--version", "explain image --help", "benchmark speed --help"]
)
def test_help_and_version_import_nothing_heavy(arguments: str) -> None:
    done = command_line(*arguments.split())
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "imported []"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("explain image photo.jpg --method attention_r", "attention_rollout"),
        ("explain image photo.jpg --model deit_tiny_patch16", "deit_tiny_patch16_224"),
        ("explain text good --model bund", "bundled/sentiment"),
    ],
)
def test_completion_imports_nothing_heavy(words: str, offered: str) -> None:
    done = completed(*words.split())
    assert done.stdout.split() == [offered]
    assert done.stderr.splitlines()[-1] == "imported []"


def test_help_takes_less_than_seven_tenths_of_a_second() -> None:
    resource = pytest.importorskip("resource")

    def used() -> float:
        """Seconds of processor time, which other processes on the machine do not stretch."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    before = used()
    command_line("--help")
    assert used() - before < 0.7


@pytest.mark.slow
def test_the_methods_do_not_import_the_libraries_of_models() -> None:
    code = f"""
import captum_transformer_lrp
import torch
from captum_transformer_lrp import TransformerAttribution
layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
model = torch.nn.Sequential(layer, torch.nn.Flatten(), torch.nn.Linear(32, 3))
TransformerAttribution(model).attribute(torch.randn(1, 4, 8), target=1)
{REPORT}
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert not {"transformers", "timm", "torchvision"} & set(eval(done.stdout))


@pytest.mark.slow
def test_a_library_of_models_is_imported_by_the_first_model_of_it() -> None:
    code = f"from captum_transformer_lrp import models; {REPORT}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"transformers", "timm"} & set(eval(done.stdout))


def test_every_public_name_can_be_imported_and_no_other() -> None:
    public = [name for name in vars(api) if not name.startswith("_")]
    assert sorted(public) == sorted(captum_transformer_lrp.__all__)
    for name in captum_transformer_lrp.__all__:
        assert getattr(captum_transformer_lrp, name) is getattr(api, name)
        assert name in dir(captum_transformer_lrp)
    assert captum_transformer_lrp.rules.preset("attnlrp")
    with pytest.raises(AttributeError, match="has no attribute 'TransfomerAttribution'"):
        captum_transformer_lrp.TransfomerAttribution  # noqa: B018


def test_the_names_that_completion_shows_are_those_that_exist() -> None:
    assert tuple(comparison.METHODS) == names.METHODS
    assert timm_architectures() == sorted(timm.list_models())


def test_the_command_line_without_its_extra_says_what_to_install() -> None:
    code = """
import sys
sys.modules["typer"] = None  # as if it were not installed
from captum_transformer_lrp.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: the command line needs typer: run pip install 'captum-transformer-lrp[cli]'"
    ]


@pytest.mark.slow
def test_pictures_need_no_package_of_the_command_line() -> None:
    code = """
import sys
sys.modules["typer"] = sys.modules["rich"] = None
import captum_transformer_lrp.visualization
"""
    subprocess.run([sys.executable, "-c", code], check=True)
