"""Several passes in one output: each has its own last attention and its own tokens.

Where an output is a sum of terms of one pass each, the map of a pass is that of its term alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import captum_transformer_lrp as methods
from captum_transformer_lrp.errors import ExplanationError

# Sums of a few hundred float64 numbers of one size.
EXACT = 1e-9
WIDTH = 8
ALL = [
    "TransformerAttribution", "GenericAttention", "AttentionRollout", "RawAttention", "PartialLRP",
    "AttentionGradCam", "AttentionFlow", "NormRollout", "AttCat", "LeGrad", "BiAttention",
]  # fmt: skip
# The product of I and maps that are scaled is not scaled alike, but that of one map without the I.
SETTINGS: dict[str, dict[str, Any]] = {
    "BiAttention": {"n_steps": 3},
    "TransformerAttribution": {"layers": [-1]},
    "PartialLRP": {"preset": "paper"},
}
OF_ONE_PASS = {"LeGrad", "BiAttention"}


class Attention(nn.Module):
    """Softmax attention of one head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if memory is not None:
            _, k, v = self.qkv(memory).chunk(3, -1)
        return (q @ k.mT / WIDTH**0.5).softmax(-1) @ v


class Tower(nn.Module):
    """Tokens (N, S, D), blocks of attention, a score of the first token."""

    def __init__(self, seed: int, depth: int = 2) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList([Attention() for _ in range(depth)])
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x[:, 0])


def built(*, seed: int = 0, depth: int = 2) -> Tower:
    return Tower(seed, depth).double().eval()


def tokens(count: int, seed: int = 3) -> Tensor:
    return torch.randn(1, count, 4, dtype=torch.float64, generator=torch.manual_seed(seed))


def explained(name: str, forward: Any, inputs: Any, **options: Any) -> Any:
    return getattr(methods, name)(forward, **SETTINGS.get(name, {})).attribute(
        inputs, target=0, **options
    )


Passes = Callable[[], tuple[Callable[..., Tensor], list[Callable[[Tensor], Tensor]], list[Tensor]]]


def one_model() -> Any:
    model = built()
    return (
        lambda a, b: model(a) + 0.5 * model(b),
        [model, lambda b: 0.5 * model(b)],
        [tokens(5), tokens(5, 4)],
    )


def other_sizes() -> Any:
    model = built()
    return lambda a, b: model(a) + model(b), [model, model], [tokens(5), tokens(7)]


def towers() -> Any:
    of_a, of_b = built(), built(seed=1, depth=3)
    return lambda a, b: of_a(a) + of_b(b), [of_a, of_b], [tokens(5), tokens(5, 4)]


def shallow_towers() -> Any:
    of_a, of_b = built(seed=7, depth=1), built(seed=8, depth=1)
    return lambda a, b: of_a(a) + of_b(b), [of_a, of_b], [tokens(5), tokens(5, 4)]


def three_in_a_loop() -> Any:
    model = built()
    inputs = [tokens(5, seed) for seed in range(3)]
    return lambda *given: sum(model(one) for one in given), [model] * 3, inputs


CASES: dict[str, Passes] = {
    "one model": one_model,
    "other sizes": other_sizes,
    "towers": towers,
    "shallow towers": shallow_towers,
    "three in a loop": three_in_a_loop,
}


def shape_of(map: Tensor) -> Tensor:
    """A map scaled to its largest entry: how relevance is divided among terms is not asked here."""
    return map / map.abs().max()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ALL)
