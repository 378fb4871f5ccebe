"""The segmentation test: a map as a soft mask of the object (section 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from captum_transformer_lrp.benchmark_options import SegmentationOptions
from captum_transformer_lrp.benchmarks.errors import (
    BenchmarkError,
    UnreadableExampleError,
    optional,
)
from captum_transformer_lrp.benchmarks.images import ImageBenchmark
from captum_transformer_lrp.benchmarks.records import Record
from captum_transformer_lrp.benchmarks.results import Summary
from captum_transformer_lrp.benchmarks.runner import as_function
from captum_transformer_lrp.benchmarks.segmentation_data import (
    VOID,
    IntegerArray,
    SegmentationData,
    resized_mask,
    segmentation_data,
)
from captum_transformer_lrp.benchmarks.statistics import MethodMeans

# (metric, the pooled ratios that it is the mean of): a ratio's parts are named in `example_counts`.
_POOLED: Final = {
    "pixel accuracy": (("right", "scored"),),
    "mIoU": (("tp", "object_union"), ("tn", "background_union")),
}
_AVERAGED: Final = {
    "mAP": "ap",
    "pooled AP": "pooled_ap",
    "pointing game": "pointing",
    "relevance mass": "mass",
    "relevance rank": "rank",
}


@dataclass(frozen=True)
class Segmented:
    """Normalised pixels (1, 3, H, W), their mask, uint8 (H, W), and the class to explain."""

    pixels: Tensor
    mask: IntegerArray
    target: int


@dataclass(frozen=True, eq=False)
class Segmentation(SegmentationOptions, ImageBenchmark[Segmented]):
    """Compare maps with the masks of the objects.

    Photo and mask are resized to the model's input, nothing is cropped.  A map is scaled to 0 … 1;
    a pixel above the map's mean is taken for the object.  A constant map finds no object.  ``data``
    is what :func:`~captum_transformer_lrp.benchmarks.segmentation_data.segmentation_data` takes or
    returns.  Of an object's classes the one with the largest logit is explained.

    In per cent the result has ``"pixel accuracy"`` and ``"mIoU"``, the mean of the object's and the
    background's intersection over union, of all pixels of all photos together; ``"mAP"``, the mean
    over the photos of the average precision of the map for the object and of one minus the map for
    the background; ``"pooled AP"``, the same with the pixels of both ranked together, as the
    paper's published evaluation has it; ``"pointing game"``, how often the map's largest pixel is
    on the object (of several largest ones, their share); ``"relevance mass"`` and ``"relevance
    rank"``, the shares on the object of the positive relevance and of as many largest pixels as it
    has.
    """

    name = "segmentation"

    def prepare(self) -> None:
        """Find the data, and whether they tell the class."""
        super().prepare()
        given = isinstance(self.data, SegmentationData)
        data = self.data if given else segmentation_data(self.data)
        explain = self.explain or ("predicted" if data.classes is None else "target")
        if explain == "target" and data.classes is None:
            raise BenchmarkError(
                "these masks come without the model's classes, so the object's class cannot be "
                "explained: explain the predicted one"
            )
        count, largest = len(self.model.class_names), max(map(max, data.classes or [(-1,)]))
        if largest >= count:
            raise BenchmarkError(
                f"the data have class {largest}, but the model has {count} classes, 0 to "
                f"{count - 1}: the data and the model have different labels"
            )
        self.put(data=data, explain=explain)

    def settings(self) -> dict[str, Any]:
        """Everything that the records depend on."""
        return {**super().settings(), "data": self.data.name}

    def identifiers(self) -> list[str]:
        """The examples' names."""
        return list(self.data.identifiers)

    def contents(self, index: int) -> str:
        """Of the photo, the mask and the classes."""
        return str(self.data.sha256(index))

    def load(self, index: int) -> Segmented:
        """Read a photo with its mask and choose the class."""
        photo, mask = self.data[index]
        pixels, mask = self.seen(photo), resized_mask(mask, self.size)
        if not (mask == 1).any():
            raise UnreadableExampleError("its mask has no object at the model's input size")
        logits = self.logits(pixels)[0]
        classes = self.data.classes[index] if self.explain == "target" else range(len(logits))
        return Segmented(pixels, mask, max(classes, key=lambda one: float(logits[one])))

    def describe(self, example: Segmented) -> dict[str, Any]:
        """The explained class."""
        return {"class": example.target}

    def evaluate(self, example: Segmented, method: str) -> dict[str, Any]:
        """How a map and the mask agree: see :func:`agreement`."""
        (one,) = self.by_label[method].maps(self.classifier, example.pixels, [example.target])
        return agreement(one.numpy(), example.mask)

    def summarise(self, records: Callable[[], Iterator[Record]]) -> Summary:
        """Pooled and averaged metrics, in per cent."""
        totals: dict[str, Counter[str]] = {method: Counter() for method in self.methods}
        count = 0
        for record in records():
            count += 1
            for method, found in record.methods.items():
                totals[method].update(example_counts(found))
        means = MethodMeans(self.methods, unit="%")
        for record in records():
            found_of = record.methods.items()
            means.add({of: example_values(one, totals[of], count) for of, one in found_of})
        return Summary(tuple(means.figures()))


