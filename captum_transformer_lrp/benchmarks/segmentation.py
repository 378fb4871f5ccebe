"""The segmentation test: a map as a soft mask of the object (section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captum_transformer_lrp.benchmarks.errors import BenchmarkError, UnreadableExampleError
from captum_transformer_lrp.benchmarks.images import (
    evenly_spaced,
    input_size,
    model_logits,
    whole_image,
)
from captum_transformer_lrp.benchmarks.methods import PAPER, methods_by_name
from captum_transformer_lrp.benchmarks.optional import scikit_learn_metrics
from captum_transformer_lrp.benchmarks.records import Record
from captum_transformer_lrp.benchmarks.results import Result, Summary
from captum_transformer_lrp.benchmarks.runner import Benchmark, run, weights_digest
from captum_transformer_lrp.benchmarks.segmentation_data import (
    VOID,
    IntegerArray,
    SegmentationData,
    resized_mask,
    segmentation_data,
)
from captum_transformer_lrp.benchmarks.statistics import MethodMeans
from captum_transformer_lrp.models import ImageModel

Explained: TypeAlias = Literal["predicted", "target"]

# (metric, the pooled ratios that it is the mean of): a ratio's parts are named in `example_counts`.
_POOLED: Final = {
    "pixel accuracy": (("right", "scored"),),
    "mIoU": (("tp", "object_union"), ("tn", "background_union")),
}
_AVERAGED: Final = {"mAP": "ap", "pooled AP": "pooled_ap", "pointing game": "pointing"}


def segmentation(
    model: ImageModel,
    data: str | Path | SegmentationData,
    methods: Sequence[str] = PAPER,
    *,
    output: str | Path,
    explain: Explained | None = None,
    limit: int | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    show_progress: bool = False,
    so_far: bool = False,
) -> Result:
    """Compare maps with the masks of the objects.

    Photo and mask are resized to the model's input, nothing is cropped.  A map is scaled to 0 … 1;
    a pixel above the map's mean is taken for the object.  A constant map finds no object.

    Args:
        model: from :func:`~captum_transformer_lrp.models.load_image_model`, or made by hand.
        data: what :func:`~captum_transformer_lrp.benchmarks.segmentation_data.segmentation_data`
            takes or returns.
        methods: names as in :func:`~captum_transformer_lrp.benchmarks.methods.methods_by_name`.
        output: the folder for records and results; an unfinished run there goes on.
        explain: the class that the model predicts, or the object's: of the classes that mean its
            label the one with the largest logit.  By default the object's if the data tell it,
            which ``index.json`` does and ``gtsegs_ijcv.mat`` and VOC's folders do not.
        limit: at most so many examples, spread evenly over the data.
        device: where to compute.
        seed: of methods that draw random numbers.
        show_progress: whether to show a bar with the remaining time.
        so_far: only sum up what there is of an unfinished run.

    Returns:
        In per cent: ``"pixel accuracy"`` and ``"mIoU"``, the mean of the object's and the
        background's intersection over union, of all pixels of all photos together; ``"mAP"``, the
        mean over the photos of the average precision of the map for the object and of one minus
        the map for the background; ``"pooled AP"``, the same with the pixels of both ranked
        together, as the paper's published evaluation has it; ``"pointing game"``, how often the
        map's largest pixel is on the object (of several largest ones, their share).

    Raises:
        BenchmarkError: for data, methods or an output folder that do not fit.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from captum_transformer_lrp import examples
        >>> from captum_transformer_lrp.benchmarks import segmentation
        >>> from captum_transformer_lrp.benchmarks.segmentation_data import (
        ...     SegmentationData, SegmentedImage)
        >>> from captum_transformer_lrp.models import ImageModel
        >>> from PIL import Image
        >>> classifier = examples.scene_classifier()
        >>> names = tuple(classifier.class_names)
        >>> model = ImageModel(
        ...     "scenes", classifier,
        ...     lambda photo: examples.preprocess(np.array(photo.resize((96, 96)))),
        ...     names, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> class Scenes(SegmentationData):
        ...     tells_classes = True
        ...     found = examples.scenes()[:2]
        ...     def identifiers(self):
        ...         return [scene.name for scene in self.found]
        ...     def __getitem__(self, index):
        ...         scene, label = self.found[index], self.found[index].labels[0]
        ...         return SegmentedImage(Image.fromarray(scene.image),
        ...             scene.masks[label].astype(np.uint8), (names.index(label),))
        >>> with tempfile.TemporaryDirectory() as output:
        ...     result = segmentation(model, Scenes(), ["transformer_attribution", "random"],
        ...         output=output)
        >>> result.figure("transformer_attribution", "mIoU").value > 50
        True
        >>> result.figure("random", "mIoU").value > 50
        False
    """
    found = data if isinstance(data, SegmentationData) else segmentation_data(data)
    benchmark = Segmentation(model, found, methods, explain=explain, limit=limit, device=device)
    return run(benchmark, output, seed=seed, show_progress=show_progress, so_far=so_far)


@dataclass(frozen=True)
class Segmented:
    """A photo as the model sees it, with its mask.

    Args:
        pixels: normalised, (1, 3, H, W).
        mask: uint8 (H, W).
        target: the class to explain.
    """

    pixels: Tensor
    mask: IntegerArray
    target: int


class Segmentation(Benchmark[Segmented]):
    """The segmentation test as a benchmark; see :func:`segmentation` for the arguments."""

    name = "segmentation"

    def __init__(
        self,
        model: ImageModel,
        data: SegmentationData,
        methods: Sequence[str] = PAPER,
        *,
        explain: Explained | None = None,
        limit: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self._explain = explain or ("target" if data.tells_classes else "predicted")
        if self._explain not in ("predicted", "target"):
            raise BenchmarkError(f"found explain={explain!r}, expected 'predicted' or 'target'")
        if self._explain == "target" and not data.tells_classes:
            raise BenchmarkError(
                "these masks come without the model's classes, so the object's class cannot be "
                "explained: explain the predicted one"
            )
        count = len(model.class_names)
        if data.largest_class() >= count:
            raise BenchmarkError(
                f"the data have class {data.largest_class()}, but the model has {count} classes, 0 "
                f"to {count - 1}: the data and the model have different labels"
            )
        self._methods = {one.label: one for one in methods_by_name(methods)}
        self.methods = tuple(self._methods)
        self._model = model
        self._device = torch.device(device)
        self._classifier = model.model.to(self._device)
        self._data = data
        self.selected = evenly_spaced(range(len(data.identifiers())), limit)
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
            "data": type(self._data).__name__,
            "explain": self._explain,
            "device": self._device.type,
        }

    def identifiers(self) -> list[str]:
        """The examples' names."""
        return self._data.identifiers()

    def load(self, index: int) -> Segmented:
        """Read a photo with its mask and choose the class."""
        found = self._data[index]
        pixels = whole_image(found.photo, self._model, self._size)[None].to(self._device)
        mask = resized_mask(found.mask, self._size)
        if not (mask == 1).any():
            raise UnreadableExampleError("its mask has no object at the model's input size")
        logits = model_logits(self._classifier, pixels)[0]
        if self._explain == "predicted":
            return Segmented(pixels, mask, int(logits.argmax()))
        assert found.classes is not None
        return Segmented(pixels, mask, max(found.classes, key=lambda one: float(logits[one])))

    def describe(self, example: Segmented) -> dict[str, Any]:
        """The explained class."""
        return {"class": example.target}

    def evaluate(self, example: Segmented, method: str) -> dict[str, Any]:
        """How a map and the mask agree: see :func:`agreement`."""
        (one,) = self._methods[method].maps(self._classifier, example.pixels, [example.target])
        return agreement(one.numpy(), example.mask)

    def summarise(self, records: Callable[[], Iterator[Record]]) -> Summary:
        """Pooled and averaged metrics, in per cent."""
        totals: dict[str, dict[str, int]] = {}
        count = 0
        for record in records():
            count += 1
            for method, found in record.methods.items():
                total = totals.setdefault(method, {})
                for name, value in example_counts(found).items():
                    total[name] = total.get(name, 0) + value
        reference = "transformer_attribution"
        means = MethodMeans(
            self.methods, reference if reference in self.methods else None, unit="%"
        )
        for record in records():
            means.add(
                {
                    method: example_values(found, totals[method], count)
                    for method, found in record.methods.items()
                }
            )
        return Summary(figures=tuple(means.figures()))


def agreement(relevance: npt.NDArray[np.float64], mask: IntegerArray) -> dict[str, Any]:
    """How far a map and a mask agree.

    Args:
        relevance: (H, W).
        mask: uint8 (H, W): 1 object, 0 background, 255 not scored.

    Returns:
        ``tp``, ``fp``, ``fn`` and ``tn``, the numbers of pixels of the object and the background
        that are and are not above the map's mean; ``ap``, ``pooled_ap`` and ``pointing``, between
        0 and 1.

    Example:
        >>> mask = np.array([[1, 0], [0, 0]], dtype=np.uint8)
        >>> agreement(mask.astype(np.float64), mask)  # doctest: +NORMALIZE_WHITESPACE
        {'tp': 1, 'fp': 0, 'fn': 0, 'tn': 3, 'ap': 1.0, 'pooled_ap': 1.0, 'pointing': 1.0}
    """
    metrics = scikit_learn_metrics("segmentation")
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
        "tp": int(tp),
        "fp": int(fp),
        "fn": int(fn),
        "tn": int(tn),
        "ap": sum(precisions) / len(precisions),
        "pooled_ap": float(pooled),
        "pointing": float(truth[scores == scores.max()].mean()),
    }


def example_counts(found: Mapping[str, Any]) -> dict[str, int]:
    """The parts of the pooled ratios, of what :func:`agreement` found for one example."""
    tp, fp, fn, tn = (int(found[name]) for name in ("tp", "fp", "fn", "tn"))
    return {
        "tp": tp,
        "tn": tn,
        "right": tp + tn,
        "scored": tp + fp + fn + tn,
        "object_union": tp + fp + fn,
        "background_union": tn + fp + fn,
    }


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
        values[metric, ""] = 100.0 * found[name]
    return values
