"""Small corpora in the format of ERASER, for the tests of the benchmarks on texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REVIEWS = (
    ("neg_1", "NEGATIVE", "a dull , tired film that wastes its cast .", ((1, 4), (6, 9))),
    ("pos_1", "POSITIVE", "a witty , warm and moving film , see it !", ((1, 6),)),
    ("neg_2", "NEGATIVE", "the plot is absurd . i did n't laugh once .", ((3, 4), (6, 9))),
    (
        "pos_2",
        "POSITIVE",
        "its actors are wonderful , the end is a delight .",
        ((3, 4), (9, 10)),
    ),
    ("neg_3", "NEGATIVE", "bad , boring and far too long .", ((0, 3), (4, 7))),
    ("pos_3", "POSITIVE", "one of the best films of the year .", ((3, 5),)),
)


def annotation(
    name: str, label: str, text: str, spans: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """A line of a split's file."""
    tokens = text.split()
    evidence = [
        {
            "docid": name,
            "start_token": start,
            "end_token": end,
            "text": " ".join(tokens[start:end]),
        }
        for start, end in spans
    ]
    return {"annotation_id": name, "classification": label, "evidences": [evidence]}


def write_corpus(
    folder: Path,
    reviews: Sequence[tuple[str, str, str, Sequence[tuple[int, int]]]] = REVIEWS,
    splits: Sequence[str] = ("test",),
) -> Path:
    """Write the same reviews as every split."""
    (folder / "docs").mkdir(parents=True)
    for name, _, text, _ in reviews:
        (folder / "docs" / name).write_text(text + "\n", encoding="utf-8")
    lines = "".join(json.dumps(annotation(*review)) + "\n" for review in reviews)
    for split in splits:
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def change_annotation(folder: Path, index: int, split: str = "test", **changes: Any) -> None:
    """Change one annotation; keys of its first evidence are changed there."""
    file = folder / f"{split}.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    evidence = next(iter(lines[index]["evidences"][0]), {})
    for key, value in changes.items():
        (evidence if key in evidence else lines[index])[key] = value
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
