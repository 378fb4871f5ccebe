"""The perturbation test: remove pixels in the order of a map and watch the accuracy (section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from captum_transformer_lrp.benchmarks.curves import Curve
from captum_transformer_lrp.benchmarks.errors import BenchmarkError
from captum_transformer_lrp.benchmarks.images import (
    LabelledImage,
    evenly_spaced,
    input_size,
    model_logits,
    normalised,
    photos,
    read_rgb,
    whole_image,
)
from captum_transformer_lrp.benchmarks.methods import PAPER, methods_by_name
from captum_transformer_lrp.benchmarks.records import Record
from captum_transformer_lrp.benchmarks.results import MODEL, Result, Summary
from captum_transformer_lrp.benchmarks.runner import Benchmark, run, weights_digest
from captum_transformer_lrp.benchmarks.statistics import ExactMean, MethodMeans
from captum_transformer_lrp.models import ImageModel

Explained: TypeAlias = Literal["predicted", "target"]
Removal: TypeAlias = Literal["black", "mean", "blur"]
Resize: TypeAlias = Literal["whole", "model"]

STEPS: Final = (10, 20, 30, 40, 50, 60, 70, 80, 90)
"""The shares of the pixels that are removed, in per cent."""

_TESTS = ("positive", "negative")


def perturbation(
    model: ImageModel,
    data: str | Path | Sequence[LabelledImage],
    methods: Sequence[str] = PAPER,
    *,
    output: str | Path,
    explain: Sequence[Explained] = get_args(Explained),
    removal: Removal = "black",
    resize: Resize = "whole",
    labels: str | Path | None = None,
    limit: int | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    show_progress: bool = False,
    so_far: bool = False,
) -> Result:
    """Remove 10 to 90 % of the pixels in a map's order and measure the top-1 accuracy.

    In the *positive* test the most relevant pixels go first, so a good map makes the accuracy fall
    quickly and the area under the curve (AUC) is small; in the *negative* test the least relevant
    go first, and a large area is good.  Accuracy is against the true class, whichever class is
    explained.  Of pixels with equal relevance the one that comes first in the image goes first.

    Args:
        model: from :func:`~captum_transformer_lrp.models.load_image_model`, or made by hand.
        data: a folder of photos (see
            :func:`~captum_transformer_lrp.benchmarks.images.labelled_images`) or the photos.
        methods: names as in :func:`~captum_transformer_lrp.benchmarks.methods.methods_by_name`.
        output: the folder for records and results; an unfinished run there goes on.
        explain: the explained classes: the one that the model predicts, the true one, or both.
        removal: what comes in the place of removed pixels: black (0 before normalisation), the
            model's mean colour, or the image under a Gaussian blur whose standard deviation is a
            twentieth of its shorter side.
        resize: ``"whole"`` resizes all of each photo to the model's input, as the paper's published
            evaluation does; ``"model"`` uses the model's own preprocessing, which crops.
        labels: a file of labels, if the names of files and folders do not tell the classes.
        limit: at most so many photos, spread evenly over the data.
        device: where to compute.
        seed: of methods that draw random numbers.
        show_progress: whether to show a bar with the remaining time.
        so_far: only sum up what there is of an unfinished run.

    Returns:
        In per cent, with ``condition`` the explained class: ``"positive AUC"``,
        ``"negative AUC"`` by the trapezoid rule over 10 to 90 % (at most 80) and their difference,
        ``"area between"`` (also called LeRF − MoRF); and both AUCs ``"from 0 %"``, with the
        accuracy on whole photos as first point (at most 90), which is what the paper's published
        tables hold.

    Raises:
        BenchmarkError: for data, methods or an output folder that do not fit.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from captum_transformer_lrp import examples
        >>> from captum_transformer_lrp.benchmarks import LabelledImage, perturbation
        >>> from captum_transformer_lrp.models import ImageModel
        >>> classifier = examples.scene_classifier()
        >>> names = tuple(classifier.class_names)
        >>> model = ImageModel(
        ...     "scenes", classifier,
        ...     lambda photo: examples.preprocess(np.array(photo.resize((96, 96)))),
        ...     names, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> folder = Path(examples.__file__).parent / "assets" / "scenes"
        >>> photos = [LabelledImage(name, folder / f"{name}.png", names.index(name))
        ...     for name in ("butterfly", "horse")]
        >>> with tempfile.TemporaryDirectory() as output:
        ...     result = perturbation(model, photos, ["transformer_attribution", "random"],
        ...         output=output, explain=["predicted"])
        >>> figure = result.figure("transformer_attribution", "negative AUC", "predicted")
        >>> figure.value > result.figure("random", "negative AUC", "predicted").value
        True
    """
    benchmark = Perturbation(
        model,
        photos(data, model, labels),
        methods,
        explain=explain,
        removal=removal,
        resize=resize,
        limit=limit,
        device=device,
    )
    return run(benchmark, output, seed=seed, show_progress=show_progress, so_far=so_far)


@dataclass(frozen=True)
class Photo:
    """A photo with what the model makes of it.

    Args:
        pixels: normalised, (1, 3, H, W).
        removed: the same with all pixels removed.
        label: its true class.
        predicted: the class that the model predicts.
    """

    pixels: Tensor
    removed: Tensor
    label: int
    predicted: int


class Perturbation(Benchmark[Photo]):
    """The perturbation test as a benchmark; see :func:`perturbation` for the arguments."""

    name = "perturbation"

    def __init__(
        self,
        model: ImageModel,
        data: Sequence[LabelledImage],
        methods: Sequence[str] = PAPER,
        *,
        explain: Sequence[Explained] = get_args(Explained),
        removal: Removal = "black",
        resize: Resize = "whole",
        limit: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        _check("explain", explain, get_args(Explained))
        _check("removal", [removal], get_args(Removal))
        _check("resize", [resize], get_args(Resize))
        self._methods = {one.label: one for one in methods_by_name(methods)}
        self.methods = tuple(self._methods)
        self._model = model
        self._device = torch.device(device)
        self._classifier = model.model.to(self._device)
        self._data = data
        self.selected = evenly_spaced(range(len(data)), limit)
        self._explain = tuple(explain)
        self._removal = removal
        self._resize = resize
        self._size = input_size(model)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    def settings(self) -> dict[str, Any]:
        """Everything that the records depend on."""
        return {
            "model": self._model.name,
            "checkpoint_sha256": weights_digest(self._model.model),
            "mean": self._model.mean,
            "std": self._model.std,
            "input_size": self._size,
            "explain": self._explain,
            "removal": self._removal,
            "resize": self._resize,
            "steps": STEPS,
            "device": self._device.type,
        }

    def identifiers(self) -> list[str]:
        """The names of the photos, with their classes."""
        return [f"{one.identifier} ({one.label})" for one in self._data]

    def load(self, index: int) -> Photo:
        """Read a photo and let the model classify it."""
        entry = self._data[index]
        image = read_rgb(entry.file)
        if self._resize == "whole":
            pixels = whole_image(image, self._model, self._size)
        else:
            pixels = self._model.preprocess(image)
        batch = pixels[None].to(self._device)
        predicted = int(model_logits(self._classifier, batch)[0].argmax())
        removed = removed_pixels(batch, self._model, self._removal)
        return Photo(batch, removed, entry.label, predicted)

    def describe(self, example: Photo) -> dict[str, Any]:
        """The true and the predicted class."""
        return {"label": example.label, "predicted": example.predicted}

    def evaluate(self, example: Photo, method: str) -> dict[str, Any]:
        """By explained class and test, whether the model is right at each step: 0 or 1."""
        classes = {"predicted": example.predicted, "target": example.label}
        targets = [classes[explained] for explained in self._explain]
        maps = self._methods[method].maps(self._classifier, example.pixels, targets)
        known: dict[int, dict[str, list[int]]] = {}
        found: dict[str, Any] = {}
        for explained, target, one in zip(self._explain, targets, maps, strict=True):
            key = 0 if self._methods[method].class_agnostic else target
            if key not in known:
                known[key] = {
                    test: self._right(example, removal_order(one, test)) for test in _TESTS
                }
            found[explained] = known[key]
        return found

    def _right(self, example: Photo, order: Tensor) -> list[int]:
        """Whether the model is right about one photo at each step; all steps are one batch."""
        channels, height, width = example.pixels.shape[1:]
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        counts = torch.tensor([len(order) * step // 100 for step in STEPS])
        gone = (rank < counts[:, None]).view(len(STEPS), 1, height, width).to(self._device)
        batch = torch.where(gone, example.removed, example.pixels)
        assert batch.shape == (len(STEPS), channels, height, width)
        predicted = model_logits(self._classifier, batch).argmax(-1)
        return [int(one) for one in predicted == example.label]

    def summarise(self, records: Callable[[], Iterator[Record]]) -> Summary:
        """AUCs, the area between them, and the curves."""
        reference = "transformer_attribution"
        means = MethodMeans(
            self.methods, reference if reference in self.methods else None, unit="%"
        )
        accuracy = ExactMean()
        points: dict[tuple[str, str, str], list[ExactMean]] = {}
        for record in records():
            right = int(record.values["label"] == record.values["predicted"])
            accuracy.add(100.0 * right)
            means.add({name: _areas(found, right) for name, found in record.methods.items()})
            for name, found in record.methods.items():
                for explained, tests in found.items():
                    for test, steps in tests.items():
                        key = (name, test, explained)
                        curve = points.setdefault(key, [ExactMean() for _ in (0, *STEPS)])
                        for mean, bit in zip(curve, (right, *steps), strict=True):
                            mean.add(100.0 * bit)
        columns = [
            f"{metric}, {explained}"
            for explained in self._explain
            for metric in ("positive AUC", "negative AUC", "area between")
        ]
        return Summary(
            figures=(accuracy.figure(MODEL, "top-1 accuracy", unit="%"), *means.figures()),
            curves=tuple(
                Curve(
                    method=method,
                    panel=f"{test}, {explained} class",
                    x=(0.0, *map(float, STEPS)),
                    y=tuple(mean.value for mean in points[method, test, explained]),
                    standard_errors=tuple(
                        mean.standard_error for mean in points[method, test, explained]
                    ),
                    x_label="pixels removed [%]",
                    y_label="top-1 accuracy [%]",
                )
                for explained in self._explain
                for test in _TESTS
                for method in self.methods
            ),
            columns=tuple(columns),
        )


def removal_order(relevance: Tensor, test: str) -> Tensor:
    """The pixels in the order in which they are removed, of equal ones the first one first.

    Args:
        relevance: (H, W).
        test: ``"positive"``, the most relevant first, or ``"negative"``, the least relevant.

    Returns:
        Indices into the flattened map, (H·W,).

    Example:
        >>> relevance = torch.tensor([[1.0, 3.0], [3.0, 0.0]])
        >>> removal_order(relevance, "positive").tolist()
        [1, 2, 0, 3]
        >>> removal_order(relevance, "negative").tolist()
        [3, 0, 1, 2]
    """
    return relevance.flatten().sort(stable=True, descending=test == "positive").indices


def removed_pixels(pixels: Tensor, model: ImageModel, removal: Removal) -> Tensor:
    """What stands in the place of removed pixels, normalised, (1, 3, H, W)."""
    if removal == "black":
        return normalised(torch.zeros_like(pixels), model)
    if removal == "mean":
        return torch.zeros_like(pixels)
    from torchvision.transforms.functional import gaussian_blur

    sigma = min(pixels.shape[-2:]) / 20
    # Odd, and wide enough for three standard deviations to each side; the reflected border that
    # the blur needs must be narrower than the image.
    side = min(2 * int(3 * sigma) + 1, 2 * min(pixels.shape[-2:]) - 1)
    return gaussian_blur(pixels, [side, side], [sigma, sigma])


def area(values: Sequence[float], width: float = 0.1) -> float:
    """The area under a curve by the trapezoid rule, its points ``width`` apart.

    >>> round(area([100.0, 0.0, 0.0]), 6)
    5.0
    """
    return width * (sum(values) - (values[0] + values[-1]) / 2)


def _areas(found: Mapping[str, Any], right: int) -> dict[tuple[str, str], float]:
    areas: dict[tuple[str, str], float] = {}
    for explained, tests in found.items():
        for test, steps in tests.items():
            accuracy = [100.0 * bit for bit in steps]
            areas[f"{test} AUC", explained] = area(accuracy)
            areas[f"{test} AUC from 0 %", explained] = area([100.0 * right, *accuracy])
        between = areas["negative AUC", explained] - areas["positive AUC", explained]
        areas["area between", explained] = between
    return areas


def _check(name: str, found: Sequence[str], known: Sequence[str]) -> None:
    unknown = [one for one in found if one not in known]
    if unknown or not found or len(set(found)) < len(found):
        raise BenchmarkError(
            f"found {name} {', '.join(map(repr, found)) or 'nothing'}, expected "
            f"{' or '.join(map(repr, known))}"
        )
