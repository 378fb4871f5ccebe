"""What the model says, and which of its classes are explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from captum_transformer_lrp.cli.errors import UsageError
from captum_transformer_lrp.cli.targets import resolve_target
from captum_transformer_lrp.printing import printable

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Prediction:
    """One class with the probability that the model gives to it."""

    index: int
    name: str
    probability: float

    def as_json(self) -> dict[str, Any]:
        """The prediction as a JSON object.

        >>> Prediction(1, "cat", 0.5).as_json()
        {'index': 1, 'name': 'cat', 'probability': 0.5}
        """
        return asdict(self)


def predict(
    model: nn.Module,
    inputs: Tensor,
    keywords: Mapping[str, Tensor],
    class_names: Sequence[str],
) -> list[Prediction]:
    """The classes of the only example in a batch, the most probable first."""
    import torch

    with torch.no_grad():
        output = model(inputs, **keywords)
    logits: Tensor = getattr(output, "logits", output)
    if not isinstance(logits, torch.Tensor):
        logits = logits[0]
    if logits.shape != (1, len(class_names)):
        raise ValueError(
            f"the model returned a tensor of shape {tuple(logits.shape)}, expected one logit for "
            f"each of its {len(class_names)} classes"
        )
    probabilities = logits[0].float().softmax(-1)
    return [
        Prediction(index, class_names[index], float(probabilities[index]))
        for index in probabilities.argsort(descending=True).tolist()
    ]


def choose(
    predictions: Sequence[Prediction],
    targets: Sequence[str] | None,
    top_k: int,
    class_names: Sequence[str],
) -> list[Prediction]:
    """The classes to explain: the ones asked for, else the most probable ones."""
    if not targets:
        return list(predictions[:top_k])
    by_index = {prediction.index: prediction for prediction in predictions}
    try:
        wanted = [resolve_target(target, class_names) for target in targets]
    except ValueError as error:
        raise UsageError(str(error)) from error
    return [by_index[index] for index in dict.fromkeys(wanted)]


def print_predictions(
    console: Console, predictions: Sequence[Prediction], explained: Sequence[Prediction]
) -> None:
    """A table of the most probable classes and of those that are explained."""
    from captum_transformer_lrp.visualization.labels import percent

    table = Table("class", "index", "probability", "explained")
    for column in (1, 2):
        table.columns[column].justify = "right"
    rows = [*predictions[:5], *(each for each in explained if each not in predictions[:5])]
    for row in rows:
        table.add_row(
            Text(printable(row.name)),
            str(row.index),
            percent(row.probability),
            "yes" if row in explained else "",
        )
    console.print(table)
