"""From results to the table of a suite, in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from captum_transformer_lrp.verification.checks import TOLERANCES
from tests.sweep.results import Result

_COLUMNS = (
    "family", "model", "verdict", "read from", "parameters", "input", "attentions", "output",
    "gradient", "Σ R − 1", "absorbed by", "finite", "shape", "batch", "seconds",
)  # fmt: skip

_SHORTENED = {
    "timm": (
        "",
        "Models are built at the smallest size that they run with. Those of more than 250 M "
        "parameters, and `tiny_vit_21m_512`, whose windows of 1024 tokens take more than 10 GB, "
        "are built with fewer blocks.",
    )
}


def write_table(path: Path, suite: str, found: dict[str, Result]) -> None:
    """Write the table of a suite."""
    path.write_text(table(suite, found), encoding="utf-8")


def table(suite: str, found: dict[str, Result]) -> str:
    """The table of a suite."""
    ordered = sorted(found.values(), key=lambda one: (one.family, not one.smallest, one.name))
    counts = Counter(one.verdict for one in ordered)
    attending = [one for one in ordered if one.softmax_attention]
    passed = sum(one.verdict == "passed" for one in attending)
    lines = [
        f"# The sweep over {suite}",
        "",
        f"Written by `python -m tests.sweep {suite}`, which builds each model with random weights "
        "in float64, explains a batch of it and checks every column.",
        *_SHORTENED.get(suite, ()),
        "",
        f"**{passed} of the {len(attending)} models that compute softmax attention pass every "
        f"column.** All {len(ordered)} models: "
        + ", ".join(f"{counts[verdict]} {verdict}" for verdict in sorted(counts))
        + ".",
        "",
        "Softmax attention is observed in the model's calls without this library: a softmax whose "
        "result multiplies values as a matrix, or PyTorch's fused attention. Largest deviations "
        "with which a model passes, relative to the largest entry:",
        "",
        f"* **output**: change of the output by being watched, {TOLERANCES['output']:.0e};",
        "* **gradient**: of the target at the inputs, on the tape and by plain autograd, "
        f"{TOLERANCES['gradient']:.0e};",
        f"* **Σ R − 1**: relevance at the inputs and absorbed, {TOLERANCES['relevance']:.0e} "
        "(absolute); the parameters that absorb most are named with their share;",
        "* **finite**: every attribution is, and none is negative;",
        "* **shape**: that of the inputs, and along each axis of the image (or of the tokens) the "
        "map is no constant, as it would be if it had lost its place. How far it is from one is "
        "not asked: weights here are random, and beside the I of eq. 13 what their attention moves "
        "is little. Parameters that a model starts at 0 or close to it, such as layer scales, are "
        "drawn, as a block that adds 1e-5 of itself moves less than float64 can tell;",
        f"* **batch**: each example of the batch against itself alone, {TOLERANCES['batch']:.0e}"
        f"{_earlier(ordered)};",
        "* **seconds**: process time of all of this, one thread.",
        "",
        *_problems(ordered),
        "## Models",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        f"|{'---|' * len(_COLUMNS)}",
        *(_row(one) for one in ordered),
    ]
    return "\n".join(lines) + "\n"


def _earlier(ordered: Iterable[Result]) -> str:
    """What the batch column says of results from before the code's commit was kept with them."""
    count = sum(not one.ran_with for one in ordered)
    return f" (of {count} models, swept earlier, the first example only)" if count else ""


def _problems(ordered: Iterable[Result]) -> list[str]:
    lines = []
    titles = {
        "failed": "Models that do not pass",
        "refused": "Models that are refused",
        "not built": "Models that could not be built",
    }
    for verdict, title in titles.items():
        chosen = [one for one in ordered if one.verdict == verdict]
        if chosen:
            lines += [f"## {title}", "", "| family | model | reason |", "|---|---|---|"]
            lines += [f"| {one.family} | `{one.name}` | {_reason(one)} |" for one in chosen]
            lines.append("")
    return lines


def _reason(result: Result) -> str:
    reason = _escaped(result.reason)
    if isinstance(result.propagates, float):
        return f"{reason} — `TransformerLRP`: Σ R − 1 = {result.propagates:.0e}"
    if result.propagates:
        return f"{reason} — `TransformerLRP`: {_escaped(result.propagates)}"
    return reason


def _row(one: Result) -> str:
    shares = (f"{_escaped(name)} {share:.2f}" for name, share in one.absorbed.items())
    cells = (
        one.family,
        f"`{one.name}`",
        one.verdict,
        one.readout,
        "" if one.parameters is None else f"{one.parameters / 1e6:.1f} M",
        ", ".join("×".join(map(str, shape)) for shape in one.inputs),
        "" if one.attentions is None else str(one.attentions),
        _number(one.output),
        _number(one.gradient),
        _number(one.relevance),
        ", ".join(list(shares)[:2]),
        _yes(one.finite),
        _yes(one.shape),
        _number(one.batch),
        "" if one.seconds is None else f"{one.seconds:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


def _yes(value: bool | None) -> str:
    return "" if value is None else ("yes" if value else "no")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
