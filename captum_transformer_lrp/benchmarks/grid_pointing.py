"""The grid pointing game: whose attribution lies in the cell of its own photo (Böhle et al. 2021).

Moritz Böhle, Mario Fritz, Bernt Schiele, *Convolutional Dynamic Alignment Networks for
Interpretable Classifications*, CVPR 2021.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.benchmarks.distributed import joined_processes
from captum_transformer_lrp.benchmarks.errors import BenchmarkError
from captum_transformer_lrp.benchmarks.images import (
    LabelledImage,
    evenly_spaced,
    input_size,
    model_logits,
    photos,
    read_rgb,
    whole_image,
)
from captum_transformer_lrp.benchmarks.methods import PAPER, methods_by_name
from captum_transformer_lrp.benchmarks.records import Record
from captum_transformer_lrp.benchmarks.results import MODEL, Result, Summary
from captum_transformer_lrp.benchmarks.runner import Benchmark, record_folder, run, weights_digest
from captum_transformer_lrp.benchmarks.statistics import ExactMean, MethodMeans
from captum_transformer_lrp.models import ImageModel


def grid_pointing(
    model: ImageModel,
    data: str | Path | Sequence[LabelledImage],
    methods: Sequence[str] = PAPER,
    *,
    output: str | Path,
    grid: int = 2,
    confidence: float = 0.9,
    labels: str | Path | None = None,
    limit: int | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    show_progress: bool = False,
) -> Result:
    """Put photos of different classes into a grid, and see which of them each class's map lights.

    First the model classifies every photo by itself; those whose true class it gives a probability
    of at least ``confidence`` are put into grids at random, each into one.  A grid has the model's
    input size: its photos are made smaller.  Then every class in a grid is explained, and measured
    is the share of the map's positive attribution that lies in the cell of the class's own photo.
    Chance, and a map that does not depend on the class, is 1/grid² on average; a map without any
    positive attribution counts as 0.

    Args:
        model: from :func:`~captum_transformer_lrp.models.load_image_model`, or made by hand.
        data: a folder of photos (see
            :func:`~captum_transformer_lrp.benchmarks.images.labelled_images`) or the photos.
        methods: names as in :func:`~captum_transformer_lrp.benchmarks.methods.methods_by_name`.
        output: the folder for records and results; an unfinished run there goes on.
        grid: photos along each side.
        confidence: the least probability of the true class.
        labels: a file of labels, if the names of files and folders do not tell the classes.
        limit: at most so many grids.
        device: where to compute.
        seed: of the grids, and of methods that draw random numbers.
        show_progress: whether to show a bar with the remaining time.

    Returns:
        ``"localisation"`` in per cent: the mean over the grids of the mean over a grid's classes;
        of the model ``"top-1 accuracy"`` and ``"confident"``, the share of photos used for grids.

    Raises:
        BenchmarkError: for data, methods or an output folder that do not fit, and if there are too
            few confidently classified photos of different classes for a grid.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from captum_transformer_lrp import examples
        >>> from captum_transformer_lrp.benchmarks import LabelledImage, grid_pointing
        >>> from captum_transformer_lrp.models import ImageModel
        >>> classifier = examples.scene_classifier()
        >>> names = tuple(classifier.class_names)
        >>> model = ImageModel(
        ...     "scenes", classifier,
        ...     lambda photo: examples.preprocess(np.array(photo.resize((96, 96)))),
        ...     names, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> folder = Path(examples.__file__).parent / "assets" / "scenes"
        >>> data = [LabelledImage(name, folder / f"{name}.png", names.index(name))
        ...     for name in ("butterfly", "horse", "tractor", "crocodile")]
        >>> with tempfile.TemporaryDirectory() as output:
        ...     result = grid_pointing(model, data, ["transformer_attribution", "random"],
        ...         output=output, confidence=0.5)
        >>> result.figure("transformer_attribution", "localisation").value > 50
        True
    """
    if grid < 2:
        raise BenchmarkError(f"found a grid of {grid}x{grid}, expected at least 2x2")
    where = torch.device(device)
    found = photos(data, model, labels)
    with joined_processes() as processes:
        classification = Classification(model, found, device=where)
        folder = Path(output) / "classification"
        classified = run(classification, folder, seed=seed, show_progress=show_progress, save=False)
        confident = [
            record.index
            for record in record_folder(classification, folder, seed).records()
            if record.skipped is None and record.values["probability"] >= confidence
        ]
        grids = make_grids([found[index] for index in sorted(confident)], grid * grid, seed)
        if not grids:
            raise BenchmarkError(
                f"the model gives its true class a probability of at least {confidence} for "
                f"{len(confident)} of {len(found)} photos, expected {grid * grid} of different "
                "classes: lower the confidence or give more photos"
            )
        benchmark = GridPointing(model, grids, methods, grid, confidence, limit=limit, device=where)
        result = run(benchmark, output, seed=seed, show_progress=show_progress, save=False)
        share = replace(
            classified.figures[0],
            metric="confident",
            value=100 * len(confident) / classified.figures[0].count,
            standard_error=float("nan"),
        )
        result = replace(
            result,
            skipped=classified.skipped + result.skipped,
            summary=replace(
                result.summary, figures=(*classified.figures, share, *result.summary.figures)
            ),
        )
        if processes.rank == 0:
            result.save(Path(output))
        return result


def make_grids(
    candidates: Sequence[LabelledImage], count: int, seed: int
) -> list[tuple[LabelledImage, ...]]:
    """Share photos out among grids, at random, the photos of a grid being of different classes.

    Args:
        candidates: the photos.
        count: photos in a grid.
        seed: of the order.

    Returns:
        The grids; photos that are left over are in none.

    Example:
        >>> photos = [LabelledImage(f"{n}.jpg", Path(f"{n}.jpg"), n % 3) for n in range(6)]
        >>> [sorted(one.label for one in grid) for grid in make_grids(photos, 3, seed=0)]
        [[0, 1, 2], [0, 1, 2]]
    """
    order = list(candidates)
    random.Random(seed).shuffle(order)
    waiting = deque(order)
    grids: list[tuple[LabelledImage, ...]] = []
    while True:
        members: dict[int, LabelledImage] = {}
        again: list[LabelledImage] = []
        while waiting and len(members) < count:
            photo = waiting.popleft()
            if photo.label in members:
                again.append(photo)
            else:
                members[photo.label] = photo
        if len(members) < count:
            return grids
        waiting.extendleft(reversed(again))
        grids.append(tuple(members.values()))


class Classification(Benchmark[Tensor]):
    """The model's probability of the true class of every photo; no method takes part.

    Args:
        model: the model.
        data: the photos.
        device: where to compute.
    """

    name = "classification"
    methods = ()

    def __init__(
        self, model: ImageModel, data: Sequence[LabelledImage], *, device: torch.device
    ) -> None:
        self._model = model
        self._data = data
        self._device = device
        self._classifier = model.model.to(device)
        self._size = input_size(model)

    def settings(self) -> dict[str, Any]:
        """Everything that the records depend on."""
        return _model_settings(self._model, self._size, self._device)

    def identifiers(self) -> list[str]:
        """The names of the photos, with their classes."""
        return [f"{one.identifier} ({one.label})" for one in self._data]

    def load(self, index: int) -> Tensor:
        """The model's probabilities, the true class's first."""
        entry = self._data[index]
        pixels = whole_image(read_rgb(entry.file), self._model, self._size)
        logits = model_logits(self._classifier, pixels[None].to(self._device))[0]
        probabilities = logits.double().softmax(-1).cpu()
        return torch.stack([probabilities[entry.label], probabilities.max()])

    def describe(self, example: Tensor) -> dict[str, Any]:
        """The probability of the true class, and whether it is the largest."""
        of_label, largest = example.tolist()
        return {"probability": of_label, "right": of_label == largest}

    def evaluate(self, example: Tensor, method: str) -> dict[str, Any]:
        """There is no method."""
        raise ValueError(f"the model's accuracy is of no method, found {method!r}")

    def summarise(self, records: Callable[[], Iterator[Record]]) -> Summary:
        """The accuracy."""
        accuracy = ExactMean()
        for record in records():
            accuracy.add(100.0 * record.values["right"])
        return Summary(figures=(accuracy.figure(MODEL, "top-1 accuracy", unit="%"),))


@dataclass(frozen=True)
class Grid:
    """Photos in one image.

    Args:
        pixels: normalised, (1, 3, H, W).
        cells: for each photo its rows and its columns.
        classes: for each photo its class.
    """

    pixels: Tensor
    cells: tuple[tuple[slice, slice], ...]
    classes: tuple[int, ...]


class GridPointing(Benchmark[Grid]):
    """The grid pointing game as a benchmark; see :func:`grid_pointing` for the arguments."""

    name = "grid-pointing"

    def __init__(
        self,
        model: ImageModel,
        grids: Sequence[Sequence[LabelledImage]],
        methods: Sequence[str] = PAPER,
        grid: int = 2,
        confidence: float = 0.9,
        *,
        limit: int | None = None,
        device: torch.device,
    ) -> None:
        self._methods = {one.label: one for one in methods_by_name(methods)}
        self.methods = tuple(self._methods)
        self._model = model
        self._grids = grids
        self.selected = evenly_spaced(range(len(grids)), limit)
        self._side = grid
        self._confidence = confidence
        self._device = device
        self._classifier = model.model.to(device)
        self._size = input_size(model)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    def settings(self) -> dict[str, Any]:
        """Everything that the records depend on."""
        return {
            **_model_settings(self._model, self._size, self._device),
            "grid": self._side,
            "confidence": self._confidence,
        }

    def identifiers(self) -> list[str]:
        """The names of each grid's photos."""
        return [
            " + ".join(f"{one.identifier} ({one.label})" for one in grid) for grid in self._grids
        ]

    def load(self, index: int) -> Grid:
        """Read a grid's photos and put them into one image, row by row."""
        rows = list(pairwise(_edges(self._size[0], self._side)))
        columns = list(pairwise(_edges(self._size[1], self._side)))
        pixels = torch.zeros(1, 3, *self._size)
        places = [(slice(*row), slice(*column)) for row in rows for column in columns]
        for (row, column), photo in zip(places, self._grids[index], strict=True):
            size = (row.stop - row.start, column.stop - column.start)
            pixels[0, :, row, column] = whole_image(read_rgb(photo.file), self._model, size)
        classes = tuple(photo.label for photo in self._grids[index])
        return Grid(pixels.to(self._device), tuple(places), classes)

    def evaluate(self, example: Grid, method: str) -> dict[str, Any]:
        """For each photo the share of its class's positive attribution that is in its cell."""
        maps = self._methods[method].maps(self._classifier, example.pixels, example.classes)
        return {
            "shares": [
                localisation(one, *cell) for one, cell in zip(maps, example.cells, strict=True)
            ]
        }

    def summarise(self, records: Callable[[], Iterator[Record]]) -> Summary:
        """The mean share, in per cent."""
        reference = "transformer_attribution"
        means = MethodMeans(
            self.methods, reference if reference in self.methods else None, unit="%"
        )
        for record in records():
            means.add(
                {
                    method: {
                        ("localisation", ""): 100 * sum(found["shares"]) / len(found["shares"])
                    }
                    for method, found in record.methods.items()
                }
            )
        return Summary(figures=tuple(means.figures()))


def localisation(relevance: Tensor, rows: slice, columns: slice) -> float:
    """The share of a map's positive attribution that lies in a cell; 0 if there is none.

    >>> localisation(torch.tensor([[3.0, -5.0], [1.0, 0.0]]), slice(0, 1), slice(0, 1))
    0.75
    """
    positive = relevance.clamp(min=0)
    total = float(positive.sum())
    return float(positive[rows, columns].sum()) / total if total else 0.0


def _edges(length: int, parts: int) -> list[int]:
    return [length * part // parts for part in range(parts + 1)]


def _model_settings(
    model: ImageModel, size: tuple[int, int], device: torch.device
) -> dict[str, Any]:
    return {
        "model": model.name,
        "checkpoint_sha256": weights_digest(model.model),
        "mean": model.mean,
        "std": model.std,
        "input_size": size,
        "device": device.type,
    }
