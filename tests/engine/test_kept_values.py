"""What is not kept of a call is computed again, and gives the same map to the bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_transformer_lrp import GenericAttention, TransformerAttribution, TransformerLRP
from captum_transformer_lrp.engine.graph import switch
from captum_transformer_lrp.engine.graph.op import Keeps
from captum_transformer_lrp.rules.kernels import MatmulKernel

WIDTH, TOKENS = 4, 40
X = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))

SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "@": lambda q, k: q @ k.mT,
    "einsum": lambda q, k: torch.einsum("bqd,bkd->bqk", q, k),
    "bmm": lambda q, k: torch.bmm(q, k.transpose(1, 2)),
    "baddbmm": lambda q, k: torch.baddbmm(torch.zeros(1), q, k.mT, beta=0, alpha=0.5),
    "masked": lambda q, k: (q @ k.mT).masked_fill(torch.ones(TOKENS, TOKENS).triu(1) > 0, -1e9),
    "scaled in place": lambda q, k: (q @ k.mT).mul_(0.5),
}


class Attention(nn.Module):
    def __init__(self, scores: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.scores = scores
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            q, k, v = self.qkv(x).chunk(3, -1)
            x = x + self.scores(q, k).softmax(-1) @ v
        found: Tensor = self.head(x[:, 0])
        return found


@pytest.mark.parametrize(
    "method",
    [
        TransformerAttribution,
        GenericAttention,
        partial(TransformerLRP, preset="attnlrp"),
        partial(TransformerLRP, preset="lrp"),
    ],
)
@pytest.mark.parametrize("spelling", SCORES)
def test_scores_of_many_tokens_are_computed_again(
    spelling: str, method: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Attention(SCORES[spelling])
    kept = []
    record = switch.TapeSwitch.forward

    def noted(ctx: Any, tape: Any, op: Any, keeps: Keeps, *rest: Any) -> Tensor:
        kept.append(keeps)
        return record(ctx, tape, op, keeps, *rest)

    monkeypatch.setattr(switch.TapeSwitch, "forward", staticmethod(noted))
    found = method(model).attribute(X, target=1)
    # An einsum keeps its output.
    assert (Keeps.INPUTS in kept) == (spelling != "einsum")

    class NoKernel(MatmulKernel):
        """No call's."""

    monkeypatch.setattr(switch, "MatmulKernel", NoKernel)
    kept.clear()
    expected = method(model).attribute(X, target=1)
    assert Keeps.INPUTS not in kept
    assert torch.equal(found, expected)
    assert bool(found.any())


def test_several_targets_and_batches_in_pieces_too() -> None:
    torch.manual_seed(0)
    method = TransformerLRP(Attention(SCORES["@"]), preset="attnlrp")
    together = method.attribute_targets(X, [0, 1, 2])
    for target, found in enumerate(together):
        torch.testing.assert_close(found, method.attribute(X, target=target))