def test_each_pass_has_the_map_of_its_term(name: str, case: str) -> None:
    together, alone, inputs = CASES[case]()
    if name in OF_ONE_PASS:
        with pytest.raises(ExplanationError, match=r"passes, which end in .*blocks.* and "):
            explained(name, together, tuple(inputs))
        return
    found = explained(name, together, tuple(inputs))
    for map, term, given in zip(found, alone, inputs, strict=True):
        expected = explained(name, term, given)
        assert float(expected.abs().max()) > 0
        assert torch.allclose(shape_of(map), shape_of(expected), rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", [name for name in ALL if name not in OF_ONE_PASS | set(SETTINGS)])
def test_two_views_of_one_input_add_up(name: str) -> None:
    model, x = built(), tokens(5)
    found = explained(name, lambda x: model(x) + model(x.flip(1)), x)
    expected = explained(name, model, x) + explained(name, model, x.flip(1)).flip(1)
    assert torch.allclose(found, expected, rtol=0, atol=EXACT * float(expected.abs().max()))


@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_a_second_model_that_nobody_asks_changes_nothing(name: str, is_last: bool) -> None:
    model, other, x = built(), built(seed=1, depth=3), tokens(5)

    def with_other(x: Tensor) -> Tensor:
        if not is_last:
            other(x)
        result = model(x)
        if is_last:
            other(x)
        return result

    found, expected = explained(name, with_other, x), explained(name, model, x)
    assert torch.allclose(found, expected, rtol=0, atol=EXACT * float(expected.abs().max()))


@pytest.mark.parametrize("granularity", ["token", "matrix"])
@pytest.mark.parametrize("name", ["TransformerAttribution", "AttentionRollout", "RawAttention"])
def test_rows_and_matrices_of_two_passes_are_refused_by_name(name: str, granularity: str) -> None:
    together, _, inputs = towers()
    with pytest.raises(ExplanationError, match=r"2 passes, .*attention 1\) and blocks.2"):
        explained(name, together, tuple(inputs), granularity=granularity)


def test_layers_are_counted_in_each_pass() -> None:
    together, (of_a, of_b), inputs = towers()
    method = methods.AttentionRollout(together)
    found = method.attribute(tuple(inputs), target=0, start_layer=1)
    for map, term, given in zip(found, (of_a, of_b), inputs, strict=True):
        expected = methods.AttentionRollout(term).attribute(given, target=0, start_layer=1)
        assert torch.allclose(map, expected, rtol=0, atol=EXACT)
    with pytest.raises(ValueError, match="one of the model's 2 attentions"):
        method.attribute(tuple(inputs), target=0, start_layer=2)


class EncoderDecoder(nn.Module):
    """As many tokens on either side, so that sizes do not tell them apart."""

    def __init__(self, *, attends_itself: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 1)
        self.encoder, self.itself, self.cross = Attention(), Attention(), Attention()
        self.attends_itself = attends_itself

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        memory, y = self.embed(x), self.embed(y)
        memory = memory + self.encoder(memory)
        if self.attends_itself:
            y = y + self.itself(y)
        y = y + self.cross(y, memory)
        return self.head(y[:, 0])


@pytest.mark.parametrize("attends_itself", [True, False])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("GenericAttention", {"granularity": "matrix"}),
        ("AttentionRollout", {"row_normalize": True}),
        ("AttentionFlow", {}),
        ("AttCat", {}),
        ("NormRollout", {}),
        ("LeGrad", {}),
        ("BiAttention", {}),
    ],
    ids=str,
)
def test_two_sequences_of_one_size_are_not_taken_for_one(
    name: str, options: dict[str, Any], attends_itself: bool
) -> None:
    model = EncoderDecoder(attends_itself=attends_itself).double().eval()
    with pytest.raises(ExplanationError, match=r"does not attend within the tokens of"):
        explained(name, model, (tokens(5), tokens(5, 4)), **options)


class Parallel(nn.Module):
    """Blocks of two attentions on the same tokens, in several spellings."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 1)
        self.pairs = nn.ModuleList([nn.ModuleList([Attention(), Attention()]) for _ in range(2)])
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for one, other in self.pairs:
            if self.spelling == "sum":
                x = x + (one(x) + other(x))
            elif self.spelling == "one by one":
                x = x + one(x) + other(x)
            else:
                x = x + torch.stack([one(x), other(x)]).sum(0)
        return self.head(x[:, 0])


@pytest.mark.parametrize("spelling", ["sum", "one by one", "stack"])
def test_matrices_of_attentions_beside_each_other_add_up(spelling: str) -> None:
    model, x = Parallel(spelling).double().eval(), tokens(5)
    matrix = methods.AttentionRollout(model).attribute(x, granularity="matrix")
    row = methods.AttentionRollout(model).attribute(x, 0, granularity="token", keep_identity=True)
    assert torch.allclose(matrix[:, 0], row, rtol=0, atol=EXACT)
    # A row of either map sums to 1, so that I + A + B of two blocks has rows of 9.
    assert torch.allclose(row.sum(1), torch.full((1,), 9.0, dtype=torch.float64))
