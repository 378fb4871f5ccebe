"""How often each method finds the letter that was copied: ``python -m tests.letters.measure``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from captum_transformer_lrp.attr.comparison import METHODS, compare
from tests.letters.data import MODELS, PLACES, Prompts, draw, trained


def found(model: Any, prompts: Prompts, method: str) -> tuple[float, float]:
    """How often the map is highest, of the prompt's letters, at the first and second capital."""
    text = torch.cat([prompts.ids, prompts.capitals[:, :1]], 1)
    targets = {
        str(which): [(PLACES + which, one) for one in prompts.capitals[:, which].tolist()]
        for which in range(2)
    }
    maps = compare(model, text, targets, [method], additional_forward_args={"use_cache": False})
    first, second = (
        float((one[:, :PLACES].argmax(1) == prompts.places[:, which]).float().mean())
        for which, one in enumerate(maps[method].values())
    )
    return first, second


def rows(methods: Sequence[str], count: int) -> list[str]:
    """The table of the documentation."""
    prompts = draw(count, torch.Generator().manual_seed(2))
    models = {name: trained(name) for name in MODELS}
    lines = []
    for method in methods:
        cells = []
        for model in models.values():
            try:
                cells.append(f"{50 * sum(found(model, prompts, method)):.0f}")
            except Exception as error:  # a method may refuse a model, which the table says
                print(f"{method}: {error}", flush=True)
                cells.append("–")
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS), help="which methods")
    parser.add_argument("--prompts", type=int, default=200, help="how many")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    arguments = parser.parse_args()
    rows(arguments.methods, arguments.prompts)


if __name__ == "__main__":
    main()
