"""Calls that are several operations in one are explained as these operations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer_lrp import TransformerAttribution
from captum_transformer_lrp.attr.explanation import Explanation

WIDTH, TOKENS = 6, 5
SCALE = torch.linspace(0.5, 2, WIDTH).double()

PAIRS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "addcmul": (
        lambda x: torch.addcmul(x, SCALE, x.roll(1, 1), value=2),
        lambda x: x + SCALE * x.roll(1, 1) * 2,
    ),
    "addcdiv": (
        lambda x: torch.addcdiv(x, x.roll(1, 1), SCALE),
        lambda x: x + x.roll(1, 1) / SCALE,
    ),
    "lerp": (
        lambda x: torch.lerp(x, x.roll(1, 1), 0.3),
        lambda x: x * (1 - 0.3) + x.roll(1, 1) * 0.3,
    ),
    "glu": (
        lambda x: F.glu(torch.cat([x, 2 * x.roll(1, 1)], -1)),
        lambda x: x * (2 * x.roll(1, 1)).sigmoid(),
    ),
    "inner": (
        lambda x: torch.inner(x, torch.eye(WIDTH).double().roll(1, 0)),
        lambda x: x @ torch.eye(WIDTH).double().roll(1, 0).mT,
    ),
    "einsum that sums": (
        lambda x: x + torch.einsum("ntd->nd", x).unsqueeze(1),
        lambda x: x + x.sum(1).unsqueeze(1),
    ),
    "einsum of three": (
        lambda x: torch.einsum("ntd,d,de->nte", x, SCALE, torch.eye(WIDTH).double().roll(1, 0)),
        lambda x: (x * SCALE) @ torch.eye(WIDTH).double().roll(1, 0),
    ),
    "where with a number": (
        lambda x: torch.where(SCALE > 1, x, 0.5),
        lambda x: torch.where(SCALE > 1, x, torch.full((), 0.5).double()),
    ),
    "method where with a number": (
        lambda x: x.where(SCALE > 1, 0.5),
        lambda x: torch.where(SCALE > 1, x, torch.full((), 0.5).double()),
    ),
    "padding with a number": (
        lambda x: F.pad(x[..., 1:], (0, 1), value=0.5),
        lambda x: torch.cat([x[..., 1:], torch.full((*x.shape[:2], 1), 0.5).double()], -1),
    ),
    "padding with zeros": (
        lambda x: F.pad(x[..., 1:], (0, 1)),
        lambda x: torch.cat([x[..., 1:], torch.zeros(*x.shape[:2], 1).double()], -1),
    ),
}


class Model(nn.Module):
    def __init__(self, inside: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inside = inside
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head((x + F.scaled_dot_product_attention(q, k, v)).mean(1))


def explained(inside: Callable[[Tensor], Tensor]) -> Explanation:
    torch.manual_seed(0)
    model = Model(inside).double().eval()
    return TransformerAttribution(model).explain(torch.randn(2, TOKENS, WIDTH).double(), 1)


@pytest.mark.parametrize("name", PAIRS)
def test_a_call_in_one_is_the_calls_one_by_one(name: str) -> None:
    in_one, one_by_one = map(explained, PAIRS[name])
    assert torch.allclose(in_one.output, one_by_one.output, rtol=1e-12, atol=1e-12)
    assert torch.allclose(in_one.relevances[0], one_by_one.relevances[0], rtol=1e-9, atol=1e-12)
    assert torch.allclose(in_one.attributions, one_by_one.attributions, rtol=1e-9, atol=1e-12)
    assert float((in_one.total - 1).abs().max()) < 1e-9


@pytest.mark.parametrize("name", ["padding with a number", "where with a number"])
def test_a_number_that_is_filled_in_takes_its_share_and_is_reported(name: str) -> None:
    explanation = explained(PAIRS[name][0])
    arrived = explanation.relevances[0].flatten(1).sum(1)
    absorbed = torch.stack(list(explanation.absorbed.values())).sum(0)
    assert float(absorbed.abs().min()) > 1e-3
    assert torch.allclose(arrived + absorbed, torch.ones(2).double())
