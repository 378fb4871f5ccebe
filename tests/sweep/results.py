"""What the sweep found, one line of JSON for each model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

Verdict = Literal["passed", "failed", "refused", "not built"]

TOLERANCES = {"output": 1e-5, "gradient": 1e-4, "relevance": 1e-6, "batch": 1e-6}
"""Largest relative deviations with which a model passes; ``relevance`` is \\|Σ R − 1\\|."""

DIFFERENT = 1e-3
"""The maps of two classes differ by more than this, relative to the largest entry."""


@dataclass
class Result:
    """The columns of one model; None for what was not reached.

    Args:
        name: see :class:`tests.sweep.cases.Entry`; likewise ``family``, ``task``, ``smallest``.
        verdict: ``"passed"`` if all columns are good, ``"refused"`` if the library says in an
            error that it cannot explain the model, ``"not built"`` if the model's library cannot
            make it.
        reason: the error, or the columns that are not good.
        parameters: how many the model has.
        inputs: the shapes of the inputs, batch first.
        attentions: number of attentions on the tape.
        output: largest change of the output by being watched, relative to the largest output.
        gradient: largest difference between the tape's gradient at the inputs and plain autograd's,
            relative to the largest entry.
        relevance: largest absolute value of Σ R − 1 over the examples, absorbed relevance included.
        absorbed: the largest shares of relevance that ended in parameters, by their names.
        finite: whether every attribution is finite, and none negative.
        shape: whether attributions have the shape of the inputs, and differ between places along
            every axis of them.
        batch: largest difference between any example's maps in the batch and by itself, relative
            to their largest entry.
        classes: largest difference between the maps of two classes, relative to the largest entry;
            None for a model with one output.
        readout: which tokens the model reads its answer from, as the rollout phase finds them.
        softmax_attention: whether softmax attention was observed without the library.
        propagates: for a model without softmax attention the same as ``relevance``, by
            ``TransformerLRP``; an error message if that fails, too.
        seconds: of process time, all columns together.
        ran_with: the versions of the libraries, and the state of this repository.
    """

    name: str
    family: str
    task: str
    smallest: bool
    verdict: Verdict = "failed"
    reason: str = ""
    parameters: int | None = None
    inputs: list[list[int]] = field(default_factory=list)
    attentions: int | None = None
    output: float | None = None
    gradient: float | None = None
    relevance: float | None = None
    absorbed: dict[str, float] = field(default_factory=dict)
    finite: bool | None = None
    shape: bool | None = None
    batch: float | None = None
    classes: float | None = None
    readout: str = ""
    softmax_attention: bool | None = None
    propagates: float | str | None = None
    seconds: float | None = None
    ran_with: str = ""

    def judge(self) -> None:
        """Set the verdict from the columns."""
        wrong = [
            f"{column} {value:.1e}" if isinstance(value, float) else f"{column}: not reached"
            for column, most in TOLERANCES.items()
            if not ((value := getattr(self, column)) is not None and value <= most)
        ]
        if self.classes is not None and not self.classes > DIFFERENT:
            wrong.append(f"classes {self.classes:.1e}")
        wrong += [f"not {name}" for name in ("finite", "shape") if not getattr(self, name)]
        self.verdict = "failed" if wrong else "passed"
        self.reason = ", ".join(wrong)


def read(path: Path) -> dict[str, Result]:
    """The results in a file by the models' names, the last of each; none if there is no file."""
    found: dict[str, Result] = {}
    if path.exists():
        known = {one.name for one in fields(Result)}
        for line in path.read_text(encoding="utf-8").splitlines():
            values = {name: value for name, value in json.loads(line).items() if name in known}
            found[values["name"]] = Result(**values)
    return found


def append(path: Path, result: Result) -> None:
    """Add a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(result))


def write(path: Path, found: dict[str, Result]) -> None:
    """Replace the file, one line for each model, by family and name."""
    ordered = sorted(found.values(), key=lambda one: (one.family, one.name))
    path.write_text("".join(map(_line, ordered)), encoding="utf-8")


def _line(result: Result) -> str:
    return json.dumps(asdict(result), ensure_ascii=False) + "\n"
