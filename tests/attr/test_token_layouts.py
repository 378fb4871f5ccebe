"""Where the features of a token lie, and which tokens they are, whatever a model's layout is.

Two models of the same weights, one of tokens (N, S, D) and one of another layout, compute the same
thing, so their explanations are the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer_lrp import (
    AttentionRollout,
    GenericAttention,
    PartialLRP,
    TransformerAttribution,
    TransformerLRP,
)
from tests.attr.places import built

WIDTH, GRID, PATCH, CLASSES = 12, 4, 2, 3
SIDE = GRID * PATCH
EXACT = 1e-12
"""Float64; the same sums in another order."""


class Weights(nn.Module):
    """One block with one head, and a classifier of the mean token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.project, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)


class TokensLast(Weights):
    """(N, S, D)."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        scores = self.q(x) @ self.k(x).transpose(1, 2) * WIDTH**0.5
        x = x + self.project(scores.softmax(-1) @ self.v(x))
        logits: Tensor = self.head(x.mean(1))
        return logits


class ChannelsFirst(Weights):
    """(N, C, H, W), with pointwise convolutions."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images)

        def pointwise(layer: nn.Linear, value: Tensor) -> Tensor:
            return F.conv2d(value, layer.weight[:, :, None, None], layer.bias)

        q, k, v = (pointwise(layer, x).flatten(2) for layer in (self.q, self.k, self.v))
        scores = q.transpose(1, 2) @ k * WIDTH**0.5
        x = x + pointwise(self.project, (v @ scores.softmax(-1).transpose(1, 2)).view_as(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class ChannelsFirstMoved(Weights):
    """(N, C, S), moved there behind the layer that made the tokens."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2)

        def pointwise(layer: nn.Linear, value: Tensor) -> Tensor:
            return F.conv1d(value, layer.weight[:, :, None], layer.bias)

        q, k, v = (pointwise(layer, x) for layer in (self.q, self.k, self.v))
        scores = q.transpose(1, 2) @ k * WIDTH**0.5
        x = x + pointwise(self.project, v @ scores.softmax(-1).transpose(1, 2))
        logits: Tensor = self.head(x.mean(2))
        return logits


class TokensFirst(Weights):
    """(S, N, D)."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).permute(2, 0, 1)
        q, k, v = (layer(x).transpose(0, 1) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(1, 2) * WIDTH**0.5
        x = x + self.project((scores.softmax(-1) @ v).transpose(0, 1))
        logits: Tensor = self.head(x.mean(0))
        return logits


class Folded(Weights):
    """(N · P, S / P, D): the places of every other row and column attend to each other alone."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images)
        n, d, rows, columns = x.shape
        x = x.reshape(n, d, rows // 2, 2, columns // 2, 2).permute(0, 3, 5, 2, 4, 1)
        x = x.reshape(n * 4, -1, d)
        scores = self.q(x) @ self.k(x).transpose(1, 2) * WIDTH**0.5
        x = x + self.project(scores.softmax(-1) @ self.v(x))
        logits: Tensor = self.head(x.reshape(n, 4, -1, d).mean((1, 2)))
        return logits


METHODS: dict[str, tuple[Callable[[nn.Module], Any], dict[str, Any]]] = {
    "TransformerAttribution": (TransformerAttribution, {}),
    "rows normalised": (AttentionRollout, {"row_normalize": True}),
    "AttentionRollout": (AttentionRollout, {"row_normalize": False}),
    "GenericAttention": (GenericAttention, {}),
    "PartialLRP": (PartialLRP, {}),
    "TransformerLRP": (TransformerLRP, {}),
}


def pair(kind: type[Weights]) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    plain = TokensLast().double().eval()
    other = kind().double().eval()
    other.load_state_dict(plain.state_dict())
    images = torch.randn(3, 3, SIDE, SIDE, dtype=torch.float64)
    assert (plain(images) - other(images)).abs().max() < EXACT
    return plain, other, images


@pytest.mark.parametrize("granularity", ["token", "input"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [ChannelsFirst, ChannelsFirstMoved, TokensFirst])
def test_the_layout_of_tokens_makes_no_difference(
    kind: type[Weights], method: str, granularity: str
) -> None:
    plain, other, images = pair(kind)
    attribution, options = METHODS[method]
    expected, found = (
        attribution(model).attribute(images, [0, 1, 2], granularity=granularity, **options)
        for model in (plain, other)
    )
    assert found.shape == expected.shape
    assert expected.flatten(1).std(1).min() > 0
    assert (found - expected).abs().max() < EXACT


def test_one_example_needs_no_batch_to_be_told_apart() -> None:
    for kind in (ChannelsFirst, ChannelsFirstMoved, TokensFirst):
        plain, other, images = pair(kind)
        expected, found = (
            TransformerAttribution(model).attribute(images[:1], 1, granularity="token")
            for model in (plain, other)
        )
        assert found.shape == (1, GRID * GRID)
        assert (found - expected).abs().max() < EXACT


@pytest.mark.parametrize("method", [name for name in METHODS if name != "rows normalised"])
def test_tokens_folded_into_the_batch_are_those_of_each_example(method: str) -> None:
    torch.manual_seed(0)
    model = Folded().double().eval()
    images = torch.randn(3, 3, SIDE, SIDE, dtype=torch.float64)
    attribution, options = METHODS[method]
    found = attribution(model).attribute(images, [0, 1, 2], granularity="token", **options)
    assert found.shape == (3, GRID**2)
    for place in range(3):
        alone = attribution(model).attribute(
            images[place : place + 1], place, granularity="token", **options
        )
        assert (found[place] - alone[0]).abs().max() < EXACT


class KeysInRows(Weights):
    """Two heads, the last axis of their maps, which have keys in rows and queries in columns."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        q, k, v = (layer(x).unflatten(-1, (2, -1)) for layer in (self.q, self.k, self.v))
        maps = (torch.einsum("nqhd,nkhd->nkqh", q, k) * WIDTH**0.5).softmax(1)
        x = x + self.project(torch.einsum("nkqh,nkhd->nqhd", maps, v).flatten(2))
        logits: Tensor = self.head(x.mean(1))
        return logits


class QueriesInRows(Weights):
    """The same, as usual: (N, heads, queries, keys)."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        q, k, v = (
            layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        maps = (q @ k.transpose(2, 3) * WIDTH**0.5).softmax(-1)
        x = x + self.project((maps @ v).transpose(1, 2).flatten(2))
        logits: Tensor = self.head(x.mean(1))
        return logits


def test_maps_come_with_queries_in_rows_wherever_the_model_has_them() -> None:
    torch.manual_seed(0)
    plain, other = QueriesInRows().double().eval(), KeysInRows().double().eval()
    other.load_state_dict(plain.state_dict())
    images = torch.randn(3, 3, SIDE, SIDE, dtype=torch.float64)
    expected, found = (
        TransformerAttribution(model).explain(images, [0, 1, 2]).attentions[0]
        for model in (plain, other)
    )
    for name in ("attention", "gradient", "relevance", "weighted"):
        wanted, got = getattr(expected, name), getattr(found, name)
        assert got.shape == (3, 2, GRID**2, GRID**2)
        assert (got - wanted).abs().max() < EXACT * max(1, float(wanted.abs().max()))
    for fusion in ("mean", "max"):
        for options in ({"granularity": "matrix"}, {"granularity": "token"}):
            matrices = [
                AttentionRollout(model, head_fusion=fusion).attribute(images, 1, **options)
                for model in (plain, other)
            ]
            assert (matrices[0] - matrices[1]).abs().max() < EXACT


class AddsQueries(Weights):
    """Adds queries to what they have attended to, as MViTv2 does, within the block's skip."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        q = self.q(x)
        scores = q @ self.k(x).transpose(1, 2) * WIDTH**0.5
        x = x + self.project(q + scores.softmax(-1) @ self.v(x))
        logits: Tensor = self.head(x.mean(1))
        return logits


def test_queries_that_skip_their_attention_are_no_tokens_of_the_model() -> None:
    torch.manual_seed(0)
    model = AddsQueries().double().eval()
    images = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    method = TransformerAttribution(model)
    weighted = method.explain(images, target=1).attentions[0].weighted
    # Two skips of the one attention, I each, and mass 1/S on every token of the mean.
    size = GRID * GRID
    identity = torch.eye(size, dtype=torch.float64)
    expected = (2 * identity + weighted.mean(1)).mean(1)
    found = method.attribute(images, target=1, granularity="token", keep_identity=True)
    assert (found - expected).abs().max() < EXACT


class CrossCovariance(Weights):
    """Attention between channels, read at one token."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        q, k, v = (layer(x).transpose(1, 2) for layer in (self.q, self.k, self.v))
        maps = (q @ k.transpose(1, 2)).softmax(-1)
        x = x + self.project((maps @ v).transpose(1, 2))
        logits: Tensor = self.head(x[:, 3])
        return logits


def test_attention_between_channels_moves_no_mass_between_tokens() -> None:
    torch.manual_seed(0)
    model = CrossCovariance().double().eval()
    images = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    method = TransformerAttribution(model)
    weighted = method.explain(images, target=1).attentions[0].weighted
    assert weighted.shape == (2, 1, WIDTH, WIDTH)
    # Mass is even over channels: of its rows' sums, the mean.
    gain = 1 + weighted.sum(3).mean((1, 2))
    assert (gain > 1).all()
    found = method.attribute(images, target=1, granularity="token", keep_identity=True)
    assert (found[:, 3] - gain).abs().max() < EXACT
    assert (found.sum(1) - gain).abs().max() < EXACT
    moved = method.attribute(images, target=1, granularity="token")
    assert (moved[:, 3] - (gain - 1)).abs().max() < EXACT


class ProjectedShortcut(Weights):
    """Places are merged by a convolution, on the shortcut and before the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.merge = nn.Conv2d(WIDTH, WIDTH, 2, 2)
        self.shortcut = nn.Conv2d(WIDTH, WIDTH, 2, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images)
        x = x + F.gelu(x)
        merged = self.merge(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(merged) for layer in (self.q, self.k, self.v))
        attended = self.project((q @ k.transpose(1, 2)).softmax(-1) @ v)
        x = self.shortcut(x).flatten(2).transpose(1, 2) + attended
        logits: Tensor = self.head(x[:, 0])
        return logits


def test_a_projected_shortcut_keeps_its_places() -> None:
    torch.manual_seed(0)
    model = ProjectedShortcut().double().eval()
    images = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    found = TransformerAttribution(model).attribute(images, target=1, keep_identity=True)
    by_place = F.adaptive_avg_pool2d(found.sum(1), 2).flatten(1)
    # Read at the first of four merged places, of which attention moves little.
    assert (by_place[:, 0] > 0.5 * by_place.sum(1)).all()


class ConvolvesValues(Weights):
    """Values of merged places: the convolution is the attention's, and not what makes tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.merge = nn.Conv2d(WIDTH, WIDTH, 2, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images)
        merged = self.merge(x).flatten(2).transpose(1, 2)
        q = self.q(x.flatten(2).transpose(1, 2))
        scores = q @ self.k(merged).transpose(1, 2) * WIDTH**0.5
        attended = self.project(scores.softmax(-1) @ self.v(merged))
        x = x + attended.transpose(1, 2).view_as(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_mass_reaches_tokens_through_a_convolution_of_values() -> None:
    torch.manual_seed(0)
    model = ConvolvesValues().double().eval()
    images = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    method = TransformerAttribution(model)
    weighted = method.explain(images, target=1).attentions[0].weighted
    to_merged = weighted.mean(1).mean(1).view(2, 1, GRID // 2, GRID // 2)
    to_tokens = F.interpolate(to_merged, scale_factor=2, mode="nearest") / 4
    found = method.attribute(images, target=1, granularity="token")
    assert (found - to_tokens.flatten(1)).abs().max() < EXACT


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("test_coatnet", 16),  # (N, C, H, W)
        ("test_vit", 17),
        pytest.param("mvitv2_tiny", 256, marks=pytest.mark.slow),
        pytest.param("nextvit_small", 64, marks=pytest.mark.slow),
        pytest.param("efficientformerv2_s0", 16, marks=pytest.mark.slow),
        pytest.param("iformer_t", 16, marks=pytest.mark.slow),
        pytest.param("efficientvit_m0", 16, marks=pytest.mark.slow),
    ],
)
def test_timm_models_have_as_many_tokens_as_places(name: str, tokens: int) -> None:
    options = {} if name.startswith(("nextvit", "iformer")) else {"img_size": 64}
    model = built(name, num_classes=CLASSES, **options)
    row = AttentionRollout(model).attribute(torch.randn(2, 3, 64, 64), granularity="token")
    assert row.shape == (2, tokens)
