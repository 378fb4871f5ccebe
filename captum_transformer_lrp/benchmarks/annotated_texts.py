"""What benchmarks of text classifiers share: annotated documents, as a classifier reads them."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
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
from captum_transformer_lrp.benchmarks.model_benchmark import ModelBenchmark
from captum_transformer_lrp.benchmarks.records import Record
from captum_transformer_lrp.models import TextModel


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

    def explained(self, which: str) -> int:
        """The class to explain, ``"target"`` or ``"predicted"``."""
        return self.target if which == "target" else self.predicted


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
        self.put(
            data=documents,
            max_length=min(self.max_length, _longest(self.model)),
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
        names: list[str] = self.data.identifiers()
        return names

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
        label = document.index_of(list(self.classes), self.data.file)
        encoded = encode_tokens(self.model.tokenizer, document.tokens, self.max_length)
        if not encoded.read:
            raise AnnotationError(f"{document.name}: the tokenizer makes no piece of its text")
        encoded = encoded.to(torch.device(self.device))
        logits = self.logits(encoded.input_ids, encoded.keywords)
        return ReadDocument(document, encoded, logits, list(self.classes.values())[label])

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

    def logits(self, input_ids: Tensor, keywords: Mapping[str, Tensor]) -> Tensor:
        """The classifier's logits of one text, float32 (C,), on the CPU."""
        with torch.no_grad():
            output: Any = self.classifier(input_ids, **keywords)
        return output.logits[0].float().cpu()

    def of_model(self, record: Record) -> dict[str, float]:
        """The accuracy."""
        return {"accuracy": 100.0 * (record.values["target"] == record.values["predicted"])}


class TokenRanking(TextBenchmark):
    """One of the order in which a method puts the tokens."""

    def evaluate(self, example: ReadDocument, method: str) -> dict[str, Any]:
        """For each explained class what :meth:`measure` finds."""
        targets = [example.explained(which) for which in self.explain]
        maps = self.by_label[method].maps(
            self.classifier, example.encoded.input_ids, targets, dict(example.encoded.keywords)
        )
        found: dict[int, dict[str, Any]] = {}
        for target, attribution in zip(targets, maps, strict=True):
            if target not in found:
                scores = token_scores(example.encoded, attribution, self.fusion)
                order = ranking(example.encoded, scores)
                found[target] = self.measure(example, order, target)
        return {which: found[target] for which, target in zip(self.explain, targets, strict=True)}

    @abstractmethod
    def measure(self, example: ReadDocument, order: Sequence[int], target: int) -> dict[str, Any]:
        """What to note of a ranking of the tokens that were read, as JSON."""


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
    classes = {}
    for label, name in (labels or {}).items():
        if name.casefold() not in by_name:
            raise BenchmarkError(
                f"the classifier has no class {name!r}, it has {', '.join(class_names)}"
            )
        classes[label] = by_name[name.casefold()]
    for label in found:
        if label not in classes and label.casefold() in by_name:
            classes[label] = by_name[label.casefold()]
    if len(set(classes) & set(found)) < min(2, len(found)):
        raise BenchmarkError(
            f"the corpus has the classes {', '.join(found)}, the classifier "
            f"{', '.join(class_names)}: {advice}"
        )
    if len(set(classes.values())) < len(classes):
        raise BenchmarkError(f"two classes of the corpus are one of the classifier: {classes}")
    return dict(sorted(classes.items()))


def _longest(classifier: TextModel) -> int:
    """The most pieces that the classifier takes."""
    limit: int = classifier.tokenizer.model_max_length
    positions = getattr(getattr(classifier.model, "config", None), "max_position_embeddings", None)
    return min(limit, positions) if isinstance(positions, int) and positions > 0 else limit
