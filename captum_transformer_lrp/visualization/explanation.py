"""What `TransformerAttribution(model).explain(...)` returns, as a picture and a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from captum_transformer_lrp.visualization.arrays import FloatArray, to_array
from captum_transformer_lrp.visualization.image import class_grid
from captum_transformer_lrp.visualization.matrices import token_matrix
from captum_transformer_lrp.visualization.report import Picture, Section, Table

if TYPE_CHECKING:
    from torch import Tensor

_MOST_EXAMPLES, _MOST_TOKENS = 8, 512


def section_of(explanation: Any, title: str = "") -> Section:
    """The maps of an `Explanation`'s first examples, and where the relevance of each went."""
    attributions = explanation.attributions
    inputs = attributions if isinstance(attributions, tuple) else (attributions,)
    examples = range(min(_MOST_EXAMPLES, len(explanation.total)))
    names = [f"example {index}" for index in examples]
    pictures = [
        Picture(
            "" if len(inputs) == 1 else f"input {place}",
            _drawn(one, names),
            f"Attributions of shape {np.shape(one)}; bright is relevant.",
        )
        for place, one in enumerate(inputs)
    ]
    inside = to_array(explanation.total)
    absorbed = {name: to_array(value) for name, value in explanation.absorbed.items()}
    rows = {"the inputs": inside - sum(absorbed.values()), **absorbed, "together": inside}
    table = Table(
        "Where the relevance went",
        ["", *names],
        [[name, *(f"{value[index]:.3g}" for index in examples)] for name, value in rows.items()],
    )
    count = len(explanation.attentions)
    more = f" The first {len(names)} of {len(inside)} examples." if len(inside) > len(names) else ""
    text = f"Attributions by {count} attentions.{more}"
    return Section(title or "Explanation", text, pictures, tables=[table])


def _drawn(attributions: Tensor, names: list[str]) -> Figure:
    """A map for each image, or a row for each example's tokens."""
    values = to_array(attributions)[: len(names)]
    if values.ndim == 4:
        maps = [one.sum(0) for one in values]
        return class_grid(None, maps, names, columns=4, panel_inches=1.6)
    rows: FloatArray = values.reshape(len(values), values.shape[1] if values.ndim > 1 else 1, -1)
    tokens = rows.sum(-1)[:, :_MOST_TOKENS]
    labels = [str(place) for place in range(tokens.shape[1])]
    return token_matrix(tokens, labels, names, x_label="token", y_label="")
