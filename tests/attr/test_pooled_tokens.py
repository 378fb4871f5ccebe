"""``pooled="each"``: every token that is pooled is explained as if it were the class token.

That the numbers are those of the definition is in tests/independent/test_swin.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer_lrp import ExplanationError, TransformerAttribution
from tests.attr.conftest import Case

WIDTH, HEADS, TOKENS = 8, 2, 5
Readout = Callable[[Tensor], Tensor]


class Model(nn.Module):
    """Two blocks of attention on embeddings, and a readout."""

    def __init__(self, readout: Readout = lambda x: x.mean(1)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)
        self.double().eval()
        self.readout = readout

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for qkv in self.qkv:
            q, k, v = qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            scores = q @ k.mT
            if mask is not None:
                scores = scores.masked_fill(mask[:, None, None] == 0, -torch.inf)
            x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        if mask is not None:
            pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        else:
            pooled = self.readout(x)
        out: Tensor = self.head(pooled)
        return out


def inputs(count: int = 3, tokens: int = TOKENS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, tokens, WIDTH, dtype=torch.float64, generator=generator)


def each(model: nn.Module) -> TransformerAttribution:
    return TransformerAttribution(model, pooled="each")


def close(found: Tensor, expected: Tensor) -> None:
    """Float64 rounding, magnified by the divisions of eq. 2."""
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-9


def test_models_that_read_one_token_have_the_same_map_to_the_last_bit(case: Case) -> None:
    together = case.attribution.attribute(case.inputs, 1, case.kwargs)
    alone = each(case.model).attribute(case.inputs, 1, case.kwargs)
    assert torch.equal(alone, together) == (int(case.readout.count_nonzero()) == 1)


def test_a_mean_over_one_token_is_a_class_token() -> None:
    found = each(Model(lambda x: x[:, 2:3].mean(1))).attribute(inputs(), 1)
    close(found, TransformerAttribution(Model(lambda x: x[:, 2])).attribute(inputs(), 1))


def test_pooled_tokens_get_another_map_by_themselves_than_together() -> None:
    """Which is the point: relevance and gradient of a token are not watered down by others."""
    found, together = each(Model()), TransformerAttribution(Model())
    maps = [one.attribute(inputs(), 1, granularity="token") for one in (found, together)]
    shares = [one / one.sum(1, keepdim=True) for one in maps]
    assert float((shares[0] - shares[1]).abs().max()) > 0.01


@pytest.mark.parametrize(
    "readout",
    [
        lambda x: x.sum(1) / TOKENS,
        lambda x: x.mT.mean(-1),
        lambda x: F.adaptive_avg_pool1d(x.mT, 1).flatten(1),
        lambda x: F.avg_pool1d(x.mT, TOKENS).squeeze(-1),
        lambda x: x.transpose(0, 1).mean(0),
        lambda x: x.unflatten(1, (TOKENS, 1)).mean((1, 2)),
    ],
)
def test_however_a_mean_is_spelled_the_map_is_the_same(readout: Readout) -> None:
    close(each(Model(readout)).attribute(inputs(), 1), each(Model()).attribute(inputs(), 1))


def test_a_maximum_is_pooling_too() -> None:
    found = each(Model(lambda x: x.amax(1))).attribute(inputs(), 1)
    assert bool((found >= 0).all())
    assert bool((found.flatten(1).sum(1) > 0).all())
    close(found, each(Model(lambda x: x.max(1).values)).attribute(inputs(), 1))
    close(
        found, each(Model(lambda x: F.max_pool1d(x.mT, TOKENS).squeeze(-1))).attribute(inputs(), 1)
    )


@pytest.mark.parametrize("granularity", ["input", "token"])
def test_a_batch_is_its_examples_one_by_one(granularity: str) -> None:
    method, batch = each(Model()), inputs()
    whole = method.attribute(batch, [0, 1, 2], granularity=granularity)
    for n, one in enumerate(batch):
        close(whole[n], method.attribute(one[None], n, granularity=granularity)[0])


def test_a_grid_is_pooled_over_both_its_axes() -> None:
    grid = Model(lambda x: x.unflatten(1, (2, 3)).permute(0, 3, 1, 2).mean((2, 3)))
    tokens = inputs(2, 6)
    close(each(grid).attribute(tokens, 1), each(Model()).attribute(tokens, 1))


def test_padding_changes_nothing_and_gets_nothing() -> None:
    short = inputs(2)
    long = torch.cat([short, inputs(2, 3)], 1)
    mask = torch.cat([torch.ones(2, TOKENS), torch.zeros(2, 3)], 1).double()
    whole = each(Model()).attribute(long, 1, mask)
    assert not whole[:, TOKENS:].any()
    close(whole[:, :TOKENS], each(Model()).attribute(short, 1, mask[:, :TOKENS]))


def test_the_embeddings_sum_to_the_tokens_and_a_tuple_gets_a_tuple() -> None:
    method = each(Model())
    (of_embeddings,) = method.attribute((inputs(),), 1)
    close(of_embeddings.sum(-1), method.attribute(inputs(), 1, granularity="token"))


def test_relevance_stays_a_distribution() -> None:
    explanation = each(Model()).explain(inputs(), 1)
    assert torch.allclose(explanation.total, torch.ones(3).double(), atol=1e-9)
    assert torch.equal(explanation.attributions, each(Model()).attribute(inputs(), 1))


def test_where_no_token_is_relevant_the_map_is_zero() -> None:
    model = Model()
    nn.init.zeros_(model.head.weight)
    assert not each(model).attribute(inputs(), 1).any()


def test_there_is_no_one_matrix() -> None:
    with pytest.raises(ValueError, match="pooled"):
        each(Model()).attribute(inputs(), 1, granularity="matrix")
    with pytest.raises(ValueError, match="pooled"):
        each(Model()).attribute(inputs(), 1, row_normalize=True)


def test_tokens_that_are_read_in_an_unknown_way_are_an_error() -> None:
    weights = torch.full((TOKENS,), 1 / TOKENS).double()
    model = Model(lambda x: torch.einsum("nsd,s->nd", x, weights))
    with pytest.raises(ExplanationError, match="several tokens"):
        each(model).attribute(inputs(), 1)


def test_the_option_must_be_known() -> None:
    with pytest.raises(ValueError, match="pooled"):
        TransformerAttribution(Model(), pooled="all")  # type: ignore[arg-type]
