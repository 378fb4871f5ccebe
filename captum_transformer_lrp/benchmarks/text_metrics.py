"""The metrics of photos' maps that have a meaning for texts: what goes are tokens, by masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from captum_transformer_lrp.benchmark_options import TextMetricOptions
from captum_transformer_lrp.benchmarks import faithfulness
from captum_transformer_lrp.benchmarks.annotated_texts import ReadDocument, Scores, TextBenchmark
from captum_transformer_lrp.benchmarks.corpus_tokens import mask_id, without_tokens
from captum_transformer_lrp.benchmarks.maps import Map
from captum_transformer_lrp.benchmarks.methods import Method
from captum_transformer_lrp.benchmarks.metrics import METRICS, Metric, metrics_by_name
from captum_transformer_lrp.benchmarks.records import Record
from captum_transformer_lrp.benchmarks.runner import as_function

TEXT_METRICS: Final[Mapping[str, Metric]] = {
    "deletion": partial(faithfulness.deletion, removal="mask"),
    "insertion": partial(faithfulness.insertion, removal="mask"),
    "saco": partial(faithfulness.salience_faithfulness, removal="mask"),
    **{
        name: METRICS[name]
        for name in ("mprt", "random_logit", "class_sensitivity", "sparseness", "entropy")
    },
}
"""All metrics of texts.  Noise on ids has no meaning, so nothing smooths or asks for robustness."""


@dataclass(frozen=True, eq=False)
class TextMetrics(TextMetricOptions, TextBenchmark):
    """Measure maps of texts by any of :data:`TEXT_METRICS`.

    The relevance of a token of the corpus is that of its pieces; tokens that go are masked.  The
    result has the mean over the documents of each metric, under its name and the explained class.
    """

    name = "text-metrics"
    mask: int = field(init=False, repr=False)
    by_name: Mapping[str, Metric] = field(init=False, repr=False)

    def prepare(self) -> None:
        """Find the documents and the metrics, and see whether tokens can be masked."""
        by_name = metrics_by_name(self.metrics, TEXT_METRICS)
        mask = mask_id(self.model, "mask")
        super().prepare()
        self.put(mask=mask, metrics=tuple(by_name), by_name=by_name)

    def of_class(
        self, example: ReadDocument, method: Method, target: int, scores: Scores
    ) -> dict[str, Any]:
        """Each metric of a class' map, by condition."""
        encoded = example.encoded

        def masked(_: str, gone: Tensor) -> Tensor:
            places = [[encoded.read[one] for one in row.nonzero()] for row in gone.flatten(1)]
            return torch.cat([without_tokens(encoded, one, self.mask)[0] for one in places])

        def logits(batch: Tensor) -> Tensor:
            same = {name: one.expand(len(batch), -1) for name, one in encoded.keywords.items()}
            return self.logits(batch, **same)

        def as_map(scores: Scores) -> Tensor:
            return torch.from_numpy(scores[list(encoded.read)])[None]

        def mapped(target: int, model: nn.Module) -> Tensor:
            return as_map(self.scores(example, method, [target], model)[0])

        known = as_map(scores), encoded.input_ids, target, self.classifier
        found = Map(*known, logits, masked, method, mapped)
        return {name: measure(found) for name, measure in self.by_name.items()}

    def values(self, record: Record) -> dict[str, dict[tuple[str, str], float]]:
        """Each metric, by the explained class and the metric's own condition."""
        return {
            method: {
                (name, ", ".join(filter(None, (which, condition)))): value
                for which, of_class in found.items()
                for name, of_metric in of_class.items()
                for condition, value in of_metric.items()
            }
            for method, found in record.methods.items()
        }


text_metrics = as_function(TextMetrics)
