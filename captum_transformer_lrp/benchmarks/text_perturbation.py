"""Does the classifier depend on the highest-ranked tokens, and do they suffice?  ERASER's AOPC."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from captum_transformer_lrp.benchmarks.annotated_texts import (
    MAX_LENGTH,
    ReadDocument,
    TextBenchmark,
)
from captum_transformer_lrp.benchmarks.corpus_tokens import EncodedTokens
from captum_transformer_lrp.benchmarks.curves import Curve
from captum_transformer_lrp.benchmarks.eraser import EraserDocuments
from captum_transformer_lrp.benchmarks.errors import BenchmarkError
from captum_transformer_lrp.benchmarks.records import Record
from captum_transformer_lrp.benchmarks.results import MODEL, Figure, Result, Summary
from captum_transformer_lrp.benchmarks.runner import run
from captum_transformer_lrp.benchmarks.statistics import ExactMean, MethodMeans
from captum_transformer_lrp.models import TextModel

BINS: Final = (1.0, 5.0, 10.0, 20.0, 50.0)
"""The shares of a document's tokens that count as its rationale, in per cent."""

REMOVALS: Final = ("delete", "mask")

_METRICS: Final = ("comprehensiveness", "sufficiency")


def text_perturbation(
    model: TextModel,
    data: str | Path,
    methods: Sequence[str] = ("paper", "random"),
    *,
    output: str | Path,
    split: str = "test",
    bins: Sequence[float] = BINS,
    removal: str = "delete",
    explain: Sequence[str] = ("predicted",),
    fusion: str = "sum",
    labels: Mapping[str, str] | None = None,
    max_length: int = MAX_LENGTH,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    show_progress: bool = False,
    so_far: bool = False,
) -> Result:
    """Measure comprehensiveness and sufficiency of methods, as ERASER defines them.

    Args:
        model: what is explained, from :func:`~captum_transformer_lrp.models.load_text_model`.
        data: a folder in the format of ERASER (see
            :mod:`~captum_transformer_lrp.benchmarks.eraser`).
        methods: names, as in :func:`~captum_transformer_lrp.benchmarks.methods.methods_by_name`.
        output: the folder of records and results; a run that was stopped goes on there.
        split: of the corpus.
        bins: as in :class:`TextPerturbationBenchmark`, and so are the other arguments.
        removal: ``"delete"`` or ``"mask"``.
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
    """
    benchmark = TextPerturbationBenchmark(
        model,
        EraserDocuments(data, split),
        methods,
        bins=bins,
        removal=removal,
        explain=explain,
        fusion=fusion,
        labels=labels,
        max_length=max_length,
        limit=limit,
        device=device,
    )
    return run(benchmark, output, seed=seed, show_progress=show_progress, so_far=so_far)


