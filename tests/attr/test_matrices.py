"""A product or a mean over blocks needs the same tokens in each: else it is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_transformer_lrp import AttentionFlow, AttentionRollout, TransformerAttribution
from captum_transformer_lrp.errors import ExplanationError
from tests.attr.methods import OF_TOKENS, each_once

TOKENS, WIDTH = 4, 8
INPUTS = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0)).double()

BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 1),
    "sorted by an index": lambda x: x[:, [2, 0, 3, 1]],
    "cat of halves": lambda x: torch.cat([x[:, 2:], x[:, :2]], 1),
    "transposed grid": lambda x: x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2),
    "pooled and repeated": lambda x: x.unflatten(1, (2, 2)).mean(2).repeat_interleave(2, 1),
    "one is dropped, another is joined": lambda x: torch.cat([x[:, 1:], x[:, :1] * 0 + 1], 1),
}
"""What a model may do to its tokens between two blocks, so that token i is another one above."""

STAYING: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "transposed and back": lambda x: x.mT.contiguous().mT,
    "rolled and back": lambda x: x.roll(1, 1).roll(-1, 1),
    "as a grid and back": lambda x: x.unflatten(1, (2, 2)).flatten(1, 2),
    "scaled": lambda x: 2 * x,
    "normalised": lambda x: nn.functional.layer_norm(x, (WIDTH,)),
}


PERMUTED = ("flip", "roll", "sorted by an index", "cat of halves", "transposed grid")


REFUSING = {
    "flow", "legrad", "attcat", "libra_layers", "norm_rollout", "alti", "bi_attention",
    "bi_attention_heads",
}  # fmt: skip
"""The methods that go by the tokens' numbers in all blocks."""


class Blocks(nn.Module):
    """Two blocks with something between them; the answer is read from the first token."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = (
            nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.0, batch_first=True) for _ in range(2)
        )
        self.between, self.head = between, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.second(self.between(self.first(x)))[:, 0])
        return answer


class Prompted(Blocks):
    """The tokens of an image are pooled and written into a text of as many tokens."""

    def forward(self, x: Tensor) -> Tensor:
        seen = self.first(x).unflatten(1, (2, 2)).mean(2)
        text = torch.cat([seen, x.new_ones(len(x), 2, WIDTH)], 1)
        answer: Tensor = self.head(self.second(text)[:, -1])
        return answer


class Shared(Blocks):
    """The only attention reads the inputs beside the tokens, as in Zamba2."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__(between)
        self.mixed, self.attention = (
            nn.Linear(WIDTH, WIDTH),
            nn.MultiheadAttention(2 * WIDTH, 2, batch_first=True),
        )
        self.back = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.mixed(x).tanh()
        both = torch.cat([tokens, x], -1)
        answer: Tensor = self.head((tokens + self.back(self.attention(both, both, both)[0]))[:, 0])
        return answer


def built(kind: type[Blocks], between: Callable[[Tensor], Tensor] = lambda x: x) -> Any:
    torch.manual_seed(0)
    return kind(between).eval().double()


def assert_no_matrix(model: nn.Module) -> None:
    for method in (TransformerAttribution(model), AttentionRollout(model)):
        with pytest.raises(ExplanationError, match="no one matrix over all tokens"):
            method.attribute(INPUTS, 1, granularity="matrix")
        assert bool(method.attribute(INPUTS, 1).any())
    with pytest.raises(ExplanationError, match="no one matrix over all tokens"):
        AttentionFlow(model).attribute(INPUTS, 1)


@pytest.mark.parametrize("between", BETWEEN)
def test_tokens_that_move_between_blocks_have_no_matrix(between: str) -> None:
    assert_no_matrix(built(Blocks, BETWEEN[between]))


def test_tokens_that_are_written_into_as_many_others_have_no_matrix() -> None:
    assert_no_matrix(built(Prompted))


def test_a_single_attention_that_reads_more_than_its_tokens_has_no_matrix() -> None:
    assert_no_matrix(built(Shared))


@pytest.mark.parametrize("between", STAYING)
def test_the_row_of_the_matrix_is_the_row_over_tokens(between: str) -> None:
    method = TransformerAttribution(built(Blocks, STAYING[between]))
    matrix = method.attribute(INPUTS, 1, granularity="matrix")
    row = method.attribute(INPUTS, 1, granularity="token")
    moved = matrix - torch.eye(TOKENS)
    assert float((moved[:, 0] - row).abs().max()) <= 1e-12 * float(row.abs().max())


@pytest.mark.parametrize(("method", "between"), each_once(PERMUTED, OF_TOKENS, times=2))
def test_tokens_that_move_are_followed_or_refused(between: str, method: str) -> None:
    """Blocks do to each token the same, so that they may as well be moved first."""
    move, model = BETWEEN[between], built(Blocks, BETWEEN[between])

    def moved_first(x: Tensor) -> Tensor:
        answer: Tensor = model.head(model.second(model.first(move(x)))[:, 0])
        return answer

    if method in REFUSING:
        with pytest.raises(ExplanationError, match=r"the tokens of second\.self_attn are not"):
            OF_TOKENS[method](model).attribute(INPUTS, 1)
        return
    found = OF_TOKENS[method](model).attribute(INPUTS, 1)
    expected = OF_TOKENS[method](moved_first).attribute(INPUTS, 1)
    assert float((found - expected).abs().max()) <= 1e-9 * float(expected.abs().max())
