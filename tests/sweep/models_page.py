"""From the results of the sweeps to the page ``docs/models.md``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from tests.sweep.results import Result, read

_FIRST_LINES = {
    "timm": 'model = timm.create_model("{name}", pretrained=True).eval()',
    "sequence classification": "AutoModelForSequenceClassification",
    "image classification": "AutoModelForImageClassification",
    "token classification": "AutoModelForTokenClassification",
    "question answering": "AutoModelForQuestionAnswering",
    "masked language model": "AutoModelForMaskedLM",
    "audio classification": "AutoModelForAudioClassification",
    "video classification": "AutoModelForVideoClassification",
}

_SECOND_LINES = {
    "timm": "attributions = TransformerAttribution(model).attribute(images, target=class_index)",
    "transformers": (
        "attributions = TransformerAttribution(model).attribute(\n"
        '    input_ids, target=class_index, additional_forward_args={"attention_mask": mask}\n'
        ")"
    ),
}


def write_page(docs: Path) -> None:
    """Write ``models.md`` into the folder that has the results in ``sweep/``."""
    suites = {
        name: read(docs / "sweep" / f"{name}.jsonl").values() for name in ("timm", "transformers")
    }
    text = page({name: list(found) for name, found in suites.items() if found})
    (docs / "models.md").write_text(text, encoding="utf-8")


def page(suites: dict[str, list[Result]]) -> str:
    """The page, from the results of each suite."""
    lines = [
        "# Does it work with my model?",
        "",
        "The library watches PyTorch calls, not module types, so there is no list of supported "
        "models that it works from. This page lists what was tried: every family below was built "
        "with random weights, and each model checked for an unchanged output, gradients equal to "
        "autograd's, Σ R = 1 ± 1e-6, maps of the right shape, and examples that do not touch each "
        "other. It is written from the results by `python -m tests.sweep`, which can be run on "
        "your version of the libraries. A model that is not here most likely works as well: try "
        "it, and an operation without a rule will be an error that names it.",
        "",
        "**Read from** is where the rollout phase starts: the tokens that the model makes its "
        "answer of, found by following the target back to the last skip connection around an "
        "attention.",
        "",
    ]
    for suite, found in suites.items():
        lines += _suite(suite, found)
    return "\n".join(lines).rstrip() + "\n"


def _suite(suite: str, found: list[Result]) -> list[str]:
    lines = [
        f"## {suite}",
        "",
        f"Each model by itself: [sweep_{suite}.md](sweep_{suite}.md). Two lines do it, the first "
        "as in the table, the second for all:",
        "",
        "```python",
        *([_FIRST_LINES["timm"].format(name="NAME")] if suite == "timm" else _loading(found)),
        _SECOND_LINES[suite],
        "```",
        "",
    ]
    attending = [one for one in found if one.verdict == "passed" or one.softmax_attention]
    lines += _families(attending, suite)
    others = [one for one in found if one not in attending]
    if others:
        lines += [
            "Without a softmax between tokens there is no attention map. The methods of the paper "
            "then say so, naming the layers; `TransformerLRP` still divides relevance among the "
            "pixels or embeddings, and Σ R is within 1e-6 of 1 for: "
            f"{_list(one for one in others if _conserves(one))}.",
            "",
        ]
        rest = [one for one in others if not _conserves(one)]
        if rest:
            lines += ["| family | model | |", "|---|---|---|"]
            lines += [
                f"| {one.family} | `{one.name}` | {_cell(str(one.propagates or one.reason))} |"
                for one in rest
            ]
            lines.append("")
    return lines


def _loading(found: list[Result]) -> list[str]:
    tasks = dict.fromkeys(one.task for one in found)
    return [f'model = {_FIRST_LINES[task]}.from_pretrained("NAME").eval()' for task in tasks]


def _families(found: list[Result], suite: str) -> list[str]:
    lines = ["| family | passed | read from | first line |", "|---|---|---|---|"]
    by_family = sorted(found, key=lambda one: (one.family, not one.smallest, one.parameters or 0))
    problems = []
    for family, group in groupby(by_family, key=lambda one: one.family):
        models = list(group)
        passed = [one for one in models if one.verdict == "passed"]
        problems += [one for one in models if one.verdict != "passed"]
        readouts = Counter(one.readout for one in passed)
        places = "; ".join(
            place if len(readouts) == 1 else f"{place} ({count})"
            for place, count in readouts.most_common()
        )
        lines.append(
            f"| {family} | {len(passed)} of {len(models)} | {places} | `{_first(suite, models[0])}`"
            " |"
        )
    lines.append("")
    if problems:
        lines += ["Not passed:", ""]
        lines += [
            f"* `{one.name}` ({one.family}): {one.verdict}, {_cell(one.reason)}" for one in problems
        ]
        lines.append("")
    return lines


def _first(suite: str, model: Result) -> str:
    if suite == "timm":
        return f'timm.create_model("{model.name}")'
    return f"{_FIRST_LINES[model.task]}.from_pretrained(…)"


def _conserves(one: Result) -> bool:
    return isinstance(one.propagates, float) and one.propagates <= 1e-6


def _list(found: Iterable[Result]) -> str:
    families = sorted({one.family for one in found})
    return ", ".join(families) if families else "none"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
