"""What benchmarks of text classifiers share: annotated documents, as a classifier reads them."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_transformer_lrp.benchmark_options import TextOptions
from captum_transformer_lrp.benchmarks.corpus_tokens import (
    EncodedTokens,
    encode_tokens,
    ranking,
    token_scores,
)
from captum_transformer_lrp.benchmarks.eraser import (
    AnnotatedDocument,
    AnnotationError,
    EraserDocuments,
)
from captum_transformer_lrp.benchmarks.errors import BenchmarkError
from captum_transformer_lrp.benchmarks.methods import Method
from captum_transformer_lrp.benchmarks.model_benchmark import ModelBenchmark
from captum_transformer_lrp.benchmarks.records import Record

Scores: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class ReadDocument:
    """A document, its pieces cut to what the classifier reads, its logits, and its class' index."""

    document: AnnotatedDocument
    encoded: EncodedTokens
    logits: Tensor
    target: int

    @property
    def predicted(self) -> int:
        """The index of the class that the classifier predicts."""
        return int(self.logits.argmax())


@dataclass(frozen=True, eq=False)
class TextBenchmark(TextOptions, ModelBenchmark[ReadDocument]):
    """A benchmark of methods that explain classifiers of annotated documents.

    ``data`` is a folder in the format of ERASER (see
    :mod:`~captum_transformer_lrp.benchmarks.eraser`), or its documents.
    """

    classes: Mapping[str, int] = field(init=False, repr=False)

    def prepare(self) -> None:
        """Find the documents, and which classes they have."""
        given = isinstance(self.data, EraserDocuments)
        documents = self.data if given else EraserDocuments(self.data, self.split)
        config = getattr(self.classifier, "config", None)
        positions = getattr(config, "max_position_embeddings", None)
        limits = (self.max_length, self.model.tokenizer.model_max_length, positions)
        self.put(
            data=documents,
            max_length=min(one for one in limits if isinstance(one, int) and one > 0),
            classes=corpus_classes(documents.labels(), self.model.class_names, self.labels),
        )

    def settings(self) -> dict[str, Any]:
        """Everything that the records depend on, besides the examples' names and versions."""
        own = super().settings()
        return {
            "model": own.pop("model"),
            "weights_sha256": own.pop("checkpoint_sha256"),
            "explained": own.pop("explain"),
            "classes": self.classes,
            "split": self.data.split,
            "annotations_sha256": self.data.sha256(),
            **own,
        }

    def identifiers(self) -> Sequence[str]:
        """The annotations' names."""
        return list(self.data.identifiers())

    def contents(self, index: int) -> str:
        """Of the document with its annotation; of what is wrong with one that is damaged."""
        try:
            found = repr(self.data[index])
        except AnnotationError as error:
            found = str(error)
        return hashlib.sha256(found.encode("utf-8", "surrogatepass")).hexdigest()

    def load(self, index: int) -> ReadDocument:
        """Read a document, and let the classifier read it.

        Raises:
            AnnotationError: for one that cannot be used.
        """
        document = self.data[index]
        self.check(document)
        if document.label not in self.classes:
            raise AnnotationError(
                f"{document.name} in {self.data.file.name}: found the class {document.label!r}, "
                f"expected one of {', '.join(self.classes)}"
            )
        encoded = encode_tokens(self.model.tokenizer, document.tokens, self.max_length)
        if not encoded.read:
            raise AnnotationError(f"{document.name}: the tokenizer makes no piece of its text")
        encoded = encoded.to(torch.device(self.device))
        logits = self.logits(encoded.input_ids, **encoded.keywords)[0].float().cpu()
        return ReadDocument(document, encoded, logits, self.classes[document.label])

    def check(self, document: AnnotatedDocument) -> None:
        """Raise an :class:`AnnotationError` for a document that this benchmark cannot use."""

    def describe(self, example: ReadDocument) -> dict[str, Any]:
        """The classes, and how many tokens there are and are read."""
        return {
            "target": example.target,
            "predicted": example.predicted,
            "tokens": len(example.document.tokens),
            "read": len(example.encoded.read),
        }

    def evaluate(self, example: ReadDocument, method: str) -> dict[str, Any]:
        """For each explained class what :meth:`of_class` finds."""
        chosen = self.by_label[method]
        classes = [int(getattr(example, which)) for which in self.explain]
        scores = dict(zip(classes, self.scores(example, chosen, classes), strict=True))
        found = {one: self.of_class(example, chosen, one, scores[one]) for one in scores}
        return {which: found[one] for which, one in zip(self.explain, classes, strict=True)}

    @abstractmethod
    def of_class(
        self, example: ReadDocument, method: Method, target: int, scores: Scores
    ) -> dict[str, Any]:
        """What to note of a method's attributions of a class, as JSON."""

    def scores(
        self, example: ReadDocument, method: Method, targets: Sequence[int], model: Any = None
    ) -> list[Scores]:
        """The attributions of the corpus' tokens, of the classifier or of another model."""
        encoded, model = example.encoded, model or self.classifier
        maps = method.maps(model, encoded.input_ids, targets, dict(encoded.keywords))
        return [token_scores(encoded, one, self.fusion) for one in maps]

    def of_model(self, record: Record) -> dict[str, float]:
        """The accuracy."""
        return {"accuracy": 100.0 * (record.values["target"] == record.values["predicted"])}


