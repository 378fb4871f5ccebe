"""The grid pointing game: whose attribution lies in the cell of its own photo (Böhle et al. 2021).

Moritz Böhle, Mario Fritz, Bernt Schiele, *Convolutional Dynamic Alignment Networks for
Interpretable Classifications*, CVPR 2021.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.benchmark_options import PAPER, GridOptions
from captum_transformer_lrp.benchmarks.distributed import joined_processes
from captum_transformer_lrp.benchmarks.errors import BenchmarkError
from captum_transformer_lrp.benchmarks.images import (
    ImageBenchmark,
    LabelledImage,
    PhotoBenchmark,
    file_digest,
    photos,
    read_rgb,
    whole_image,
)
from captum_transformer_lrp.benchmarks.records import Record
from captum_transformer_lrp.benchmarks.results import Result
from captum_transformer_lrp.benchmarks.runner import record_folder, run
from captum_transformer_lrp.benchmarks.segmentation import relevance_mass
from captum_transformer_lrp.models import ImageModel


def grid_pointing(
    model: ImageModel,
    data: str | Path | Sequence[LabelledImage],
    methods: Sequence[str] = PAPER,
    *,
    output: str | Path,
    labels: str | Path | None = None,
    seed: int = 0,
    show_progress: bool = False,
    so_far: bool = False,
    **options: Any,
) -> Result:
    """Put photos of different classes into grids, and run :class:`GridPointing`.

    First the model classifies every photo by itself.  Those whose true class it gives a probability
    of at least ``confidence`` are put into grids at random, each into one in each round.

    Takes photos and ``labels`` as :func:`labelled_images`, the arguments of
    :func:`~captum_transformer_lrp.benchmarks.run`, whose seed is that of the grids, too, and the
    options of :class:`GridPointing`.

    Raises:
        BenchmarkError: also if too few photos of different classes are confident for a grid.
    """
    empty = GridPointing(model, [], methods, **options)  # which checks the options
    found = photos(data, model, labels)
    how: dict[str, Any] = {"seed": seed, "show_progress": show_progress, "so_far": so_far}
    with joined_processes() as processes:
        classification = Classification(model, found, ["random"], device=empty.device)
        folder = Path(output) / "classification"
        classified = run(classification, folder, save=False, **how)
        if classified.pending:
            raise BenchmarkError(f"{classified.pending} photos are not classified yet")
        records = record_folder(classification, folder, seed).records()
        probabilities = {one.index: one.values["probability"] for one in records if not one.skipped}
        confident = [index for index, one in probabilities.items() if one >= empty.confidence]
        candidates, cells = [found[index] for index in sorted(confident)], empty.grid**2
        dealt = (make_grids(candidates, cells, seed + turn) for turn in range(empty.rounds))
        # Few photos can give the same grid again.
        grids = list(dict.fromkeys(chain.from_iterable(dealt)))
        if not grids:
            raise BenchmarkError(
                f"the model gives its true class a probability of at least {empty.confidence} for "
                f"{len(confident)} of {len(found)} photos, expected {cells} of different "
                "classes: lower the confidence or give more photos"
            )
        result = run(replace(empty, data=grids), output, save=False, **how)
        (accuracy,) = classified.figures
        share = 100 * len(confident) / accuracy.count
        used = replace(accuracy, metric="confident", value=share, standard_error=math.nan)
        result = replace(
            result,
            skipped=classified.skipped + result.skipped,
            summary=replace(result.summary, figures=(accuracy, used, *result.figures)),
        )
        if processes.rank == 0 and not so_far:
            result.save(Path(output))
        return result


def make_grids(
    candidates: Sequence[LabelledImage], count: int, seed: int
) -> list[tuple[LabelledImage, ...]]:
    """Share photos out among grids of ``count``, at random, each of different classes.

    Photos that are left over are in none.

    Example:
        >>> photos = [LabelledImage(f"{n}.jpg", Path(f"{n}.jpg"), n % 3) for n in range(6)]
        >>> [sorted(one.label for one in grid) for grid in make_grids(photos, 3, seed=0)]
        [[0, 1, 2], [0, 1, 2]]
    """
    waiting = list(candidates)
    random.Random(seed).shuffle(waiting)
    grids: list[tuple[LabelledImage, ...]] = []
    while True:
        first: dict[int, LabelledImage] = {}
        for photo in waiting:
            first.setdefault(photo.label, photo)
        if len(first) < count:
            return grids
        grids.append(tuple(first.values())[:count])
        for photo in grids[-1]:
            waiting.remove(photo)


@dataclass(frozen=True, eq=False)
class Classification(PhotoBenchmark[Tensor]):
    """The model's probability of the true class of every photo; no method takes part."""

    name = "classification"

    def prepare(self) -> None:
        """Find the photos."""
        super().prepare()
        self.put(methods=())

    def load(self, index: int) -> Tensor:
        """The model's probabilities: the true class's, and the largest."""
        entry = self.data[index]
        probabilities = self.logits(self.seen(read_rgb(entry.file)))[0].double().softmax(-1).cpu()
        return torch.stack([probabilities[entry.label], probabilities.max()])

    def describe(self, example: Tensor) -> dict[str, Any]:
        """The probability of the true class, and whether it is the largest."""
        of_label, largest = example.tolist()
        return {"probability": of_label, "right": of_label == largest}

    def evaluate(self, example: Tensor, method: str) -> dict[str, Any]:
        """There is no method."""
        raise ValueError(f"the model's accuracy is of no method, found {method!r}")

    def of_model(self, record: Record) -> dict[str, float]:
        """The accuracy."""
        return {"top-1 accuracy": 100.0 * record.values["right"]}


