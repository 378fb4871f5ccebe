"""Damaged files of weights and their indices are read, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

from captum_transformer_lrp.models import (
    ModelLoadError,
    _folder_state,
    load_weights,
    read_checkpoint,
)
from tests.fuzz.mutants import DURATIONS, fuzz, read_or_refused


def state() -> dict[str, torch.Tensor]:
    return {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}


def check_weights(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    model = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with read_or_refused(ModelLoadError, path):
        load_weights(model, read_checkpoint(path), path)
        return
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@DURATIONS
def test_damaged_safetensors_are_read_or_refused_by_name(tmp_path: Path, seconds: float) -> None:
    path = tmp_path / "model.safetensors"
    whole = [
        save(state()),
        save({name: value.half() for name, value in state().items()}),
        save(state() | {"step": torch.ones(1, dtype=torch.int32)}, metadata={"format": "pt"}),
    ]
    assert fuzz(lambda data: check_weights(data, path), whole, seconds)


def check_index(data: bytes, folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_bytes(data)
    with read_or_refused(ModelLoadError, folder):
        _folder_state(folder)


@DURATIONS
def test_a_damaged_index_is_read_or_refused_by_name(tmp_path: Path, seconds: float) -> None:
    for number, (name, value) in enumerate(state().items()):
        (tmp_path / f"model-{number}.safetensors").write_bytes(save({name: value}))
    index = {
        "metadata": {"total_size": 32},
        "weight_map": {"weight": "model-0.safetensors", "bias": "model-1.safetensors"},
    }
    whole = [json.dumps(index).encode(), json.dumps(index, indent=1).encode("utf-8-sig")]
    assert fuzz(lambda data: check_index(data, tmp_path), whole, seconds)


@pytest.mark.parametrize("name", ["x" * 300, "\0", "..", "", "model-0.safetensors/", "[" * 5000])
def test_an_index_that_names_no_file_is_refused(tmp_path: Path, name: str) -> None:
    index = json.dumps({"weight_map": {"weight": name}}).encode()
    check_index(index, tmp_path)
    check_index(b'{"weight_map": ' + b"[" * 100_000, tmp_path)
