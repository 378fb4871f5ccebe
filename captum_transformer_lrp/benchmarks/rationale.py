"""Do the highest-ranked tokens agree with what people marked?  The paper's figure 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np

from captum_transformer_lrp.benchmark_options import RationaleOptions
from captum_transformer_lrp.benchmarks.annotated_texts import OrderBenchmark, ReadDocument, at_steps
from captum_transformer_lrp.benchmarks.eraser import AnnotatedDocument, AnnotationError
from captum_transformer_lrp.benchmarks.errors import optional
from captum_transformer_lrp.benchmarks.records import Record
from captum_transformer_lrp.benchmarks.results import Panel
from captum_transformer_lrp.benchmarks.runner import as_function

BEST_POSSIBLE: Final = "(best possible)"
RANDOM_ORDER: Final = "(random order)"
LAST_TOKENS: Final = "(last tokens read)"
CONTROLS: Final = (RANDOM_ORDER, LAST_TOKENS, BEST_POSSIBLE)
"""What a random order of the tokens is expected to reach, what the end of the text does, where
reviewers sum up, and what no order can exceed."""

_METRICS: Final = ("precision", "recall", "token-F1")


@dataclass(frozen=True, eq=False)
class RationaleBenchmark(RationaleOptions, OrderBenchmark):
    r"""Token-F1 between a document's k highest-ranked tokens and the tokens that people marked.

    As in the paper, what is explained is the document's own class ("target").  The tokens are the
    corpus'; of a token's pieces the attributions are summed up.  Only tokens that the classifier
    reads can be selected, but the rationale is that of the whole document: marked tokens beyond the
    cut are missed by every method.  A document without any marked token is left out by name.  The
    result has three more rows, :data:`CONTROLS`.

    Example:
        >>> import json, pathlib, tempfile
        >>> from captum_transformer_lrp.models import load_text_model
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> (folder / "docs").mkdir()
        >>> for name, text in {"a": "a dull , tired film .", "b": "a witty , warm film ."}.items():
        ...     _ = (folder / "docs" / name).write_text(text)
        >>> lines = [
        ...     {"annotation_id": name, "classification": label,
        ...      "evidences": [[{"docid": name, "start_token": 1, "end_token": 4}]]}
        ...     for name, label in (("a", "NEGATIVE"), ("b", "POSITIVE"))]
        >>> _ = (folder / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
        >>> model = load_text_model("bundled/sentiment")
        >>> result = rationale(model, folder, ["random"], top_k=[2], output=folder / "results")
        >>> result.figure("(best possible)", "token-F1", "target, k=2").value
        80.0
    """

    name = "rationale"

    def prepare(self) -> None:
        """Put k in order, and say what is shown."""
        super().prepare()
        top_k, (first, *_) = tuple(sorted(self.top_k)), self.explain
        of_k = [f"token-F1, {first}, k={k}" for k in top_k]
        x = {which: {f"{which}, k={k}": k for k in top_k} for which in self.explain}
        labels = ("k, tokens selected", "token-F1 [%]")
        self.put(
            top_k=top_k,
            columns=[*of_k, *(f"token-F1, {which}, mean over k" for which in self.explain)],
            panels=[Panel(f"explained: {w} class", "token-F1", x[w], labels) for w in self.explain],
        )

    def check(self, document: AnnotatedDocument) -> None:
        """Raise for a document without a rationale."""
        if not document.rationale:
            raise AnnotationError(
                f"{document.name} in {self.data.file.name}: no token is marked, so there is no F1"
            )

    def describe(self, example: ReadDocument) -> dict[str, Any]:
        """The classes, and how many tokens there are, are read, and are marked."""
        marked = set(example.document.rationale)
        return {
            **super().describe(example),
            "rationale": len(marked),
            "rationale_read": len(marked & set(example.encoded.read)),
            "rationale_in_last": [len(marked & set(example.encoded.read[-k:])) for k in self.top_k],
        }

    def measure(self, example: ReadDocument, order: Sequence[int], target: int) -> dict[str, Any]:
        """Precision, recall and F1 of the first k tokens, for each k."""
        metrics = optional("sklearn.metrics", "scikit-learn", "the rationale benchmark")
        places = np.arange(len(example.document.tokens))
        marked = np.isin(places, example.document.rationale)
        of = {"average": "binary", "zero_division": 0.0}
        at_k = [
            metrics.precision_recall_fscore_support(marked, np.isin(places, order[:k]), **of)[:3]
            for k in self.top_k
        ]
        by_metric = zip(_METRICS, zip(*at_k, strict=True), strict=True)
        return {metric: list(map(float, found)) for metric, found in by_metric}

    rows = CONTROLS
    unit = "%"

    def values(self, record: Record) -> dict[str, dict[tuple[str, str], float]]:
        """Each metric at each k and over all k, in per cent; of :data:`CONTROLS`, too."""
        steps = {f"k={k}": k for k in self.top_k}
        controls = {
            name: dict.fromkeys(self.explain, found)
            for name, found in _controls(record.values, self.top_k).items()
        }
        figures: dict[str, dict[tuple[str, str], float]] = {}
        methods: dict[str, Any] = {**record.methods, **controls}
        for method, found in methods.items():
            figures[method] = {}
            for which, metric in product(found, _METRICS):
                percent = [100.0 * one for one in found[which][metric]]
                figures[method] |= at_steps(percent, steps, which, metric, "mean over k")
        return figures


rationale = as_function(RationaleBenchmark)


def _controls(values: Mapping[str, Any], top_k: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """The metrics of the rows that need no map."""
    read, marked, within = values["read"], values["rationale"], values["rationale_read"]
    selected = [min(k, read) for k in top_k]
    hits: dict[str, Sequence[float]] = {
        RANDOM_ORDER: [one * within / read for one in selected],
        LAST_TOKENS: values["rationale_in_last"],
        BEST_POSSIBLE: [min(one, within) for one in selected],
    }
    # The sizes are fixed, so precision, recall and F1 are linear in the hits.
    sizes = (selected, [marked] * len(selected), [(one + marked) / 2 for one in selected])
    return {
        name: {
            metric: [hit / one for hit, one in zip(found, size, strict=True)]
            for metric, size in zip(_METRICS, sizes, strict=True)
        }
        for name, found in hits.items()
    }