segmentation = as_function(Segmentation)


def agreement(relevance: npt.NDArray[np.float64], mask: IntegerArray) -> dict[str, Any]:
    """How far a map (H, W) and a mask agree: 1 object, 0 background, 255 not scored.

    ``tp``, ``fp``, ``fn`` and ``tn`` are the numbers of pixels of the object and the background
    that are and are not above the map's mean; the others are between 0 and 1.

    Example:
        >>> mask = np.array([[1, 0], [0, 0]], dtype=np.uint8)
        >>> agreement(mask.astype(np.float64), mask)  # doctest: +NORMALIZE_WHITESPACE
        {'tp': 1, 'fp': 0, 'fn': 0, 'tn': 3, 'ap': 1.0, 'pooled_ap': 1.0, 'pointing': 1.0,
         'mass': 1.0, 'rank': 1.0}
    """
    metrics = optional("sklearn.metrics", "scikit-learn", "the segmentation benchmark")
    low, high = relevance.min(), relevance.max()
    scaled = (relevance - low) / (high - low) if high > low else np.zeros_like(relevance)
    above = scaled > scaled.mean()
    scored = mask != VOID
    truth, found, scores = mask[scored] == 1, above[scored], scaled[scored]
    (tn, fp), (fn, tp) = metrics.confusion_matrix(truth, found, labels=[False, True])
    precisions = [
        float(metrics.average_precision_score(side, of_side))
        for side, of_side in ((truth, scores), (~truth, 1 - scores))
        if side.any()  # an object that fills the photo leaves no background to rank
    ]
    pooled = metrics.average_precision_score(
        np.concatenate([truth, ~truth]), np.concatenate([scores, 1 - scores])
    )
    return {
        **{"tp": int(tp), "fp": int(fp), "fn": int(fn), "tn": int(tn)},
        "ap": sum(precisions) / len(precisions),
        "pooled_ap": float(pooled),
        **placed(relevance[scored], truth),
    }


def placed(values: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Whether the largest value is in the right place; of several largest ones, the share that is.

    And the shares in that place of the positive relevance, and of as many largest values as it has.
    """
    return {
        "pointing": float(truth[values == values.max()].mean()),
        "mass": relevance_mass(values, truth),
        "rank": relevance_rank(values, truth),
    }


def relevance_mass(values: npt.NDArray[np.float64], truth: Any) -> float:
    """The share of the positive relevance in a place, a mask or slices; 0 if there is none.

    Arras, Osman, Samek, *CLEVR-XAI*, Information Fusion 2022, as is the next.

    >>> relevance_mass(np.array([3.0, -5.0, 1.0]), np.array([True, False, False]))
    0.75
    """
    positive = values.clip(min=0)
    total = positive.sum()
    return float(positive[truth].sum() / total) if total else 0.0


def relevance_rank(values: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_]) -> float:
    """The share on the object of the k largest values, k being the object's size.

    Of several equal ones at the end, the share that a random choice is expected to hit.

    >>> relevance_rank(np.array([3.0, 2.0, 1.0, 1.0]), np.array([True, False, True, True]))
    0.666...
    """
    size = int(truth.sum())
    last = np.sort(values)[-size]
    above, equal = values > last, values == last
    return float(truth[above].sum() + (size - above.sum()) * truth[equal].mean()) / size


def example_counts(found: Mapping[str, Any]) -> dict[str, int]:
    """The parts of the pooled ratios, of what :func:`agreement` found for one example."""
    tp, fp, fn, tn = (int(found[name]) for name in ("tp", "fp", "fn", "tn"))
    wrong = fp + fn
    unions = {"object_union": tp + wrong, "background_union": tn + wrong}
    return {"tp": tp, "tn": tn, "right": tp + tn, "scored": tp + tn + wrong, **unions}


def example_values(
    found: Mapping[str, Any], totals: Mapping[str, int], count: int
) -> dict[tuple[str, str], float]:
    """One example's part in each metric, in per cent.

    A pooled ratio r = Σy/Σx is no mean of the examples' ratios.  To first order it is the mean of
    r + (y − r·x)/x̄, whose standard error is the usual one of a ratio estimator.
    """
    counts = example_counts(found)
    values = {}
    for metric, ratios in _POOLED.items():
        parts = []
        for over, under in ratios:
            if not totals[under]:
                continue  # a union of nothing with nothing: there is no such class
            ratio = Fraction(totals[over], totals[under])
            mean = Fraction(totals[under], count)
            parts.append(ratio + (counts[over] - ratio * counts[under]) / mean)
        values[metric, ""] = float(100 * sum(parts, Fraction(0)) / len(parts))
    for metric, name in _AVERAGED.items():
        if name in found:
            values[metric, ""] = 100.0 * found[name]
    return values