class TextPerturbationBenchmark(TextBenchmark):
    r"""Comprehensiveness and sufficiency, averaged over rationales of several lengths.

    With p(x) the probability of the explained class and r_b the b % of the tokens that rank
    highest,

    .. math::
        \mathrm{comprehensiveness}_b = p(x) - p(x \setminus r_b), \qquad
        \mathrm{sufficiency}_b = p(x) - p(r_b),

    high and low, respectively, for a faithful ranking.  AOPC is their mean over the bins, as
    ERASER's published code computes it; "AOPC with k=0" also has the empty rationale in the mean,
    1/(|B|+1) Σ_{k=0}^{|B|}, as its paper prints it.  What is perturbed is what the classifier read:
    text beyond the cut does not move up.  A bin has ⌈b % of the tokens read⌉ tokens.

    Args:
        classifier: what is explained.
        documents: the annotated documents; their rationales are not used.
        methods: as in :func:`~captum_transformer_lrp.benchmarks.methods.methods_by_name`.
        bins: shares of the tokens, in per cent.
        removal: ``"delete"`` takes the pieces of removed tokens out of the text; ``"mask"``
            replaces each by the tokenizer's mask token.
        explain: ``"predicted"``, ERASER's, ``"target"``, or both.
        fusion: how a token's pieces become one score: ``"sum"``, ``"max"`` or ``"mean"``.
        labels: for a class of the corpus, the name that the classifier has for it.
        max_length: the most pieces that the classifier is given; fewer if it reads fewer.
        limit: how many documents are used, spread over all; None for all.
        device: where to compute.

    Raises:
        BenchmarkError: for settings that do not fit, and where classifier and corpus have different
            classes.

    Reference:
        Jay DeYoung et al., *ERASER: A Benchmark to Evaluate Rationalized NLP Models*, ACL 2020,
        section 4.
    """

    name = "text-perturbation"

    def __init__(
        self,
        classifier: TextModel,
        documents: EraserDocuments,
        methods: Sequence[str] = ("paper", "random"),
        *,
        bins: Sequence[float] = BINS,
        removal: str = "delete",
        explain: Sequence[str] = ("predicted",),
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
        self.bins = tuple(sorted(set(bins)))
        if not self.bins or not 0 < self.bins[0] <= self.bins[-1] <= 100:
            raise BenchmarkError(f"bins must be shares above 0 and up to 100 %, found {list(bins)}")
        if removal not in REMOVALS:
            raise BenchmarkError(f"removal must be one of {', '.join(REMOVALS)}, found {removal!r}")
        if removal == "mask" and classifier.tokenizer.mask_token_id is None:
            raise BenchmarkError(
                f"the tokenizer of {classifier.name} has no mask token: use removal 'delete'"
            )
        self.removal = removal

    def settings(self) -> dict[str, Any]:
        """Everything that the records depend on, besides the examples' names and versions."""
        return {**super().settings(), "bins": list(self.bins), "removal": self.removal}

    def describe(self, example: ReadDocument) -> dict[str, Any]:
        """The classes, how many tokens there are, and the probabilities of text and of none."""
        nothing = self._probabilities(example, example.encoded.read)
        return {
            **super().describe(example),
            "probabilities": _probabilities(example.logits).tolist(),
            "probabilities_of_nothing": nothing.tolist(),
        }

    def measure(self, example: ReadDocument, order: Sequence[int], target: int) -> dict[str, Any]:
        """Comprehensiveness and sufficiency at each bin."""
        full = float(_probabilities(example.logits)[target])
        found: dict[str, list[float]] = {metric: [] for metric in _METRICS}
        for share in self.bins:
            count = math.ceil(share / 100 * len(order))
            without = self._probabilities(example, order[:count])
            alone = self._probabilities(example, order[count:])
            found["comprehensiveness"].append(full - float(without[target]))
            found["sufficiency"].append(full - float(alone[target]))
        return found

    def summarise(self, records: Callable[[], Iterator[Record]]) -> Summary:
        """Accuracy, and the means over the documents at each bin and over the bins."""
        means = MethodMeans(self.methods, reference=self.methods[0])
        accuracy = ExactMean()
        for record in records():
            accuracy.add(100.0 * (record.values["target"] == record.values["predicted"]))
            means.add(
                {
                    method: self._by_condition(found, record.values)
                    for method, found in record.methods.items()
                }
            )
        figures = means.figures()
        model = Figure(
            MODEL, "accuracy", "", accuracy.value, accuracy.standard_error, accuracy.count, "%"
        )
        columns = tuple(
            f"{metric}, {which}, {mean}"
            for which in self.explained
            for metric in _METRICS
            for mean in ("AOPC", "AOPC with k=0")
        )
        return Summary(figures=(model, *figures), curves=self._curves(figures), columns=columns)

    def _by_condition(
        self, found: Mapping[str, Mapping[str, Sequence[float]]], values: Mapping[str, Any]
    ) -> dict[tuple[str, str], float]:
        """Figures by (metric, condition)."""
        figures = {}
        for which, of_class in found.items():
            target = values[which]
            empty = values["probabilities"][target] - values["probabilities_of_nothing"][target]
            # Without a rationale nothing is taken away, and nothing is left to suffice.
            of_empty = {"comprehensiveness": 0.0, "sufficiency": empty}
            for metric, at_bins in of_class.items():
                for share, value in zip(self.bins, at_bins, strict=True):
                    figures[metric, f"{which}, {share:g} %"] = value
                total = math.fsum(at_bins)
                figures[metric, f"{which}, AOPC"] = total / len(at_bins)
                figures[metric, f"{which}, AOPC with k=0"] = (total + of_empty[metric]) / (
                    len(at_bins) + 1
                )
        return figures

    def _curves(self, figures: Sequence[Figure]) -> tuple[Curve, ...]:
        by_place = {(one.method, one.metric, one.condition): one for one in figures}
        curves = []
        for which in self.explained:
            for metric in _METRICS:
                for method in self.methods:
                    points = [
                        by_place[method, metric, f"{which}, {share:g} %"] for share in self.bins
                    ]
                    curves.append(
                        Curve(
                            method=method,
                            panel=f"{metric}, {which} class",
                            x=self.bins,
                            y=tuple(point.value for point in points),
                            standard_errors=tuple(point.standard_error for point in points),
                            x_label="tokens in the rationale [%]",
                            y_label=metric,
                        )
                    )
        return tuple(curves)

    def _probabilities(self, example: ReadDocument, removed: Sequence[int]) -> Tensor:
        """The classes' probabilities without some of the tokens, float64 (C,)."""
        mask = self.classifier.tokenizer.mask_token_id if self.removal == "mask" else None
        ids, keywords = without_tokens(example.encoded, removed, mask)
        return _probabilities(self.logits(ids, keywords))


def without_tokens(
    encoded: EncodedTokens, removed: Sequence[int], mask: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """A document as the model reads it without some of the corpus' tokens.

    Args:
        encoded: the document; special tokens stay.
        removed: positions of tokens.
        mask: the id that replaces each of their pieces; None to delete the pieces.

    Returns:
        The ids (1, S') and the other inputs of the model.

    Example:
        >>> encoded = EncodedTokens(torch.tensor([[101, 7, 8, 9, 102]]), {}, ((1,), (2, 3)))
        >>> without_tokens(encoded, [1])[0].tolist()
        [[101, 7, 102]]
        >>> without_tokens(encoded, [1], mask=103)[0].tolist()
        [[101, 7, 103, 103, 102]]
    """
    pieces = sorted({piece for token in removed for piece in encoded.pieces[token]})
    if mask is not None:
        ids = encoded.input_ids.clone()
        ids[0, pieces] = mask
        return ids, dict(encoded.keywords)
    stays = torch.ones(encoded.input_ids.shape[1], dtype=torch.bool)
    stays[pieces] = False
    kept = stays.nonzero().flatten().to(encoded.input_ids.device)
    keywords = {name: value[:, kept] for name, value in encoded.keywords.items()}
    return encoded.input_ids[:, kept], keywords


def _probabilities(logits: Tensor) -> Tensor:
    return logits.double().softmax(-1)
