"""From the results of the sweeps to the page ``docs/models.md``."""

from __future__ import annotations

import re
from collections.abc import Iterable
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
        "Most likely. The library watches PyTorch calls, not types of modules, so it needs no list "
        "of architectures. A call without a rule is an error that names the call.",
        "",
        "A sweep tries it: `python -m tests.sweep timm` and `python -m tests.sweep transformers` "
        "build every architecture with random weights. A model passes if",
        "",
        "* watching leaves its output as it is,",
        "* gradients are those of autograd,",
        "* Σ R = 1 ± 1e-6,",
        "* maps have the shape of the inputs and differ between classes,",
        "* no example of a batch changes the map of another.",
        "",
    ]
    for suite, found in suites.items():
        lines += _suite(suite, found)
    return "\n".join(lines).rstrip() + "\n"


def _suite(suite: str, found: list[Result]) -> list[str]:
    attending = [one for one in found if one.verdict == "passed" or one.softmax_attention]
    passed = sum(one.verdict == "passed" for one in attending)
    others = [one for one in found if one not in attending]
    conserving = [one for one in others if _conserves(one)]
    return [
        f"## {suite}",
        "",
        f"{passed} of {len(found)} models pass. The others stand below, with the reason. "
        f"[The sweep over {suite}](sweep/{suite}.jsonl) has each model.",
        "",
        *_uses(suite, found),
        *_families(attending, suite),
        *_problems(one for one in attending if one.verdict != "passed"),
        "**Without softmax attention** there is no attention map, and the methods of the paper say "
        "so. `TransformerLRP` still divides relevance among pixels or embeddings: "
        f"{_list(conserving)}.",
        "",
        *_problems(one for one in others if one not in conserving),
    ]


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
    """The families of which a model passes, by task."""
    lines = []
    for task in dict.fromkeys(one.task for one in found):
        chosen = [one for one in found if one.task == task and one.verdict == "passed"]
        title = "Families" if suite in LINES else task.capitalize()
        lines += [f"**{title}:** {_list(chosen)}.", ""]
    return lines


def _problems(found: Iterable[Result]) -> list[str]:
    """The models that do not pass, one for each reason."""
    by_reason: dict[str, list[str]] = {}
    for one in found:
        reason = _cell(str(one.propagates or one.reason)).partition(": file one with")[0]
        if one.verdict != "not built":  # the cause stands behind what was found, if it is known
            reason = reason.rpartition("; ")[2]
        known = re.sub(r"[\d.]+e-?\d+", "…", reason)
        by_reason.setdefault(known, []).append(one.name)
    if not by_reason:
        return []
    lines = [
        f"* {', '.join(f'`{name}`' for name in names)}: {reason}"
        for reason, names in by_reason.items()
    ]
    return ["Not passed:", "", *lines, ""]


def _conserves(one: Result) -> bool:
    return isinstance(one.propagates, float) and one.propagates <= 1e-6


def _list(found: Iterable[Result]) -> str:
    families = sorted({one.family for one in found})
    return ", ".join(families) if families else "none"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
