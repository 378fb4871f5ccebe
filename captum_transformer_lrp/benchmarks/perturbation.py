"""The perturbation test: remove pixels in the order of a map and watch the accuracy (section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from captum_transformer_lrp.benchmark_options import PerturbationOptions
from captum_transformer_lrp.benchmarks.images import PhotoBenchmark, normalised, read_rgb
from captum_transformer_lrp.benchmarks.records import Record
from captum_transformer_lrp.benchmarks.results import MODEL, Curve, Summary
from captum_transformer_lrp.benchmarks.runner import as_function
from captum_transformer_lrp.benchmarks.statistics import ExactMean
from captum_transformer_lrp.models import ImageModel

STEPS: Final = (10, 20, 30, 40, 50, 60, 70, 80, 90)
"""The shares of the pixels that are removed, in per cent."""

_TESTS = ("positive", "negative")


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


@dataclass(frozen=True, eq=False)
class Perturbation(PerturbationOptions, PhotoBenchmark[Photo]):
    """Remove 10 to 90 % of the pixels in a map's order and measure the top-1 accuracy.

    In the *positive* test the most relevant pixels go first, so a good map makes the accuracy fall
    quickly and the area under the curve (AUC) is small; in the *negative* test the least relevant
    go first, and a large area is good.  Accuracy is against the true class, whichever class is
    explained.  Of pixels with equal relevance the one that comes first in the image goes first.

    In per cent, with ``condition`` the explained class, the result has ``"positive AUC"``,
    ``"negative AUC"`` by the trapezoid rule over 10 to 90 % (at most 80) and their difference,
    ``"area between"`` (also called LeRF − MoRF); and both AUCs ``"from 0 %"``, with the accuracy on
    whole photos as first point (at most 90), which is what the paper's published tables hold.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from captum_transformer_lrp import examples
        >>> from captum_transformer_lrp.benchmarks import LabelledImage, perturbation
        >>> from captum_transformer_lrp.models import load_image_model
        >>> model = load_image_model("bundled/scenes")
        >>> folder = Path(examples.__file__).parent / "assets" / "scenes"
        >>> photos = [LabelledImage(name, folder / f"{name}.png", model.class_names.index(name))
        ...     for name in ("butterfly", "horse")]
        >>> with tempfile.TemporaryDirectory() as output:
        ...     result = perturbation(model, photos, ["transformer_attribution", "random"],
        ...         output=output, explain=["predicted"])
        >>> figure = result.figure("transformer_attribution", "negative AUC", "predicted")
        >>> figure.value > result.figure("random", "negative AUC", "predicted").value
        True
    """

    name = "perturbation"

    def settings(self) -> dict[str, Any]:
        """Everything that the records depend on."""
        return {**super().settings(), "steps": STEPS}

    def load(self, index: int) -> Photo:
        """Read a photo and let the model classify it."""
        entry = self.data[index]
        image = read_rgb(entry.file)
        whole = self.resize == "whole"
        batch = self.seen(image) if whole else self.model.preprocess(image)[None].to(self.device)
        predicted = int(self.logits(batch)[0].argmax())
        removed = removed_pixels(batch, self.model, self.removal)
        return Photo(batch, removed, entry.label, predicted)

    def describe(self, example: Photo) -> dict[str, Any]:
        """The true and the predicted class."""
        return {"label": example.label, "predicted": example.predicted}

    def evaluate(self, example: Photo, method: str) -> dict[str, Any]:
        """By explained class and test, whether the model is right at each step: 0 or 1."""
        classes = {"predicted": example.predicted, "target": example.label}
        targets = [classes[explained] for explained in self.explain]
        maps = self.by_label[method].maps(self.classifier, example.pixels, targets)
        known: dict[int, dict[str, list[int]]] = {}
        for target, one in zip(targets, maps, strict=True):
            key = 0 if self.by_label[method].class_agnostic else target
            if key not in known:
                known[key] = {
                    test: self._right(example, removal_order(one, test)) for test in _TESTS
                }
            known[target] = known[key]
        return {name: known[target] for name, target in zip(self.explain, targets, strict=True)}

    def _right(self, example: Photo, order: Tensor) -> list[int]:
        """Whether the model is right about one photo at each step; all steps are one batch."""
        counts = [len(order) * step // 100 for step in STEPS]
        batch = changed(example.pixels, example.removed, order, counts)
        return [int(one) for one in self.logits(batch).argmax(-1) == example.label]

    def summarise(self, records: Callable[[], Iterator[Record]]) -> Summary:
        """AUCs, the area between them, and the curves."""
        means, points = self.means(), self.means()
        accuracy = ExactMean()
        for record in records():
            right = int(record.values["label"] == record.values["predicted"])
            accuracy.add(100.0 * right)
            means.add({name: _areas(found, right) for name, found in record.methods.items()})
            points.add({name: _points(found, right) for name, found in record.methods.items()})
        at = {(one.method, one.metric, one.condition): one for one in points.figures()}
        columns = [
            f"{metric}, {explained}"
            for explained in self.explain
            for metric in ("positive AUC", "negative AUC", "area between")
        ]
        curves = [
            Curve.of(
                [at[method, f"{test}, {explained} class", str(step)] for step in (0, *STEPS)],
                f"{test}, {explained} class",
                (0, *STEPS),
                "pixels removed [%]",
                "top-1 accuracy [%]",
            )
            for explained in self.explain
            for test in _TESTS
            for method in self.methods
        ]
        model = accuracy.figure(MODEL, "top-1 accuracy")
        return Summary((model, *means.figures()), tuple(curves), tuple(columns))


perturbation = as_function(Perturbation)


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


def changed(start: Tensor, end: Tensor, order: Tensor, counts: Sequence[int]) -> Tensor:
    """A batch of the image ``start`` with so many of its pixels, in their order, from ``end``."""
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    gone = (rank < torch.tensor(counts)[:, None]).view(-1, 1, *start.shape[2:]).to(start.device)
    return torch.where(gone, end, start)


def removed_pixels(pixels: Tensor, model: ImageModel, removal: str) -> Tensor:
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


def _points(found: Mapping[str, Any], right: int) -> dict[tuple[str, str], float]:
    return {
        (f"{test}, {explained} class", str(step)): 100.0 * bit
        for explained, tests in found.items()
        for test, steps in tests.items()
        for step, bit in zip((0, *STEPS), (right, *steps), strict=True)
    }
