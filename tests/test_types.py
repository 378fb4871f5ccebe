"""What type checkers see of the package, in their strict modes, as users run them.

basedpyright is pyright with its engine in the wheel; pyright itself fetches Node.js when it runs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from shutil import which

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each comment that ignores an error must have an error to ignore: both checkers say so if not.
CALLS = """
from typing import Literal

from captum_transformer_lrp import (
    AttCat, AttentionFlow, AttentionGradCam, AttentionRollout, BiAttention, GenericAttention,
    LeGrad, LibraGradient, NormRollout, PartialLRP, RawAttention, TransformerAttribution,
    TransformerLRP,
)
from torch import Tensor, nn
from typing_extensions import assert_type


def calls(
    model: nn.Module, one: Tensor, two: tuple[Tensor, Tensor], weight: nn.Parameter,
    fine: Literal["input", "token"],
) -> None:
    for rollout in (
        TransformerAttribution(model), AttentionRollout(model), GenericAttention(model),
    ):
        assert_type(rollout.attribute(one, target=3), Tensor)
        assert_type(rollout.attribute(weight), Tensor)
        assert_type(rollout.attribute(one, 3, granularity=fine, start_layer=2), Tensor)
        assert_type(rollout.attribute(two), tuple[Tensor, ...])
        assert_type(rollout.attribute(two, granularity="matrix"), Tensor)
        assert_type(rollout.attribute_targets(one, [1, None]), list[Tensor])
    for single in (RawAttention(model), AttentionGradCam(model), PartialLRP(model)):
        assert_type(single.attribute(one, [0, 1]), Tensor)
        assert_type(single.attribute((one,)), tuple[Tensor, ...])
        assert_type(single.attribute(two, granularity="token", internal_batch_size=1), Tensor)
    for values in (
        AttCat(model), BiAttention(model), LeGrad(model), LibraGradient(model), NormRollout(model),
    ):
        assert_type(values.attribute(one, one), Tensor)
        assert_type(values.attribute(two), tuple[Tensor, ...])
        assert_type(values.attribute((one,), granularity="token"), Tensor)
        assert_type(values.attribute(one, internal_batch_size=1), Tensor)
    flow = AttentionFlow(model)
    assert_type(flow.attribute(two, show_progress=True), tuple[Tensor, ...])
    lrp = TransformerLRP(model)
    assert_type(lrp.attribute(one), Tensor)
    assert_type(lrp.attribute(two), tuple[Tensor, ...])
    assert_type(lrp.attribute(two, granularity="token"), Tensor)
    assert_type(lrp.attribute(one, return_convergence_delta=True), tuple[Tensor, Tensor])

    flow.attribute(one, granularity="matrix")  # type: ignore
    AttCat(model).attribute(one, granularity="matrix")  # type: ignore
    RawAttention(model).attribute(one, start_layer=1)  # type: ignore
    TransformerAttribution(model).attribute(one, granularity="pixel")  # type: ignore
    TransformerAttribution(model).attribute(one, start_layr=1)  # type: ignore
    TransformerAttribution(model, dtyp=None)  # type: ignore
    TransformerAttribution(model).attribute("an elephant")  # type: ignore
    rollout.attribute(one)[0].attentions  # type: ignore
"""


def readme() -> list[str]:
    """The programs of the README."""
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.S | re.M
    )
    assert len(blocks) >= 4
    return blocks


def errors_of_mypy(folder: Path) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--allow-untyped-calls",
        "--config-file=",
        str(folder),
    ]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    assert "checked" in done.stdout or "Success" in done.stdout, done.stdout
    # The package's own files are checked by the project's settings, as `make types` does first.
    own = str(folder)
    return [
        line
        for line in done.stdout.splitlines()
        if ": error:" in line and (ROOT / line.split(":")[0]).resolve().is_relative_to(own)
    ]


def errors_of_pyright(folder: Path) -> list[str]:
    scripts = sysconfig.get_path("scripts")
    checker = which("basedpyright", path=scripts) or which("basedpyright") or which("pyright")
    if checker is None:
        pytest.skip("neither basedpyright nor pyright is installed")
    # Of timm, transformers and scikit-image not everything has a type.
    theirs = ("UnknownArgumentType", "UnknownMemberType", "UnknownVariableType", "MissingTypeStubs")
    settings: dict[str, object] = {f"report{one}": False for one in theirs}
    settings |= {"extraPaths": [str(ROOT)], "reportUnnecessaryTypeIgnoreComment": True}
    (folder / "pyrightconfig.json").write_text(
        json.dumps(settings | {"typeCheckingMode": "strict"})
    )
    command = [checker, "--outputjson", "--pythonpath", sys.executable, "--project", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] >= 1, done.stderr
    return [
        f"{one['range']['start']['line'] + 1}: {one['message']}"
        for one in found["generalDiagnostics"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("errors", [errors_of_mypy, errors_of_pyright])
def test_strict_checkers_find_no_error_in_what_users_write(
    tmp_path: Path, errors: Callable[[Path], list[str]]
) -> None:
    for number, block in enumerate(readme()):
        (tmp_path / f"readme_{number}.py").write_text(block, encoding="utf-8")
    (tmp_path / "calls.py").write_text(CALLS, encoding="utf-8")
    assert errors(tmp_path) == []
