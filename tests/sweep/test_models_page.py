"""What docs/models.md tells a user to type is run as it is printed, on tiny models in a folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers

from captum_transformer_lrp import TransformerAttribution
from tests.sweep import transformers_models
from tests.sweep.models_page import LINES, OTHER_INPUTS
from tests.sweep.results import read
from tests.sweep.transformers_configs import tiny_config

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "models.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

TASKS = [task for task in LINES if task != "timm"]
FAMILIES = {
    "sequence classification": ["bert", "llama", "t5"],
    "token classification": ["roberta"],
    "masked language model": ["distilbert"],
    "question answering": ["electra"],
    "image classification": ["vit", "swin"],
    "audio classification": ["wav2vec2"],
    "video classification": ["timesformer"],
}


def printed(task: str) -> str:
    """The lines of the page for a task."""
    first, _ = LINES[task]
    (block,) = [block for block in BLOCKS if first in block]
    return block


def run(task: str, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Run the lines of a task with a name filled in."""
    names = {"timm": timm, "TransformerAttribution": TransformerAttribution, **given}
    names |= {
        name: getattr(transformers, name) for name in re.findall(r"AutoModel\w+", printed(task))
    }
    exec(printed(task).replace("NAME", name).replace("pretrained=True", ""), names)
    return names


def saved(task: str, kind: str, folder: Path) -> Any:
    """Save a tiny model where the lines load it from, and give what it takes."""
    entries = transformers_models.entries()
    entry = next(one for one in entries if one.family == kind and one.task == task)
    torch.manual_seed(0)
    case = transformers_models.build(entry)
    case.model.float().save_pretrained(folder)
    values = case.inputs
    assert isinstance(values, torch.Tensor)
    return values if values.dtype == torch.long else values.float()


def check(task: str, kind: str, folder: Path) -> None:
    values = saved(task, kind, folder)
    where = {"class_index": 1, "position": 3, "token_id": 7}
    inputs = dict.fromkeys(("input_ids", "pixel_values", "input_values"), values)
    names = run(task, str(folder), {**inputs, **where, "mask": torch.ones_like(values)})
    assert names["attributions"].shape == values.shape
    assert names["attributions"].any()


@pytest.mark.parametrize("task", TASKS)
def test_the_lines_of_a_task_run_as_they_are_printed(task: str, tmp_path: Path) -> None:
    for kind in FAMILIES[task]:
        check(task, kind, tmp_path / kind)


def test_the_lines_for_timm_run_as_they_are_printed() -> None:
    images = torch.randn(2, 3, 160, 160)
    names = run("timm", "test_vit", {"images": images, "class_index": 1})
    assert names["attributions"].shape == images.shape


def _families() -> list[tuple[str, str]]:
    """All that have passed, for the tasks whose families are all swept."""
    found = read(DOCS / "sweep" / "transformers.jsonl").values()
    passed = {one.family for one in found if one.verdict == "passed"} - set(OTHER_INPUTS)
    return [
        (entry.task, entry.family)
        for entry in transformers_models.entries()
        if entry.family in passed and entry.task not in transformers_models.SAMPLES
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "kind"), _families())
def test_the_lines_run_for_every_family(task: str, kind: str, tmp_path: Path) -> None:
    assert tiny_config(kind) is not None
    check(task, kind, tmp_path)
