"""The metrics of photos' maps that have a meaning for texts: what goes are tokens, by masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from captum_transformer_lrp.benchmark_options import TextMetricOptions
from captum_transformer_lrp.benchmarks.annotated_texts import ReadDocument, TextBenchmark
from captum_transformer_lrp.benchmarks.complexity import entropy, sparseness
from captum_transformer_lrp.benchmarks.corpus_tokens import EncodedTokens, mask_id, token_scores
from captum_transformer_lrp.benchmarks.faithfulness import (
    deletion,
    insertion,
    salience_faithfulness,
)
from captum_transformer_lrp.benchmarks.maps import Map
from captum_transformer_lrp.benchmarks.metrics import metrics_by_name
from captum_transformer_lrp.benchmarks.records import Record
from captum_transformer_lrp.benchmarks.runner import as_function
from captum_transformer_lrp.benchmarks.sanity import (
    class_sensitivity,
    parameter_randomisation,
    random_logit,
)

TEXT_METRICS: Final[Mapping[str, Callable[[Map], dict[str, float]]]] = {
    "deletion": partial(deletion, removal="mask"),
    "insertion": partial(insertion, removal="mask"),
    "saco": partial(salience_faithfulness, removal="mask"),
    "mprt": parameter_randomisation,
    "random_logit": random_logit,
    "class_sensitivity": class_sensitivity,
    "sparseness": sparseness,
    "entropy": entropy,
}
"""All metrics of texts.  Noise on ids has no meaning, so nothing smooths or asks for robustness."""


@dataclass(frozen=True)
class TokenMap(Map):
    """A map of the tokens of a text that are read, (1, T).

    Args:
        encoded: the text.
        fusion: how the attributions of a token's pieces become one.
    """

    encoded: EncodedTokens
    fusion: str

    def again(
        self,
        target: int | None = None,
        model: nn.Module | None = None,
    ) -> Tensor:
        """The map of another class or of another model."""
        chosen = self.target if target is None else target
        keywords = dict(self.encoded.keywords)
        (one,) = self.method.maps(model or self.model, self.pixels, [chosen], keywords)
        scores = token_scores(self.encoded, one, self.fusion)[list(self.encoded.read)]
        return torch.from_numpy(scores)[None]


def masked(encoded: EncodedTokens, mask: int, gone: Tensor) -> Tensor:
    """The ids (N, S) of a text with each piece of some tokens replaced by the id of a mask.

    Args:
        encoded: the text; special tokens stay.
        mask: the id.
        gone: which of the tokens that are read, boolean (N, 1, 1, T).

    Example:
        >>> encoded = EncodedTokens(torch.tensor([[101, 7, 8, 9, 102]]), {}, ((1,), (2, 3)))
        >>> masked(encoded, 103, torch.tensor([[[[True, False]]], [[[False, True]]]])).tolist()
        [[101, 103, 8, 9, 102], [101, 7, 103, 103, 102]]
    """
    pieces = torch.zeros(len(encoded.read), encoded.input_ids.shape[1])
    for row, token in zip(pieces, encoded.read, strict=True):
        row[list(encoded.pieces[token])] = 1
    away = (gone.flatten(1).float().cpu() @ pieces > 0).to(encoded.input_ids.device)
    return encoded.input_ids.masked_fill(away, mask)


@dataclass(frozen=True, eq=False)
class TextMetrics(TextMetricOptions, TextBenchmark):
    """Measure maps of texts by any of :data:`TEXT_METRICS`.

    The relevance of a token of the corpus is that of its pieces; tokens that go are masked.  The
    result has the mean over the documents of each metric, under its name and the explained class.
    """

    name = "text-metrics"
    mask: int = field(init=False, repr=False)
    by_name: Mapping[str, Callable[[Map], dict[str, float]]] = field(init=False, repr=False)

    def prepare(self) -> None:
        """Find the documents and the metrics, and see whether tokens can be masked."""
        by_name = metrics_by_name(self.metrics, TEXT_METRICS)
        mask = mask_id(self.model, "mask")
        super().prepare()
        self.put(mask=mask, metrics=tuple(by_name), by_name=by_name)

    def evaluate(self, example: ReadDocument, method: str) -> dict[str, Any]:
        """For each explained class each metric, by condition."""
        classes = [example.explained(which) for which in self.explain]
        found = {one: self._measured(example, method, one) for one in dict.fromkeys(classes)}
        return {which: found[one] for which, one in zip(self.explain, classes, strict=True)}

    def _measured(self, example: ReadDocument, method: str, target: int) -> dict[str, Any]:
        encoded = example.encoded

        def logits(batch: Tensor) -> Tensor:
            size = (len(batch), -1)
            keywords = {name: one.expand(*size) for name, one in encoded.keywords.items()}
            with torch.no_grad():
                output: Any = self.classifier(batch, **keywords)
            found: Tensor = output.logits
            return found

        empty = TokenMap(
            torch.empty(0),
            encoded.input_ids,
            target,
            self.classifier,
            logits,
            lambda removal, gone: masked(encoded, self.mask, gone),
            self.by_label[method],
            encoded,
            self.fusion,
        )
        found = TokenMap(**{**vars(empty), "relevance": empty.again()})
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
