"""Which words of a text speak for a class: one call, one result."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from captum_transformer_lrp.names import DEFAULT_METHOD
from captum_transformer_lrp.printing import check_text
from captum_transformer_lrp.result import as_footer
from captum_transformer_lrp.results.classes import (
    OfClasses,
    Prediction,
    Targets,
    check_count,
    explain,
    listed,
    method_label,
)
from captum_transformer_lrp.results.given_models import as_text_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from captum_transformer_lrp.models import TextModel
    from captum_transformer_lrp.visualization import Section, TextExplanation, Word
    from captum_transformer_lrp.visualization.words import Granularity, PiecesOfWord


@dataclass(frozen=True, repr=False, eq=False)
class TextResult(OfClasses):
    """A text with the relevance of its words.

    Args:
        text: as it was given; of a pair, both.
        words: which pieces make which word.
        predictions: all classes, the most probable first.
        explained: the classes that are explained.
        maps: by method's name and class's label, one number per piece of the tokenizer.
        about: the model, methods, options and versions.
        subject: the text, or the name of its file.
        source: the text's file, which `save` never overwrites.
    """

    text: str | tuple[str, str]
    words: Sequence[PiecesOfWord]
    predictions: Sequence[Prediction]
    explained: Sequence[Prediction]
    maps: Mapping[str, Mapping[str, npt.NDArray[np.float32]]]
    about: Mapping[str, Any] = field(default_factory=dict)
    subject: str = ""
    source: Path | None = None

    def __repr__(self) -> str:
        classes, methods = listed(self.explained), ", ".join(self.maps)
        return f"TextResult({len(self.words)} words; {classes}; by {methods})"

    @property
    def explanations(self) -> dict[str, list[TextExplanation]]:
        """By method's name, the coloured words of each explained class."""
        from captum_transformer_lrp.visualization import TextExplanation

        return {
            method: [
                TextExplanation(label, [w.word(one) for w in self.words], each.probability)
                for (label, one), each in zip(of_class.items(), self.explained, strict=True)
            ]
            for method, of_class in self.maps.items()
        }

    def topk(
        self, k: int = 5, *, target: int | str | None = None, method: str | None = None
    ) -> list[Word]:
        """The words with the most relevance, in descending order.

        Args:
            k: how many.
            target: one of the explained classes; the first by default.
            method: one of the methods; the first by default.
        """
        check_count("k", k)
        name, place = self.chosen(target, method)
        return sorted(self.explanations[name][place].words, key=lambda word: -word.attribution)[:k]

    def to_numpy(self) -> dict[str, npt.NDArray[Any]]:
        """The `words`, and under `METHOD/CLASS INDEX` a number for each of them."""
        found: dict[str, npt.NDArray[Any]] = {
            "words": np.array([word.text for word in self.words], dtype=np.str_)
        }
        for method, explanations in self.explanations.items():
            for each, one in zip(self.explained, explanations, strict=True):
                numbers = [word.attribution for word in one.words]
                found[f"{method}/{each.index}"] = np.array(numbers)
        return found

    def figure(self) -> Figure:
        """The text as coloured words, once for each class."""
        from captum_transformer_lrp.visualization import text_figure

        shown = [
            one if len(self.maps) == 1 else replace(one, class_name=f"{method}: {one.class_name}")
            for method, explanations in self.section().texts.items()
            for one in explanations
        ]
        return text_figure(shown)

    def section(self, title: str = "", text: str = "") -> Section:
        """Itself under a heading, for `visualization.report_html`."""
        from captum_transformer_lrp.visualization import Section

        labelled = {method_label(method): found for method, found in self.explanations.items()}
        about = text or f"Explained for: {listed(self.explained)}."
        return Section(title or "The text", about, texts=labelled)

    def to_html(self, *, lang: str = "en") -> str:
        """A page that needs no other file: the text once for each class, by each method."""
        from captum_transformer_lrp.visualization import report_html, text_html

        title, footer = "Relevant words", as_footer(self.about)
        if len(self.maps) > 1:
            return report_html([self.section()], title=title, lang=lang, footer=footer)
        (explanations,) = self.explanations.values()
        return text_html(explanations, title=title, lang=lang, footer=footer)


