"""Do the highest-ranked tokens agree with what people marked?  The paper's figure 4."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from captum_transformer_lrp.benchmarks.annotated_texts import (
    MAX_LENGTH,
    ReadDocument,
    TextBenchmark,
)
from captum_transformer_lrp.benchmarks.curves import Curve
from captum_transformer_lrp.benchmarks.eraser import (
    AnnotatedDocument,
    AnnotationError,
    EraserDocuments,
)
from captum_transformer_lrp.benchmarks.errors import BenchmarkError
from captum_transformer_lrp.benchmarks.optional import scikit_learn_metrics
from captum_transformer_lrp.benchmarks.records import Record
from captum_transformer_lrp.benchmarks.results import MODEL, Figure, Result, Summary
from captum_transformer_lrp.benchmarks.runner import run
from captum_transformer_lrp.benchmarks.statistics import ExactMean, MethodMeans
from captum_transformer_lrp.models import TextModel

TOP_K: Final = (10, 20, 30, 40, 50, 60, 70, 80)
"""How many tokens count as the rationale (section 4 of the paper)."""

BEST_POSSIBLE: Final = "(best possible)"
RANDOM_ORDER: Final = "(random order)"
LAST_TOKENS: Final = "(last tokens read)"
CONTROLS: Final = (RANDOM_ORDER, LAST_TOKENS, BEST_POSSIBLE)
"""What a random order of the tokens is expected to reach, what the end of the text does, where
reviewers sum up, and what no order can exceed."""

_METRICS: Final = ("precision", "recall", "token-F1")


def rationale(
    model: TextModel,
    data: str | Path,
    methods: Sequence[str] = ("paper",),
    *,
    output: str | Path,
    split: str = "test",
    top_k: Sequence[int] = TOP_K,
    explain: Sequence[str] = ("target",),
    fusion: str = "sum",
    labels: Mapping[str, str] | None = None,
    max_length: int = MAX_LENGTH,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    show_progress: bool = False,
    so_far: bool = False,
) -> Result:
    r"""Measure the agreement of methods with human rationales, as the paper's figure 4 does.

    Args:
        model: what is explained, from :func:`~captum_transformer_lrp.models.load_text_model`.
        data: a folder in the format of ERASER (see
            :mod:`~captum_transformer_lrp.benchmarks.eraser`).
        methods: names, as in :func:`~captum_transformer_lrp.benchmarks.methods.methods_by_name`.
        output: the folder of records and results; a run that was stopped goes on there.
        split: of the corpus.
        top_k: as in :class:`RationaleBenchmark`, and so are the other arguments.
        explain: which class.
        fusion: of a token's pieces.
        labels: the classifier's names for the corpus' classes, where they differ.
        max_length: in pieces.
        limit: at most so many documents, spread over all.
        device: where to compute.
        seed: of methods that draw random numbers.
        show_progress: whether to show a bar with the remaining time.
        so_far: only sum up what there is of an unfinished run.

    Raises:
        BenchmarkError: for data, settings or an output folder that do not fit.

    Example:
        >>> import json, pathlib, tempfile
        >>> from captum_transformer_lrp.examples import sentiment_classifier
        >>> from captum_transformer_lrp.models import TextModel
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> (folder / "docs").mkdir()
        >>> for name, text in {"a": "a dull , tired film .", "b": "a witty , warm film ."}.items():
        ...     _ = (folder / "docs" / name).write_text(text)
        >>> lines = [
        ...     {"annotation_id": name, "classification": label,
        ...      "evidences": [[{"docid": name, "start_token": 1, "end_token": 4}]]}
        ...     for name, label in (("a", "NEGATIVE"), ("b", "POSITIVE"))]
        >>> _ = (folder / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
        >>> classifier, tokenizer = sentiment_classifier()
        >>> model = TextModel("bundled", classifier, tokenizer, ("NEGATIVE", "POSITIVE"))
        >>> result = rationale(model, folder, ["random"], top_k=[2], output=folder / "results")
        >>> result.figure("(best possible)", "token-F1", "target, k=2").value
        80.0
    """
    benchmark = RationaleBenchmark(
        model,
        EraserDocuments(data, split),
        methods,
        top_k=top_k,
        explain=explain,
        fusion=fusion,
        labels=labels,
        max_length=max_length,
        limit=limit,
        device=device,
    )
    return run(benchmark, output, seed=seed, show_progress=show_progress, so_far=so_far)


class RationaleBenchmark(TextBenchmark):
    """Token-F1 between a document's k highest-ranked tokens and the tokens that people marked.

    As in the paper, what is explained is the document's own class ("target").  The tokens are the
    corpus'; of a token's pieces the attributions are summed up.  Only tokens that the classifier
    reads can be selected, but the rationale is that of the whole document: marked tokens beyond the
    cut are missed by every method.  The result has three more rows, :data:`CONTROLS`.

    Args:
        classifier: what is explained.
        documents: the annotated documents; one without any marked token is left out by name.
        methods: as in :func:`~captum_transformer_lrp.benchmarks.methods.methods_by_name`.
        top_k: how many tokens are selected.
        explain: ``"target"``, ``"predicted"``, or both.
        fusion: how a token's pieces become one score: ``"sum"``, ``"max"`` or ``"mean"``.
        labels: for a class of the corpus, the name that the classifier has for it.
        max_length: the most pieces that the classifier is given; fewer if it reads fewer.
        limit: how many documents are used, spread over all; None for all.
        device: where to compute.

    Raises:
        BenchmarkError: for settings that do not fit, and where classifier and corpus have different
            classes.
    """

    name = "rationale"

    def __init__(
        self,
        classifier: TextModel,
        documents: EraserDocuments,
        methods: Sequence[str] = ("paper",),
        *,
        top_k: Sequence[int] = TOP_K,
        explain: Sequence[str] = ("target",),
        fusion: str = "sum",
        labels: Mapping[str, str] | None = None,
        max_length: int = MAX_LENGTH,
        limit: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            classifier,
            documents,
            methods,
            explain=explain,
            fusion=fusion,
            labels=labels,
            max_length=max_length,
            limit=limit,
            device=device,
        )
        self.top_k = tuple(sorted(set(top_k)))
        if not self.top_k or self.top_k[0] < 1:
            raise BenchmarkError(f"top_k must be numbers of at least 1, found {list(top_k)}")

    def settings(self) -> dict[str, Any]:
        """Everything that the records depend on, besides the examples' names and versions."""
        return {**super().settings(), "top_k": list(self.top_k)}

    def check(self, document: AnnotatedDocument) -> None:
        """Raise for a document without a rationale."""
        if not document.rationale:
            raise AnnotationError(
                f"{document.name} in {self.documents.file.name}: no token is marked, so there is "
                "no F1"
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
        marked = np.zeros(len(example.document.tokens), dtype=bool)
        marked[list(example.document.rationale)] = True
        found: dict[str, list[float]] = {metric: [] for metric in _METRICS}
        metrics = scikit_learn_metrics(self.name)
        for k in self.top_k:
            selected = np.zeros_like(marked)
            selected[list(order[:k])] = True
            values = metrics.precision_recall_fscore_support(
                marked, selected, average="binary", zero_division=0.0
            )
            for metric, value in zip(_METRICS, values, strict=False):
                found[metric].append(float(value))
        return found

    def summarise(self, records: Callable[[], Iterator[Record]]) -> Summary:
        """Accuracy, and the means over the documents at each k and over all k."""
        means = MethodMeans([*self.methods, *CONTROLS], reference=self.methods[0], unit="%")
        accuracy = ExactMean()
        for record in records():
            accuracy.add(100.0 * (record.values["target"] == record.values["predicted"]))
            controls = {
                name: dict.fromkeys(self.explained, found)
                for name, found in _controls(record.values, self.top_k).items()
            }
            means.add(
                {
                    method: _by_condition(found, self.top_k)
                    for method, found in {**record.methods, **controls}.items()
                }
            )
        figures = means.figures()
        model = Figure(
            MODEL, "accuracy", "", accuracy.value, accuracy.standard_error, accuracy.count, "%"
        )
        return Summary(
            figures=(model, *figures), curves=self._curves(figures), columns=self._columns()
        )

    def _columns(self) -> tuple[str, ...]:
        first, *others = self.explained
        return (
            *(f"token-F1, {_condition(first, k)}" for k in self.top_k),
            *(f"token-F1, {_condition(which)}" for which in (first, *others)),
        )

    def _curves(self, figures: Sequence[Figure]) -> tuple[Curve, ...]:
        by_place = {(one.method, one.metric, one.condition): one for one in figures}
        curves = []
        for which in self.explained:
            for method in (*self.methods, *CONTROLS):
                points = [by_place[method, "token-F1", _condition(which, k)] for k in self.top_k]
                curves.append(
                    Curve(
                        method=method,
                        panel=f"explained: {which} class",
                        x=tuple(map(float, self.top_k)),
                        y=tuple(point.value for point in points),
                        standard_errors=tuple(point.standard_error for point in points),
                        x_label="k, tokens selected",
                        y_label="token-F1 [%]",
                    )
                )
        return tuple(curves)


def _condition(which: str, k: int | None = None) -> str:
    return f"{which}, mean over k" if k is None else f"{which}, k={k}"


def _by_condition(
    found: Mapping[str, Mapping[str, Sequence[float]]], top_k: Sequence[int]
) -> dict[tuple[str, str], float]:
    """Figures in per cent by (metric, condition)."""
    values = {}
    for which, of_class in found.items():
        for metric, at_k in of_class.items():
            for k, value in zip(top_k, at_k, strict=True):
                values[metric, _condition(which, k)] = 100.0 * value
            values[metric, _condition(which)] = 100.0 * sum(at_k) / len(at_k)
    return values


def _controls(values: Mapping[str, Any], top_k: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """The metrics of the rows that need no map."""
    read, marked, within = values["read"], values["rationale"], values["rationale_read"]
    controls = {}
    for name in CONTROLS:
        found: dict[str, list[float]] = {metric: [] for metric in _METRICS}
        for k, in_last in zip(top_k, values["rationale_in_last"], strict=True):
            selected = min(k, read)
            hits = {
                RANDOM_ORDER: selected * within / read,
                LAST_TOKENS: in_last,
                BEST_POSSIBLE: min(selected, within),
            }[name]
            # The sizes are fixed, so precision, recall and F1 are linear in the hits.
            of_k = (hits / selected, hits / marked, 2 * hits / (selected + marked))
            for metric, value in zip(_METRICS, of_k, strict=True):
                found[metric].append(value)
        controls[name] = found
    return controls
