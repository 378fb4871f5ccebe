"""What the sweep found, one line of JSON for each model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from captum_transformer_lrp import Verification

Verdict = Literal["passed", "failed", "refused", "not built"]


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
        matrix: largest difference between the row over all tokens and that of the matrix C − I,
            relative to the largest entry; None where the attentions have no such matrix.
        occlusion: how much more the logit needs the places that the map ranks first than those that
            it ranks last, in standard deviations; None where it was not measured.
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
    matrix: float | None = None
    occlusion: float | None = None
    readout: str = ""
    softmax_attention: bool | None = None
    propagates: float | str | None = None
    seconds: float | None = None
    ran_with: str = ""

    def take(self, verification: Verification) -> None:
        """Set the verdict and the columns from what was verified."""
        self.attentions = verification.attentions
        shares = verification.absorbed
        largest = sorted(shares, key=lambda name: -shares[name])[:5]
        self.absorbed = {name: round(shares[name], 4) for name in largest if shares[name] >= 5e-5}
        for name in ("output", "gradient", "relevance", "batch", "classes", "matrix", "occlusion"):
            setattr(self, name, verification[name].found)
        for name in ("finite", "shape"):
            setattr(self, name, verification[name].verdict == "passed")
        failed = [check for check in verification if check.verdict == "failed"]
        self.verdict = "failed" if failed else "passed"
        self.reason = ", ".join(
            f"{one.name} {one.reason}" if one.found is None else f"{one.name} {one.found:.1e}"
            for one in failed
        )


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