def at_steps(
    values: Sequence[float], steps: Mapping[str, Any], which: str, metric: str, mean: str
) -> dict[tuple[str, str], float]:
    """A metric's values at steps, and their mean, as figures of an explained class.

    >>> at_steps([1.0, 2.0], {"k=1": 1, "k=5": 5}, "target", "F1", "mean")
    {('F1', 'target, k=1'): 1.0, ('F1', 'target, k=5'): 2.0, ('F1', 'target, mean'): 1.5}
    """
    named = dict(zip([*steps, mean], [*values, math.fsum(values) / len(values)], strict=True))
    return {(metric, f"{which}, {name}"): value for name, value in named.items()}


@dataclass(frozen=True, eq=False)
class OrderBenchmark(TextBenchmark):
    """A benchmark of texts that takes from a map nothing but the order of the tokens."""

    def of_class(
        self, example: ReadDocument, method: Method, target: int, scores: Scores
    ) -> dict[str, Any]:
        """What :meth:`measure` finds of the tokens' order."""
        return self.measure(example, ranking(example.encoded, scores), target)

    @abstractmethod
    def measure(self, example: ReadDocument, order: Sequence[int], target: int) -> dict[str, Any]:
        """What to note of an order of the tokens, as JSON."""


def corpus_classes(
    found: Sequence[str], class_names: Sequence[str], labels: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Which output of a classifier stands for each class of a corpus, as far as it has them.

    Args:
        found: the classes that the corpus' documents have.
        class_names: the classifier's, one for each logit.
        labels: for a class of the corpus, the classifier's name for it, where they differ.

    Raises:
        BenchmarkError: if fewer than two classes are found, or a name of ``labels`` is not there.

    Example:
        >>> corpus_classes(["NEG", "POS"], ["negative", "pos"], {"NEG": "negative"})
        {'NEG': 0, 'POS': 1}
    """
    by_name = {name.casefold(): index for index, name in enumerate(class_names)}
    advice = f"say which is which with labels, such as {found[0] if found else 'NEG'}="
    advice += class_names[0]
    names = {one: one for one in found if one.casefold() in by_name} | dict(labels or {})
    for name in names.values():
        if name.casefold() not in by_name:
            raise BenchmarkError(
                f"the classifier has no class {name!r}, it has {', '.join(class_names)}"
            )
    classes = {label: by_name[name.casefold()] for label, name in names.items()}
    if len(set(classes) & set(found)) < min(2, len(found)):
        raise BenchmarkError(
            f"the corpus has the classes {', '.join(found)}, the classifier "
            f"{', '.join(class_names)}: {advice}"
        )
    if len(set(classes.values())) < len(classes):
        raise BenchmarkError(f"two classes of the corpus are one of the classifier: {classes}")
    return dict(sorted(classes.items()))
