"""From the results of the sweeps to the page ``docs/models.md``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from tests.sweep.results import Result, read

_IMAGES = "attributions = TransformerAttribution(model).attribute({inputs}, target=class_index)"

_TEXT = """attributions = TransformerAttribution(model).attribute(
    input_ids, target={target}, additional_forward_args={{"attention_mask": mask}}
)"""

LINES = {
    "timm": (
        'model = timm.create_model("NAME", pretrained=True).eval()',
        _IMAGES.format(inputs="images"),
    ),
    "sequence classification": (
        'model = AutoModelForSequenceClassification.from_pretrained("NAME").eval()',
        _TEXT.format(target="class_index"),
    ),
    "token classification": (
        'model = AutoModelForTokenClassification.from_pretrained("NAME").eval()',
        _TEXT.format(target="(position, class_index)"),
    ),
    "masked language model": (
        'model = AutoModelForMaskedLM.from_pretrained("NAME").eval()',
        _TEXT.format(target="(position, token_id)"),
    ),
    "question answering": (
        'model = AutoModelForQuestionAnswering.from_pretrained("NAME").eval()',
        """start = lambda *args, **kwargs: model(*args, **kwargs).start_logits
attributions = TransformerAttribution(start).attribute(
    input_ids, target=position, additional_forward_args={"attention_mask": mask}
)""",
    ),
    "image classification": (
        'model = AutoModelForImageClassification.from_pretrained("NAME").eval()',
        _IMAGES.format(inputs="pixel_values"),
    ),
    "audio classification": (
        'model = AutoModelForAudioClassification.from_pretrained("NAME").eval()',
        _IMAGES.format(inputs="input_values"),
    ),
    "video classification": (
        'model = AutoModelForVideoClassification.from_pretrained("NAME").eval()',
        _IMAGES.format(inputs="pixel_values"),
    ),
}
"""For timm and for each task of transformers how a model is loaded and explained."""

OTHER_INPUTS = {
    "shieldgemma2": "takes a prompt and a picture: "
    "`TransformerAttribution(model).attribute((input_ids, pixel_values), target=0)`",
    "siglip2": "takes patches, and `pixel_attention_mask` and `spatial_shapes` as "
    "`additional_forward_args`",
    "videoprism_vision_model": "has an axis more in its output: `target=(0, class_index)`",
}
"""Families for which the lines of their task do not do."""


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
        f"Each model by itself: [the data](sweep/{suite}.jsonl), as a table among the pages that "
        "`make docs` builds. How a model is loaded and explained:",
        "",
        *_uses(suite, found),
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


def _uses(suite: str, found: list[Result]) -> list[str]:
    tasks = [suite] if suite in LINES else [task for task in LINES if _of_task(task, found)]
    lines = []
    for task in tasks:
        title = [] if task == suite else [f"{task.capitalize()}:", ""]
        lines += [*title, "```python", *LINES[task], "```", ""]
    special = {one.family for one in found} & set(OTHER_INPUTS)
    exceptions = [f"* {family} {OTHER_INPUTS[family]}" for family in sorted(special)]
    return [*lines, *exceptions, *([""] if special else [])]


def _of_task(task: str, found: Iterable[Result]) -> bool:
    return any(one.task == task for one in found)


def _families(found: list[Result], suite: str) -> list[str]:
    last = "smallest model" if suite in LINES else "tasks"
    lines = [f"| family | passed | read from | {last} |", "|---|---|---|---|"]
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
            f"| {family} | {len(passed)} of {len(models)} | {places} | {_what(suite, models)} |"
        )
    lines.append("")
    if problems:
        lines += ["Not passed:", ""]
        lines += [
            f"* `{one.name}` ({one.family}): {one.verdict}, {_cell(one.reason)}" for one in problems
        ]
        lines.append("")
    return lines


def _what(suite: str, models: list[Result]) -> str:
    if suite in LINES:
        return f"`{models[0].name}`"
    return ", ".join(dict.fromkeys(one.task for one in models))


def _conserves(one: Result) -> bool:
    return isinstance(one.propagates, float) and one.propagates <= 1e-6


def _list(found: Iterable[Result]) -> str:
    families = sorted({one.family for one in found})
    return ", ".join(families) if families else "none"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
