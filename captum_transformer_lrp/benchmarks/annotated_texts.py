"""What benchmarks of text classifiers share: annotated documents, as a classifier reads them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from captum_transformer_lrp.benchmarks.corpus_tokens import (
    FUSIONS,
    EncodedTokens,
    encode_tokens,
    ranking,
    token_scores,
)
from captum_transformer_lrp.benchmarks.distributed import own_device
from captum_transformer_lrp.benchmarks.eraser import (
    AnnotatedDocument,
    AnnotationError,
    EraserDocuments,
)
from captum_transformer_lrp.benchmarks.errors import BenchmarkError
from captum_transformer_lrp.benchmarks.images import evenly_spaced
from captum_transformer_lrp.benchmarks.methods import methods_by_name
from captum_transformer_lrp.benchmarks.runner import Benchmark, weights_digest
from captum_transformer_lrp.models import TextModel

MAX_LENGTH: Final = 512
"""The most pieces of a document that the paper's classifier reads, special tokens included."""

EXPLAINED: Final = ("target", "predicted")
"""Which class is explained: the document's own, or the one that the classifier predicts."""


@dataclass(frozen=True)
class ReadDocument:
    """An annotated document with what the classifier makes of it.

    Args:
        document: the document.
        encoded: its pieces, cut to what the classifier reads.
        logits: float32 (C,), on the CPU.
        target: the index of the document's class.
    """

    document: AnnotatedDocument
    encoded: EncodedTokens
    logits: Tensor
    target: int

    @property
    def predicted(self) -> int:
        """The index of the class that the classifier predicts."""
        return int(self.logits.argmax())

    def explained(self, which: str) -> int:
        """The class to explain, for a name in :data:`EXPLAINED`."""
        return self.target if which == "target" else self.predicted


class TextBenchmark(Benchmark[ReadDocument]):
    """A benchmark of methods that rank the tokens of annotated documents.

    Args:
        classifier: what is explained.
        documents: the annotated documents.
        methods: as in :func:`~captum_transformer_lrp.benchmarks.methods.methods_by_name`.
        explain: names in :data:`EXPLAINED`.
        fusion: how a token's pieces become one score: ``"sum"``, ``"max"`` or ``"mean"``.
        labels: for a class of the corpus, the name that the classifier has for it; classes that
            are not named must be called the same, in upper or lower case.
        max_length: the most pieces that the classifier is given; fewer if it reads fewer.
        limit: how many documents are used, spread over all; None for all.
        device: where to compute.

    Raises:
        BenchmarkError: for settings that do not fit, and where classifier and corpus have different
            classes.
    """

    def __init__(
        self,
        classifier: TextModel,
        documents: EraserDocuments,
        methods: Sequence[str],
        *,
        explain: Sequence[str],
        fusion: str = "sum",
        labels: Mapping[str, str] | None = None,
        max_length: int = MAX_LENGTH,
        limit: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._methods = {method.label: method for method in methods_by_name(methods)}
        self.methods = list(self._methods)
        self.explained = _check_explain(explain)
        if fusion not in FUSIONS:
            raise BenchmarkError(f"fusion must be one of {', '.join(FUSIONS)}, found {fusion!r}")
        if max_length < 3:
            raise BenchmarkError(f"max_length must be at least 3, found {max_length}")
        self.fusion = fusion
        self.documents = documents
        self.max_length = min(max_length, _longest(classifier))
        self._classes = corpus_classes(documents.labels(), classifier.class_names, labels)
        self._device = torch.device(own_device(str(device)))
        self.classifier = classifier
        self.model = classifier.model.to(self._device)
        self.selected = evenly_spaced(range(len(documents)), limit)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    def settings(self) -> dict[str, Any]:
        """Everything that the records depend on, besides the examples' names and versions."""
        return {
            "model": self.classifier.name,
            "weights_sha256": weights_digest(self.model),
            "classes": self._classes,
            "split": self.documents.split,
            "annotations_sha256": self.documents.sha256(),
            "explained": list(self.explained),
            "fusion": self.fusion,
            "max_length": self.max_length,
            "device": self._device.type,
        }

    def identifiers(self) -> Sequence[str]:
        """The annotations' names."""
        return self.documents.identifiers()

    def load(self, index: int) -> ReadDocument:
        """Read a document, and let the classifier read it.

        Raises:
            AnnotationError: for one that cannot be used.
        """
        document = self.documents[index]
        self.check(document)
        if document.label not in self._classes:
            raise AnnotationError(
                f"{document.name} in {self.documents.file.name}: found the class "
                f"{document.label!r}, expected one of {', '.join(self._classes)}"
            )
        encoded = encode_tokens(self.classifier.tokenizer, document.tokens, self.max_length)
        if not encoded.read:
            raise AnnotationError(f"{document.name}: the tokenizer makes no piece of its text")
        encoded = encoded.to(self._device)
        logits = self.logits(encoded.input_ids, encoded.keywords)
        return ReadDocument(document, encoded, logits, self._classes[document.label])

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
        """For each explained class what :meth:`measure` finds."""
        targets = [example.explained(which) for which in self.explained]
        maps = self._methods[method].maps(
            self.model, example.encoded.input_ids, targets, dict(example.encoded.keywords)
        )
        found: dict[int, dict[str, Any]] = {}
        for target, attribution in zip(targets, maps, strict=True):
            if target not in found:
                scores = token_scores(example.encoded, attribution, self.fusion)
                order = ranking(example.encoded, scores)
                found[target] = self.measure(example, order, target)
        return {which: found[target] for which, target in zip(self.explained, targets, strict=True)}

    @abstractmethod
    def measure(self, example: ReadDocument, order: Sequence[int], target: int) -> dict[str, Any]:
        """What to note of a ranking of the tokens that were read, as JSON."""

    def logits(self, input_ids: Tensor, keywords: Mapping[str, Tensor]) -> Tensor:
        """The classifier's logits of one text, float32 (C,), on the CPU."""
        with torch.no_grad():
            output: Any = self.model(input_ids, **keywords)
        return output.logits[0].float().cpu()


def corpus_classes(
    found: Sequence[str], class_names: Sequence[str], labels: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Which output of a classifier stands for each class of a corpus.

    Args:
        found: the classes that the corpus' documents have.
        class_names: the classifier's, one for each logit.
        labels: for a class of the corpus, the classifier's name for it, where they differ.

    Returns:
        The classes of the corpus that the classifier has; documents of others are left out by name.

    Raises:
        BenchmarkError: if fewer than two classes are found in the classifier, or a name of
            ``labels`` is not there.

    Example:
        >>> corpus_classes(["NEG", "POS"], ["negative", "pos"], {"NEG": "negative"})
        {'NEG': 0, 'POS': 1}
        >>> corpus_classes(["NEG", "POS"], ["LABEL_0", "LABEL_1"])
        Traceback (most recent call last):
        ...
        captum_transformer_lrp.benchmarks.errors.BenchmarkError: the corpus has the classes NEG,
        POS, the classifier LABEL_0, LABEL_1: say which is which with labels, such as NEG=LABEL_0
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


def _check_explain(explain: Sequence[str]) -> tuple[str, ...]:
    if not explain or any(which not in EXPLAINED for which in explain):
        raise BenchmarkError(
            f"explain must be {' or '.join(EXPLAINED)}, or both, found {list(explain)}"
        )
    return tuple(dict.fromkeys(explain))


def _longest(classifier: TextModel) -> int:
    """The most pieces that the classifier takes."""
    config = getattr(classifier.model, "config", None)
    limits = [classifier.tokenizer.model_max_length]
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limits.append(positions)
    return int(min(limits))
