"""Heads that a model computes in several calls are heads: each granularity is as for one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_transformer_lrp import (
    AttentionFlow,
    AttentionRollout,
    GenericAttention,
    RawAttention,
    TransformerAttribution,
)
from captum_transformer_lrp.errors import ExplanationError

HEADS, SIZE = 4, 8


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1) @ v


def by_pieces(q: Tensor, k: Tensor, v: Tensor, size: int) -> list[Tensor]:
    parts = zip(*(one.split(size, 1) for one in (q, k, v)), strict=True)
    return [attend(*part) for part in parts]


JOINED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "one by one, stacked": lambda q, k, v: torch.stack(
        [attend(q[:, head], k[:, head], v[:, head]) for head in range(HEADS)], 1
    ),
    "one by one, joined": lambda q, k, v: torch.cat(by_pieces(q, k, v, 1), 1),
    "halves": lambda q, k, v: torch.cat(by_pieces(q, k, v, 2), 1),
    "three and one": lambda q, k, v: torch.cat(by_pieces(q, k, v, 3), 1),
    "by features": lambda q, k, v: (
        torch.cat([one.squeeze(1) for one in by_pieces(q, k, v, 1)], -1)
        .unflatten(-1, (HEADS, -1))
        .transpose(1, 2)
    ),
    "written into": lambda q, k, v: _written(by_pieces(q, k, v, 1), v),
}


def _written(parts: list[Tensor], like: Tensor) -> Tensor:
    found = torch.zeros_like(like)
    for head, part in enumerate(parts):
        found[:, head : head + 1] = part
    return found


class Net(nn.Module):
    def __init__(self, heads: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = heads
        self.qkv = nn.ModuleList(nn.Linear(SIZE, 3 * SIZE) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(2))
        self.head = nn.Linear(SIZE, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for qkv, out in zip(self.qkv, self.out, strict=True):
            parts = (one.unflatten(2, (HEADS, -1)).transpose(1, 2) for one in qkv(x).chunk(3, -1))
            x = x + out(self.heads(*parts).transpose(1, 2).flatten(2))
        return self.head(x[:, 0])


X = torch.randn(2, 5, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def explained(method: type, model: nn.Module, granularity: str, **settings: Any) -> Tensor:
    found = method(model, **settings).attribute(X, 1, granularity=granularity)
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("granularity", ["input", "token", "matrix"])
@pytest.mark.parametrize(
    "method", [TransformerAttribution, AttentionRollout, GenericAttention, RawAttention]
)
@pytest.mark.parametrize("joined", JOINED)
def test_heads_in_several_calls_are_those_of_one(
    joined: str, method: type, granularity: str
) -> None:
    if method is GenericAttention and granularity == "matrix":
        granularity = "token"
    found = explained(method, Net(JOINED[joined]), granularity)
    expected = explained(method, Net(attend), granularity)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("joined", JOINED)
def test_so_are_flows_and_rows_of_normalised_matrices(joined: str) -> None:
    nets = Net(JOINED[joined]), Net(attend)
    flows = [explained(AttentionFlow, net, "token") for net in nets]
    assert torch.allclose(*flows, rtol=0, atol=1e-8)  # capacities are rounded to 1e-9
    rows = [TransformerAttribution(net).attribute(X, 1, row_normalize=True) for net in nets]
    assert torch.allclose(rows[0], rows[1], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("settings", [{"head_fusion": "max"}, {"discard_ratio": 0.5}])
def test_heads_that_cannot_be_seen_together_are_not_fused(settings: dict[str, Any]) -> None:
    with pytest.raises(ExplanationError, match="in several calls"):
        explained(AttentionRollout, Net(JOINED["halves"]), "token", **settings)


def test_branches_that_are_added_add_up() -> None:
    def twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v) + attend(q, k, v)

    found, single = (
        explained(RawAttention, Net(one), "matrix", layer=0) for one in (twice, attend)
    )
    assert torch.allclose(found, 2 * single)
