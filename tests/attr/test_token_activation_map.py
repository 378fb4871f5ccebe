"""Token activation maps: the equations once more, entry by entry, and Captum's contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from captum_transformer_lrp import ArgumentError, TokenActivationMap
from captum_transformer_lrp.attr.token_activation_map import rank_gaussian, without_interference

IMAGE, WORDS, ROWS, COLUMNS = 1, 9, 3, 4
PROMPTS = {
    "image first": [IMAGE] * 12 + [2, 3, 4, 5],
    "text around": [2, 3] + [IMAGE] * 12 + [4, 5, 6],
    "a word twice": [IMAGE] * 12 + [2, 7, 3, 7],
    "the answer has begun": [IMAGE] * 12 + [2, 3, 4, 6, 8],
    "one word": [IMAGE] * 12 + [2],
}
START = {"the answer has begun": 15}


class Reads(nn.Module):
    """Logits of a language model that sees: any that depend on both inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.of_words = nn.Embedding(10, WORDS)
        self.of_places = nn.Embedding(32, WORDS)
        self.drops = nn.Dropout(0.5)

    def forward(self, ids: Tensor, pixels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        places = self.of_places(torch.arange(ids.shape[1]))
        seen = pixels.mean((1, 2, 3))[:, None, None] * places.sin()
        return self.of_words(ids) + places + seen


def reads() -> Reads:
    torch.manual_seed(0)
    return Reads().double().eval()


def given(prompt: str, count: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(count, 3, 9, 12, generator=generator, dtype=torch.float64)
    return torch.tensor([PROMPTS[prompt]] * count), pixels


def spelled_out(
    logits: npt.NDArray[Any], ids: list[int], word: int, start: int
) -> npt.NDArray[Any]:
    """The value of every token, by loops over the equations."""
    last = len(ids) - 1
    image = [place for place, one in enumerate(ids) if one == IMAGE]
    text = [place for place, one in enumerate(ids) if one != IMAGE]
    # Where the model says each word: a prompt's at its own place, an answer's a place before.
    said = [(place, place if place < start else place - 1) for place in text]
    said = [(place, where) for place, where in said if where < last]
    positive = np.maximum(logits, 0)
    activation = np.array([positive[place, word] for place in image])
    interference, total = np.zeros(len(image)), 0.0
    for number, (place, where) in enumerate(said):
        if ids[place] != word:
            token = int(logits[where].argmax()) if number == 0 else ids[place]
            weight = positive[where, word]
            interference += weight * np.array([positive[one, token] for one in image])
            total += weight
    if total > 0:
        interference /= total
        scale = minimize_scalar(lambda x: ((activation - x * interference) ** 2).sum()).x
        activation = np.maximum(activation - scale * interference, 0)
    both = np.array([*activation, *(positive[where, word] for _, where in said)])
    both = (both - both.min()) / (both.max() - both.min())
    grid = np.pad(both[: len(image)].reshape(ROWS, COLUMNS), 1, mode="reflect")
    found = np.zeros(len(ids))
    for number, place in enumerate(image):
        row, column = divmod(number, COLUMNS)
        window = np.sort(grid[row : row + 3, column : column + 3].reshape(-1))
        if window.mean() > 0:
            sigma = window.std() / window.mean()
            weights = np.array([np.exp(-((rank - 4) ** 2) / (2 * sigma**2)) for rank in range(9)])
            found[place] = (window * weights).sum() / weights.sum()
    for (place, _), value in zip(said, both[len(image) :], strict=True):
        found[place] = value
    return found


@pytest.mark.parametrize("word", [2, 5, 7])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_map_is_that_of_the_equations(prompt: str, word: int) -> None:
    model, (ids, pixels) = reads(), given(prompt)
    start = START.get(prompt)
    method = TokenActivationMap(model, IMAGE, answer_start=start, grid=(ROWS, COLUMNS))
    found = method.attribute((ids, pixels), (-1, word), granularity="token")
    logits = model(ids, pixels)[0].detach().numpy()
    expected = spelled_out(logits, ids[0].tolist(), word, start or ids.shape[1])
    # SciPy's optimiser finds the scale to about 1e-8.
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_the_image_gets_the_tokens_values_and_the_text_its_own() -> None:
    model, inputs = reads(), given("text around")
    method = TokenActivationMap(model, IMAGE)
    of_ids, of_pixels = method.attribute(inputs, (-1, 5))
    row = method.attribute(inputs, (-1, 5), granularity="token")
    is_image = inputs[0] == IMAGE
    torch.testing.assert_close(of_ids, row.masked_fill(is_image, 0))
    assert of_pixels.shape == inputs[1].shape
    # Each token's patch is 3 × 3 pixels, and bilinear upsampling keeps the value at its middle.
    middle = of_pixels.sum(1)[:, 1::3, 1::3]
    torch.testing.assert_close(middle.flatten(1), row[is_image][None])
    assert not any(one.requires_grad for one in (of_ids, of_pixels, row))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_inputs_may_come_in_either_order(order: tuple[int, int]) -> None:
    model, inputs = reads(), given("image first")
    expected = TokenActivationMap(model, IMAGE).attribute(inputs, (-1, 5))
    turned = TokenActivationMap(lambda *given: model(*(given[n] for n in order)), IMAGE)
    found = turned.attribute(tuple(inputs[n] for n in order), (-1, 5))
    for place, one in zip(order, found, strict=True):
        torch.testing.assert_close(one, expected[place])


def test_a_batch_is_explained_as_its_examples_one_by_one_and_padding_gets_nothing() -> None:
    model, (ids, pixels) = reads(), given("image first", 3)
    mask = torch.ones_like(ids)
    mask[1, -2] = 0
    method = TokenActivationMap(model, IMAGE)
    targets = [(-1, 2), (-1, 5), (13, 3)]
    together = method.attribute((ids, pixels), targets, {"attention_mask": mask})
    for n, target in enumerate(targets):
        alone = method.attribute(
            (ids[n : n + 1], pixels[n : n + 1]), target, {"attention_mask": mask[n : n + 1]}
        )
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], other[n])
    assert together[0][1, -2] == 0
    assert (together[0][2, 14:] == 0).all(), "later words have no part"


