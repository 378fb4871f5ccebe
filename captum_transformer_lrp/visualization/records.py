"""To and from `captum.attr.visualization`'s records of text attributions."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
from captum.attr import visualization

from captum_transformer_lrp.printing import printable
from captum_transformer_lrp.visualization.arrays import to_array
from captum_transformer_lrp.visualization.text import TextExplanation
from captum_transformer_lrp.visualization.words import Word


def to_record(
    explanation: TextExplanation,
    *,
    predicted_class: str = "",
    true_class: str = "",
    convergence_score: float = 0.0,
) -> visualization.VisualizationDataRecord:
    """One of our explanations as a record for `captum.attr.visualization.visualize_text`.

    Attributions are divided by the largest, as Captum's colours expect -1 to 1; the score is the
    sum before that. Words are escaped, because Captum puts them into its page as they are.

    Args:
        explanation: what is shown.
        predicted_class: the class that the model prefers; the explained class by default.
        true_class: the right class, if it is known.
        convergence_score: what a convergence delta said, for methods that have one.

    Example:
        >>> record = to_record(TextExplanation("positive", [Word("<b>", 0.2), Word("x", -0.1)]))
        >>> record.raw_input_ids, record.word_attributions.tolist()
        (['&lt;b&gt;', 'x'], [1.0, -0.5])
    """
    values = np.array([word.attribution for word in explanation.words])
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    record: Any = visualization.VisualizationDataRecord(
        word_attributions=values / largest,
        pred_prob=explanation.probability or 0.0,
        pred_class=html.escape(predicted_class or explanation.class_name),
        true_class=html.escape(true_class),
        attr_class=html.escape(explanation.class_name),
        attr_score=float(values.sum()),
        raw_input_ids=[html.escape(printable(word.text)) for word in explanation.words],
        convergence_score=convergence_score,
    )
    return record


def from_record(record: visualization.VisualizationDataRecord) -> TextExplanation:
    """A record that was made for Captum as an explanation for our pages, figures and terminals.

    The record's probability is that of the predicted class; it is kept only where that is the
    explained one.

    Example:
        >>> from captum.attr import visualization
        >>> record = visualization.VisualizationDataRecord(
        ...     [0.5, -0.2], 0.9, 1, 1, 1, 0.3, ["good", "film"], 0.0
        ... )
        >>> from_record(record).words[1]
        Word(text='film', attribution=-0.2, before=' ', special=False)
    """
    values = to_array(record.word_attributions)
    tokens = [str(token) for token in record.raw_input_ids]
    if values.shape != (len(tokens),):
        raise ValueError(
            f"found {len(tokens)} tokens with attributions of shape {values.shape}, expected one "
            "number for each token: sum over the embedding dimension first"
        )
    words = [
        Word(token, float(value), " " if place else "")
        for place, (token, value) in enumerate(zip(tokens, values, strict=True))
    ]
    explains_prediction = str(record.pred_class) == str(record.attr_class)
    return TextExplanation(
        str(record.attr_class), words, record.pred_prob if explains_prediction else None
    )
