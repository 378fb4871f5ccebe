"""What the commands share: errors, predictions, targets, attribution."""

from __future__ import annotations

import enum
import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from captum_transformer_lrp.cli.targets import resolve_target
from captum_transformer_lrp.visualization.labels import percent, printable


class Method(str, enum.Enum):
    """Which `Attribution` class explains; the values are what `--method` takes."""

    TRANSFORMER_ATTRIBUTION = "transformer_attribution"
    ATTENTION_ROLLOUT = "attention_rollout"
    RAW_ATTENTION = "raw_attention"
    ATTENTION_GRADCAM = "attention_gradcam"
    PARTIAL_LRP = "partial_lrp"
    TRANSFORMER_LRP = "transformer_lrp"
    ATTENTION_FLOW = "attention_flow"

    @property
    def class_name(self) -> str:
        """The name of the class in `captum_transformer_lrp`.

        >>> Method.TRANSFORMER_ATTRIBUTION.class_name, Method.PARTIAL_LRP.class_name
        ('TransformerAttribution', 'PartialLRP')
        """
        return self.value.title().replace("_", "").replace("Lrp", "LRP").replace("cam", "Cam")


class UsageError(Exception):
    """A mistake on the command line, which ends the program with exit code 2."""


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


@contextmanager
def clear_errors() -> Iterator[None]:
    """Report what goes wrong in one sentence on stderr, without a traceback.

    The exit code is 2 where the command line must be changed, 1 for everything else.
    """
    # Retries of downloads and bars for what takes a second would bury that sentence.
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except UsageError as error:
        _fail(error, code=2)
    # The package's own errors are RuntimeErrors; Captum asserts.
    except (OSError, ValueError, TypeError, RuntimeError, AssertionError) as error:
        _fail(error, code=1)


def _fail(error: Exception, code: int) -> None:
    message = printable(" ".join(str(error).split())) or type(error).__name__
    typer.secho(f"error: {message}", fg="red", err=True)
    raise typer.Exit(code)


def to_device(name: str) -> torch.device:
    """The device of that name, if this machine has it.

    >>> to_device("cpu")
    device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise UsageError(
            f"--device {name} cannot be used here ({first_line}): try --device cpu"
        ) from error
    return device


def check_output(path: Path, suffixes: Sequence[str]) -> None:
    """Refuse an output file before the work is done, rather than after it."""
    if path.suffix.lower().lstrip(".") not in suffixes:
        raise UsageError(
            f"--output {path} ends in {path.suffix or 'no suffix'!r}, expected one of "
            f"{', '.join('.' + suffix for suffix in suffixes)}"
        )
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder, expected the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)


def predict(
    model: nn.Module,
    inputs: Tensor,
    keywords: Mapping[str, Tensor],
    class_names: Sequence[str],
) -> list[Prediction]:
    """The classes of the only example in a batch, the most probable first."""
    with torch.no_grad():
        output = model(inputs, **keywords)
    logits: Tensor = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
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


def attribute(
    method: Method,
    model: nn.Module,
    inputs: Tensor,
    targets: Sequence[Prediction],
    keywords: Mapping[str, Tensor],
) -> list[Tensor]:
    """One attribution per target, of the only example in a batch."""
    package = importlib.import_module("captum_transformer_lrp")
    attribution = getattr(package, method.class_name)(model)
    results = attribution.attribute_targets(
        inputs,
        [target.index for target in targets],
        additional_forward_args=dict(keywords) or None,
    )
    return [result.detach().cpu() for result in results]


def print_predictions(
    console: Console, predictions: Sequence[Prediction], explained: Sequence[Prediction]
) -> None:
    """A table of the most probable classes and of those that are explained."""
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
