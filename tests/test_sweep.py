"""The sweep over architectures: a few tiny ones here, one of each of timm's modules in `make slow`.

The whole of it is a command, ``python -m tests.sweep``, whose results are in ``docs/``.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.sweep import results, timm_models
from tests.sweep.cases import Case, Entry
from tests.sweep.columns import examine
from tests.sweep.models_page import page
from tests.sweep.results import Result
from tests.sweep.runner import examined, run
from tests.sweep.softmax_attention import computes_softmax_attention
from tests.sweep.tables import table

DOCS = Path(__file__).resolve().parents[1] / "docs"

TINY = [
    "test_vit",  # class token
    "test_vit3",  # attention pooling
    "test_coatnet",  # convolutions, relative positions
    pytest.param("edgenext_xx_small", marks=pytest.mark.slow),  # cross-covariance attention
    pytest.param("efficientvit_m0", marks=pytest.mark.slow),  # cascaded heads, one after another
    pytest.param("levit_128s", marks=pytest.mark.slow),  # attention that makes fewer tokens
    pytest.param("mobilevit_xxs", marks=pytest.mark.slow),  # unfolded patches
    "pit_ti_224",  # pooling between stages
    pytest.param("xcit_nano_12_p16_224", marks=pytest.mark.slow),  # class attention
]


def judged(name: str) -> Result:
    return examined(timm_models, Entry(name, "", "image classification"))


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_architecture_passes_every_column(name: str) -> None:
    result = judged(name)
    assert result.verdict == "passed", result.reason
    assert result.softmax_attention
    assert result.readout


@pytest.mark.parametrize("name", ["efficientvit_b0", "test_resnet"])
def test_a_model_without_a_softmax_between_tokens_is_refused_but_conserves(name: str) -> None:
    result = judged(name)
    assert result.verdict == "refused"
    assert "no softmax attention" in result.reason
    assert not result.softmax_attention
    assert isinstance(result.propagates, float)
    assert result.propagates < 1e-6


def _smallest_of_each_module() -> list[str]:
    return [
        entry.name
        for entry in timm_models.entries()
        if entry.smallest and timm_models.attends(entry.name)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.xfail(reason=timm_models.KNOWN[name], strict=True)]
            if name in timm_models.KNOWN
            else [],
        )
        for name in _smallest_of_each_module()
    ],
)
def test_the_smallest_model_of_a_module_passes_every_column(name: str) -> None:
    result = judged(name)
    assert result.verdict == "passed", result.reason


class Loses(nn.Module):
    """Attention whose output is scaled where gradients are enabled, as in the watched run."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = x + F.scaled_dot_product_attention(x, x, x)
        return self.head(x.mean(1)) * (1 + 1e-3 * torch.is_grad_enabled())


def test_a_changed_output_does_not_pass() -> None:
    torch.manual_seed(0)
    result = Result("loses", "", "", smallest=True)
    examine(Case(Loses().double().eval(), torch.randn(2, 5, 4).double()), result)
    assert result.verdict == "failed"
    assert result.reason.startswith("output")


@pytest.mark.slow
def test_a_process_that_dies_or_takes_too_long_is_a_result() -> None:
    entries = [Entry("no_such_model", "none", ""), Entry("test_vit", "vision_transformer", "")]
    missing, slow = (
        next(iter(run("tests.sweep.timm_models", [entry], seconds=seconds, gigabytes=6)))
        for entry, seconds in zip(entries, (300, 0.01), strict=True)
    )
    assert missing.verdict == "not built"
    assert "no_such_model" in missing.reason
    assert slow.verdict == "failed"
    assert "took more than" in slow.reason


# -- what counts as softmax attention -----------------------------------------------------------


def test_softmax_attention_is_observed() -> None:
    x = torch.randn(2, 5, 4)

    def plain() -> torch.Tensor:
        return ((x @ x.mT).softmax(-1) * 2) @ x

    def fused() -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    def gate() -> torch.Tensor:
        return (x.softmax(-1) * x) @ x.mT

    def probabilities() -> torch.Tensor:
        return F.linear(x, torch.randn(3, 4)).softmax(-1)

    assert [computes_softmax_attention(run)[1] for run in (plain, fused, gate, probabilities)] == [
        True,
        True,
        False,
        False,
    ]


# -- results ------------------------------------------------------------------------------------


def test_results_are_kept_line_by_line_the_last_of_each(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert results.read(path) == {}
    first, second = (Result("b", "f", "t", smallest=True, parameters=n) for n in (1, 2))
    for one in (first, Result("a", "f", "t", smallest=False), second):
        results.append(path, one)
    found = results.read(path)
    assert found["b"] == second
    results.write(path, found)
    names = [json.loads(line)["name"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert names == ["a", "b"]


@pytest.mark.parametrize("suite", ["timm", "transformers"])
def test_the_table_has_a_row_for_each_result(suite: str) -> None:
    """`make docs` writes it; it is too long to be committed."""
    found = results.read(DOCS / "sweep" / f"{suite}.jsonl")
    assert found
    rows = table(suite, found).partition("## Models")[2]
    for one in found.values():
        assert f"| {one.family} | `{one.name}` | {one.verdict} | {one.readout} |" in rows


def test_the_committed_page_is_that_of_the_results() -> None:
    suites = {
        suite: list(results.read(DOCS / "sweep" / f"{suite}.jsonl").values())
        for suite in ("timm", "transformers")
    }
    written = page({suite: found for suite, found in suites.items() if found})
    assert (DOCS / "models.md").read_text(encoding="utf-8") == written


def test_every_module_of_timm_with_attention_has_a_result() -> None:
    found = results.read(DOCS / "sweep" / "timm.jsonl")
    swept = {one.family for one in found.values()}
    with_attention = [one for one in timm_models.entries() if timm_models.attends(one.name)]
    missing = {entry.family for entry in with_attention} - swept
    assert not missing