def test_several_targets_are_those_of_one_at_a_time() -> None:
    model, inputs = reads(), given("image first")
    method = TokenActivationMap(model, IMAGE)
    for target, found in zip(
        [(-1, 2), (-2, 7)], method.attribute_targets(inputs, [(-1, 2), (-2, 7)]), strict=True
    ):
        for one, other in zip(found, method.attribute(inputs, target), strict=True):
            torch.testing.assert_close(one, other)


def test_nothing_is_left_behind() -> None:
    model, (ids, pixels) = reads().train(), given("image first")
    pixels.requires_grad_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    TokenActivationMap(model, IMAGE).attribute((ids, pixels), (-1, 5))
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert pixels.grad is None
    assert torch.is_grad_enabled()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_the_words_before_light_up_anyway_is_taken_away() -> None:
    lit = torch.tensor([[1.0, 2.0, 0.0, 0.0]])
    nothing = without_interference(3 * lit[0], lit.T, torch.tensor([0.7]))
    assert float(nothing.abs().max()) < 1e-6
    apart = torch.tensor([0.0, 0.0, 1.0, 2.0])
    torch.testing.assert_close(without_interference(apart, lit.T, torch.tensor([0.7])), apart)
    torch.testing.assert_close(without_interference(apart, 0 * lit.T, torch.tensor([0.0])), apart)


@pytest.mark.parametrize("shape", [(5, 5), (2, 7), (1, 4), (1, 1)])
def test_the_filter_keeps_what_is_the_same_everywhere(shape: tuple[int, int]) -> None:
    same = torch.full((2, *shape), 0.3)
    torch.testing.assert_close(rank_gaussian(same), same)
    assert (rank_gaussian(0 * same) == 0).all()
    assert rank_gaussian(same, 1) is same


WRONG: dict[str, tuple[Any, Any, str]] = {
    "no pixels": (lambda ids, pixels: (ids,), {}, "expected token ids"),
    "pixels twice": (lambda ids, pixels: (pixels, pixels), {}, "expected token ids"),
    "no image among the ids": (lambda ids, pixels: (ids + 1, pixels), {}, "no image_token 1"),
    "another grid": (lambda ids, pixels: (ids, pixels), {"grid": (5, 5)}, r"give grid="),
    "pixels of another shape": (
        lambda ids, pixels: (ids, pixels[..., :1]), {}, "12 tokens .*give grid="
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_told(case: str) -> None:
    change, options, message = WRONG[case]
    with pytest.raises(ArgumentError, match=message):
        TokenActivationMap(reads(), IMAGE, **options).attribute(
            change(*given("image first")), (-1, 5)
        )


def test_other_options_are_told() -> None:
    with pytest.raises(ArgumentError, match="kernel_size must be"):
        TokenActivationMap(reads(), IMAGE, kernel_size=2)
    method = TokenActivationMap(lambda ids, pixels: reads()(ids, pixels)[:, -1:], IMAGE)
    with pytest.raises(ArgumentError, match=r"logits .* of every token"):
        method.attribute(given("image first"), (-1, 5))
    method, unknown = TokenActivationMap(reads(), IMAGE), "matrix"
    with pytest.raises(ValueError, match="granularity"):
        method.attribute(given("image first"), (-1, 5), granularity=unknown)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [None, 5, (-1, 99), (40, 2), lambda logits: logits.sum((1, 2))])
def test_a_target_that_the_output_has_not_is_told(target: Any) -> None:
    with pytest.raises(ValueError, match="target"):
        TokenActivationMap(reads(), IMAGE).attribute(given("image first"), target)
