"""A tiny classifier, photos for it, and a benchmark without any model."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from captum_transformer_lrp.benchmarks import Benchmark, Summary, UnreadableExampleError
from captum_transformer_lrp.benchmarks.model_benchmark import evenly_spaced
from captum_transformer_lrp.benchmarks.records import Record
from captum_transformer_lrp.benchmarks.statistics import MethodMeans
from captum_transformer_lrp.models import ImageModel, load_image_model

CLASSES = 3


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of timm's `test_vit`."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(timm.create_model("test_vit", num_classes=CLASSES).state_dict(), file)
    return file


@pytest.fixture(scope="session")
def tiny(checkpoint: Path) -> ImageModel:
    return load_image_model("test_vit", checkpoint=checkpoint)


def write_photo(file: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((60, 40)).save(file)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos, two of each class."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        write_photo(folder / f"{number % CLASSES:04}_{number}.png", number)
    return folder


class Dice(Benchmark[int]):
    """Every example is a number; its methods draw random numbers around it."""

    name = "dice"
    methods = ("ours", "theirs")

    def __init__(
        self,
        count: int = 12,
        damaged: int | None = None,
        pause: float = 0,
        limit: int | None = None,
        stopped: int | None = None,
    ) -> None:
        self.count, self.damaged, self.pause, self.stopped = count, damaged, pause, stopped
        self.selected = evenly_spaced(range(count), limit)
        self.loaded: list[int] = []

    def settings(self) -> dict[str, Any]:
        return {"sides": 6}

    def identifiers(self) -> list[str]:
        return [f"example {number}" for number in range(self.count)]

    def load(self, index: int) -> int:
        if len(self.loaded) == self.stopped:
            raise KeyboardInterrupt
        self.loaded.append(index)
        if index == self.damaged:
            raise UnreadableExampleError("the file ends too early")
        return index

    def evaluate(self, example: int, method: str) -> dict[str, Any]:
        if self.pause:
            time.sleep(self.pause)
        # Magnitudes differ so much that a sum of floats would depend on its order.
        return {
            "value": example + 10.0 ** random.Random(example).randint(-9, 9) * torch.rand(1).item()
        }

    def summarise(self, records: Callable[[], Iterator[Record]]) -> Summary:
        means = MethodMeans(self.methods, None)
        for record in records():
            means.add({name: {("value", ""): one["value"]} for name, one in record.methods.items()})
        return Summary(tuple(means.figures()))