def explain_text(
    model: TextModel | nn.Module | str,
    tokenizer: Any = None,
    text: str = "",
    *,
    text_pair: str | None = None,
    target: Targets = None,
    top_k: int = 1,
    least: float = 0.0,
    method: str | Sequence[str] = DEFAULT_METHOD,
    granularity: Granularity = "word",
    special_tokens: bool = False,
    class_names: Sequence[str] | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> TextResult:
    """Show which words of a text speak for a class.

    Args:
        model: a sequence classifier of transformers; a pipeline or a cross-encoder, which brings
            its tokenizer; what `load_text_model` returns; or a name that it takes.
        tokenizer: the model's, a fast one; None where the model brings it.
        text: a sentence or a document.
        text_pair: the second text, for models of two.
        target: a class by index or name, or several; by default the `top_k` most probable.
        top_k: how many classes where no target is given.
        least: the least probability of those classes, 0 to 1; the first is explained anyway.
        method: a name that `compare` knows, or several.
        granularity: "piece" (of the tokenizer), "word" or "sentence".
        special_tokens: whether tokens such as [CLS] are shown, too.
        class_names: one per logit; by default the model's own.
        on_progress: is called after each method.

    Returns:
        The text, its classes and the relevance of its words: a notebook shows them, and `save`
        writes them.

    Raises:
        ArgumentError: for an empty text, one that is no UTF-8, a class that the model does not
            have, and a tokenizer that does not say where its tokens stand.

    Example:
        >>> from captum_transformer_lrp import examples, explain_text
        >>> model, tokenizer = examples.sentiment_classifier()
        >>> found = explain_text(model, tokenizer, "A gorgeous, witty film.")
        >>> found
        TextResult(6 words; POSITIVE 92.9 %; by transformer_attribution)
        >>> [word.text for word in found.topk(2)]
        ['gorgeous', 'witty']
    """
    from captum_transformer_lrp.visualization.words import group_pieces

    loaded = as_text_model(model, tokenizer, class_names)
    texts = (text,) if text_pair is None else (text, text_pair)
    for one in texts:
        check_text(one)
    encoding = loaded.tokenizer(*texts, return_tensors="pt", truncation=True)
    offsets, of_text = encoding.encodings[0].offsets, encoding.sequence_ids(0)
    _tell_what_is_cut(texts, offsets, of_text)
    words = group_pieces(
        texts,
        encoding.tokens(),
        offsets=offsets,
        word_ids=encoding.word_ids(),
        sequence_ids=of_text,
        granularity=granularity,
        special_tokens=special_tokens,
    )
    parameter = next(loaded.model.parameters(), None)
    inputs = dict(encoding if parameter is None else encoding.to(parameter.device))
    input_ids = inputs.pop("input_ids")
    found = explain(
        loaded, input_ids, inputs, method, on_progress, target, top_k, least,
        special_tokens=special_tokens, granularity=granularity,
    )  # fmt: skip
    given = text if text_pair is None else (text, text_pair)
    return TextResult(given, words, *found, "\n\n".join(texts))


def _tell_what_is_cut(
    texts: Sequence[str], offsets: Sequence[tuple[int, int]], of_text: Sequence[int | None]
) -> None:
    for number, text in enumerate(texts):
        ends = [end for (_, end), one in zip(offsets, of_text, strict=True) if one == number]
        read = max(ends, default=0)
        if text[read:].strip():
            which = "text" if len(texts) == 1 else ("first text", "second text")[number]
            warnings.warn(
                f"the model reads only the first {read} characters of the {which}", stacklevel=3
            )