@dataclass(frozen=True)
class Grid:
    """Photos in one image (1, 3, H, W): each one's rows and columns, and its class."""

    pixels: Tensor
    cells: tuple[tuple[slice, slice], ...]
    classes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class GridPointing(GridOptions, ImageBenchmark[Grid]):
    """The grid pointing game on grids of photos, as :func:`grid_pointing` makes them.

    A grid has the model's input size: its photos are made smaller.  Then every class in a grid is
    explained, and measured is the share of the map's positive attribution that lies in the cell of
    the class's own photo.  Chance, and a map that does not depend on the class, is 1/grid² on
    average; a map without any positive attribution counts as 0.

    In per cent the result has ``"localisation"``, the mean over the grids of the mean over a grid's
    classes; of the model ``"top-1 accuracy"``, and ``"confident"``, the share of photos in grids.
    """

    name = "grid-pointing"

    def identifiers(self) -> list[str]:
        """The names of each grid's photos."""
        return [" + ".join(map(str, grid)) for grid in self.data]

    def contents(self, index: int) -> str:
        """Of the photos, as they are on disk."""
        return file_digest(*(photo.file for photo in self.data[index]))

    def load(self, index: int) -> Grid:
        """Read a grid's photos and put them into one image, row by row."""
        rows, columns = (
            [slice(size * n // self.grid, size * (n + 1) // self.grid) for n in range(self.grid)]
            for size in self.size
        )
        pixels, places = torch.zeros(1, 3, *self.size), tuple(product(rows, columns))
        for (row, column), photo in zip(places, self.data[index], strict=True):
            size = (row.stop - row.start, column.stop - column.start)
            pixels[0, :, row, column] = whole_image(read_rgb(photo.file), self.model, size)
        classes = tuple(photo.label for photo in self.data[index])
        return Grid(pixels.to(self.device), places, classes)

    def evaluate(self, example: Grid, method: str) -> dict[str, Any]:
        """For each photo the share of its class's positive attribution that is in its cell."""
        maps = self.by_label[method].maps(self.classifier, example.pixels, example.classes)
        cells = zip(maps, example.cells, strict=True)
        return {"shares": [relevance_mass(one.numpy(), cell) for one, cell in cells]}

    unit = "%"

    def values(self, record: Record) -> dict[str, dict[tuple[str, str], float]]:
        """The mean share, in per cent."""
        return {
            name: {("localisation", ""): 100 * sum(found["shares"]) / len(found["shares"])}
            for name, found in record.methods.items()
        }
