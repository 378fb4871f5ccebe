"""How often each method finds the digit that was asked for: ``python -m tests.seeing.measure``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from captum_transformer_lrp import TokenActivationMap, compare, examples
from captum_transformer_lrp.attr.comparison import METHODS
from captum_transformer_lrp.examples.training.digit_reader import (
    PATCH,
    SIDE,
    Questions,
    answer_ids,
    answer_logits,
    draw,
)

TAM: Final = "token_activation_map"
_REMOVE: Final = ("feature_ablation", "shapley_value_sampling", "kernel_shap", "lime")


def answered(model: Any, count: int) -> Questions:
    """Questions about held-out digits that the model answers rightly."""
    questions = draw(2 * count, torch.Generator().manual_seed(2), held_out=True)
    with torch.no_grad():
        found = answer_logits(model, questions).argmax(-1)
    return questions.of((found == answer_ids(questions)).nonzero()[:count, 0])


def maps(model: Any, questions: Questions, method: str) -> Tensor:
    """The map of each answer, (N, 24, 24)."""
    ids, pixels, answers = questions.input_ids, questions.pixel_values, answer_ids(questions)

    def logits(pixels: Tensor, ids: Tensor) -> Tensor:
        return model(input_ids=ids, pixel_values=pixels, use_cache=False).logits

    if method == TAM:
        tam = TokenActivationMap(logits, model.config.image_token_index)
        targets = [(ids.shape[1] - 1, answer) for answer in answers.tolist()]
        of_pixels, _ = tam.attribute((pixels, ids), targets)
        return of_pixels.sum(1)
    found = compare(
        lambda pixels, ids: logits(pixels, ids)[:, -1], pixels, {"answer": answers}, [method],
        additional_forward_args=ids, options=_options(method, pixels),
    )  # fmt: skip
    return found[method]["answer"]


def _options(method: str, pixels: Tensor) -> Mapping[str, Mapping[str, Any]]:
    """Captum's methods start from black, and remove a patch at a time."""
    place = torch.arange(SIDE) // PATCH
    cells = (place[:, None] * (SIDE // PATCH) + place).expand(1, *pixels.shape[1:])
    window, black = (pixels.shape[1], PATCH, PATCH), -torch.ones_like(pixels)
    removal: dict[str, Any] = {"feature_mask": cells.contiguous(), "baselines": black}
    found: dict[str, Mapping[str, Any]] = {
        "integrated_gradients": {"baselines": black},
        "deep_lift": {"baselines": black},
        "occlusion": {"sliding_window_shapes": window, "strides": window, "baselines": black},
        **dict.fromkeys(_REMOVE, removal),
    }
    return {method: found[method]} if method in found else {}


def found(values: Tensor, questions: Questions) -> tuple[Tensor, Tensor]:
    """Of which answers the digit asked for has the larger mass, and of which the highest pixel."""
    boxes = torch.stack([questions.box(0), questions.box(1)], 1)
    mass = (values[:, None] * boxes).sum((2, 3))
    asked = questions.sides[:, None]
    larger = mass.gather(1, asked) > mass.gather(1, 1 - asked)
    highest = values.flatten(1).argmax(1)
    box = boxes[torch.arange(len(values)), questions.sides]
    return larger[:, 0], box.flatten(1).gather(1, highest[:, None])[:, 0]


def rates(methods: Sequence[str], count: int) -> dict[str, int]:
    """By method the per cent of answers that it finds, of those methods that explain the model."""
    model, _ = examples.digit_reader()
    questions = answered(model, count)
    known = {}
    for method in methods:
        try:
            larger, highest = found(maps(model, questions, method), questions)
        except Exception as error:  # a method may refuse a model, which the page says
            print(f"{method}: {error}", flush=True)
            continue
        known[method] = round(100 * float(larger.double().mean()))
        box = 100 * float(highest.double().mean())
        print(f"{method}: {known[method]} %, {box:.0f} % by the highest pixel", flush=True)
    return known


def table(rates: Mapping[str, int]) -> str:
    """The table of the documentation: the methods with a rate together, the best first."""
    lines = ["| found | methods |", "|---|---|"]
    for rate in sorted(set(rates.values()), reverse=True):
        names = ", ".join(f"`{name}`" for name, one in rates.items() if one == rate)
        lines.append(f"| {rate} | {names} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=[*METHODS, TAM], help="which methods")
    parser.add_argument("--prompts", type=int, default=200, help="how many")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    arguments = parser.parse_args()
    print(table(rates(arguments.methods, arguments.prompts)))


if __name__ == "__main__":
    main()
