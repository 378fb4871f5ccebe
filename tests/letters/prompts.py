"""Copying models and their prompts, as ``benchmark generation`` reads them.

``python -m tests.letters.prompts FOLDER`` writes a folder for each model, and prompts beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from captum_transformer_lrp.benchmarks import Prompt
from tests.letters.data import MODELS, NAMES, PLACES, draw, tokenizer, trained


def copied(count: int, seed: int = 2) -> list[Prompt]:
    """Two prompts for each text, one for each of its capitals; only its letters are looked at."""
    drawn, found = draw(count, torch.Generator().manual_seed(seed)), []
    for text, capitals, places in zip(
        drawn.texts, drawn.capitals.tolist(), drawn.places.tolist(), strict=True
    ):
        written = [NAMES[one] for one in capitals]
        for number, place in enumerate(places):
            read = " ".join([text, *written[:number]])
            evidence = ((2 * place, 2 * place + 1),)
            found.append(Prompt(read, written[number], evidence, ((0, 2 * PLACES - 1),)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=50, help="how many texts")
    given = parser.parse_args()
    lines = [json.dumps(vars(one)) + "\n" for one in copied(given.count)]
    for name in MODELS:
        trained(name).save_pretrained(given.folder / name)
        tokenizer().save_pretrained(given.folder / name)
        (given.folder / f"{name}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
