"""A few of the suite of transformers, structurally different, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.sweep import results, transformers_models
from tests.sweep.runner import examined

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "sweep" / "transformers.jsonl"

ENTRIES = {entry.name: entry for entry in transformers_models.entries()}


@pytest.mark.parametrize(
    "name",
    [
        "bloom",
        "canine",
        "deepseek_v3",
        "diffllama",
        "jetmoe",
        "longformer",
        "qwen3_next",
        "reformer",
        "t5",
    ],
)
def test_a_type_passes_every_column(name: str) -> None:
    torch.manual_seed(0)
    found = examined(transformers_models, ENTRIES[name])
    assert found.verdict == "passed", found.reason


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        one.name
        for one in results.read(RESULTS).values()
        if one.task == "sequence classification" and one.verdict == "passed"
    ],
)
def test_a_type_that_passed_still_does(name: str) -> None:
    torch.manual_seed(0)
    found = examined(transformers_models, ENTRIES[name])
    assert found.verdict == "passed", found.reason


def test_a_model_without_attention_is_refused_by_name() -> None:
    found = examined(transformers_models, ENTRIES["fnet"])
    assert found.verdict == "refused"
    assert "fnet.encoder.layer.0.fourier" in found.reason


def test_attention_without_a_gradient_is_refused() -> None:
    found = examined(transformers_models, ENTRIES["yoso"])
    assert found.verdict == "refused"
    assert "attention map has no gradient" in found.reason
