"""What referees ask of a map: is it faithful, does it depend on weights and class, is it sparse?

Each metric is a small function of a map and of what made it; :class:`MapMetrics` runs any of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeAlias

import torch

from captum_transformer_lrp.benchmark_options import MetricOptions
from captum_transformer_lrp.benchmarks import faithfulness, maps, robustness, sanity
from captum_transformer_lrp.benchmarks.errors import BenchmarkError
from captum_transformer_lrp.benchmarks.images import PhotoBenchmark, read_rgb
from captum_transformer_lrp.benchmarks.maps import Map
from captum_transformer_lrp.benchmarks.methods import option_of
from captum_transformer_lrp.benchmarks.quantus import quantus_score
from captum_transformer_lrp.benchmarks.removal import without
from captum_transformer_lrp.benchmarks.runner import as_function

Metric: TypeAlias = Callable[[Map], dict[str, float]]

METRICS: Final[Mapping[str, Metric]] = {
    **{
        f"{metric.__name__}:{removal}": partial(metric, removal=removal)
        for metric in (faithfulness.deletion, faithfulness.insertion)
        for removal in ("blur", "mean", "black")
    },
    "road": faithfulness.road,
    "saco": faithfulness.salience_faithfulness,
    "infidelity": faithfulness.infidelity,
    "mprt": sanity.parameter_randomisation,
    "smprt": partial(sanity.parameter_randomisation, samples=5),
    "random_logit": sanity.random_logit,
    "class_sensitivity": sanity.class_sensitivity,
    "sensitivity": robustness.sensitivity,
    "local_lipschitz": robustness.local_lipschitz,
    "relative_stability": robustness.relative_stability,
    "sparseness": maps.sparseness,
    "entropy": maps.entropy,
}
"""All metrics of photos of our own."""


def metric_by_name(name: str, known: Mapping[str, Metric] = METRICS) -> Metric:
    """A metric from what a user types.

    That is one of :data:`METRICS` with any number of options after colons, such as
    ``"road:cells=14"``, or ``"quantus:NAME"``, a metric of Quantus.

    Example:
        >>> metric_by_name("deletion:blur:cells=14").keywords
        {'removal': 'blur', 'cells': 14}
    """
    if name.startswith("quantus:") and known is METRICS:
        return lambda found: {"": quantus_score(name, found)}
    parts = name.split(":")
    kind = ":".join(part for part in parts if "=" not in part)
    if kind not in known:
        more = ", and quantus:NAME" if known is METRICS else ""
        raise BenchmarkError(f"there is no metric {kind!r}; there are {', '.join(known)}{more}")
    given = dict(option_of(part, name) for part in parts if "=" in part)
    options = list(inspect.signature(known[kind]).parameters)[1:]
    if wrong := next((one for one in given if one not in options), None):
        has = ", ".join(options) or "none"
        raise BenchmarkError(f"{kind} has no option {wrong!r}; it has {has}")
    return partial(known[kind], **given)


def metrics_by_name(
    names: Sequence[str], known: Mapping[str, Metric] = METRICS
) -> dict[str, Metric]:
    """Metrics by their names, several of which may be in one text, with commas between them."""
    apart = [part.strip() for one in names for part in one.split(",")]
    return {one: metric_by_name(one, known) for one in apart}


@dataclass(frozen=True, eq=False)
class MapMetrics(MetricOptions, PhotoBenchmark[Map]):
    """Measure maps of photos by any of :data:`METRICS`, or of Quantus' metrics.

    The result has the mean over the photos of each metric, under its name.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from captum_transformer_lrp import examples
        >>> from captum_transformer_lrp.benchmarks import LabelledImage, map_metrics
        >>> from captum_transformer_lrp.models import load_image_model
        >>> model = load_image_model("bundled/scenes")
        >>> folder = Path(examples.__file__).parent / "assets" / "scenes"
        >>> label = model.class_names.index("horse")
        >>> photos = [LabelledImage("horse", folder / "horse.png", label)]
        >>> with tempfile.TemporaryDirectory() as output:
        ...     result = map_metrics(model, photos, ["transformer_attribution", "random"],
        ...         metrics=["deletion:blur", "sparseness"], output=output)
        >>> ours = result.figure("transformer_attribution", "deletion:blur").value
        >>> ours < result.figure("random", "deletion:blur").value
        True
    """

    name = "metrics"
    by_name: Mapping[str, Metric] = field(init=False, repr=False)

    def prepare(self) -> None:
        """Find the photos and the metrics."""
        super().prepare()
        by_name = metrics_by_name(self.metrics)
        self.put(metrics=tuple(by_name), by_name=by_name)

    def load(self, index: int) -> Map:
        """Read a photo and choose the class; the map is still to come."""
        entry = self.data[index]
        pixels = self.seen(read_rgb(entry.file))
        predicted = int(self.logits(pixels)[0].argmax())
        target = entry.label if self.explain == "target" else predicted
        method, take = next(iter(self.by_label.values())), without(pixels, self.model)
        return Map(torch.empty(0), pixels, target, self.classifier, self.logits, take, method)

    def describe(self, example: Map) -> dict[str, Any]:
        """The explained class."""
        return {"class": example.target}

    def evaluate(self, example: Map, method: str) -> dict[str, Any]:
        """Each metric, by condition."""
        chosen = self.by_label[method]
        (relevance,) = chosen.maps(self.classifier, example.pixels, [example.target])
        found = replace(example, relevance=relevance, method=chosen)
        return {name: measure(found) for name, measure in self.by_name.items()}


map_metrics = as_function(MapMetrics)
