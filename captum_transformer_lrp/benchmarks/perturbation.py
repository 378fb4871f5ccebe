"""The perturbation test: remove pixels in the order of a map and watch the accuracy (section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor

from captum_transformer_lrp.benchmark_options import PerturbationOptions
from captum_transformer_lrp.benchmarks.images import PhotoBenchmark, read_rgb
from captum_transformer_lrp.benchmarks.records import Record
from captum_transformer_lrp.benchmarks.removal import STEPS, Without, area, removed_first, without
from captum_transformer_lrp.benchmarks.results import Panel
from captum_transformer_lrp.benchmarks.runner import as_function

_TESTS = ("positive", "negative")


@dataclass(frozen=True)
class Photo:
    """Normalised pixels (1, 3, H, W), what takes some away, the true and the predicted class."""

    pixels: Tensor
    without: Without
    target: int
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

    def prepare(self) -> None:
        """Find the photos, and say what is shown."""
        super().prepare()
        shown = ("positive AUC", "negative AUC", "area between")
        titles = [f"{test}, {explained} class" for explained in self.explain for test in _TESTS]
        steps = {str(step): step for step in (0, *STEPS)}
        labels = ("pixels removed [%]", "top-1 accuracy [%]")
        self.put(
            columns=[f"{metric}, {explained}" for explained in self.explain for metric in shown],
            panels=[Panel(title, title, steps, labels) for title in titles],
        )

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
        return Photo(batch, without(batch, self.model), entry.label, predicted)

    def describe(self, example: Photo) -> dict[str, Any]:
        """The true and the predicted class."""
        return {"label": example.target, "predicted": example.predicted}

    def evaluate(self, example: Photo, method: str) -> dict[str, Any]:
        """By explained class and test, whether the model is right at each step: 0 or 1."""
        classes, chosen = vars(example), self.by_label[method]
        targets = [classes[explained] for explained in self.explain]
        maps = chosen.maps(self.classifier, example.pixels, targets)
        keys = [0] * len(targets) if chosen.class_agnostic else targets
        found = {
            key: {test: self._right(example, one, test) for test in _TESTS}
            for key, one in dict(zip(keys, maps, strict=True)).items()
        }
        return {name: found[key] for name, key in zip(self.explain, keys, strict=True)}

    def _right(self, example: Photo, relevance: Tensor, test: str) -> list[int]:
        """Whether the model is right about one photo at each step; all steps are one batch."""
        gone = removed_first(relevance, test, STEPS, self.cells)
        batch = example.without(self.removal, gone)
        return [int(one) for one in self.logits(batch).argmax(-1) == example.target]

    unit = "%"

    def of_model(self, record: Record) -> dict[str, float]:
        """The accuracy on whole photos."""
        return {"top-1 accuracy": 100.0 * (record.values["label"] == record.values["predicted"])}

    def values(self, record: Record) -> dict[str, dict[tuple[str, str], float]]:
        """AUCs, and the area between them."""
        areas: dict[str, dict[tuple[str, str], float]] = {name: {} for name in record.methods}
        for (name, accuracy), which in product(self.points(record).items(), self.explain):
            for test in _TESTS:
                title = f"{test}, {which} class"
                curve = [accuracy[title, str(step)] for step in (0, *STEPS)]
                areas[name][f"{test} AUC", which] = area(curve[1:])
                areas[name][f"{test} AUC from 0 %", which] = area(curve)
            positive, negative = (areas[name][f"{test} AUC", which] for test in _TESTS)
            areas[name]["area between", which] = negative - positive
        return areas

    def points(self, record: Record) -> dict[str, dict[tuple[str, str], float]]:
        """The accuracy at each step."""
        whole = self.of_model(record)["top-1 accuracy"]
        return {
            name: {
                (f"{test}, {which} class", str(step)): accuracy
                for which, test in product(self.explain, _TESTS)
                for step, accuracy in zip(
                    (0, *STEPS), [whole, *(100.0 * bit for bit in found[which][test])], strict=True
                )
            }
            for name, found in record.methods.items()
        }


perturbation = as_function(Perturbation)
