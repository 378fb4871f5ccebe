"""Token ids are followed to the embeddings that are looked up for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer_lrp import TransformerAttribution

IDS = torch.tensor([[5, 6, 7, 8], [9, 1, 2, 3]])


def padded(ids: Tensor) -> Tensor:
    return F.pad(ids, (0, 2), value=1)


def shifted(ids: Tensor) -> Tensor:
    """As encoder–decoder models do: behind a start token."""
    result = ids.new_zeros(ids.shape)
    result[:, 1:] = ids[:, :-1].clone()
    result[:, 0] = 4
    return result


def joined(ids: Tensor) -> Tensor:
    return torch.cat([torch.full((2, 1), 3), ids], 1)


def hashed(ids: Tensor) -> Tensor:
    return ((ids + 1) * 7) % 10


def transposed(ids: Tensor) -> Tensor:
    return ids.t().contiguous().t()


def masked(ids: Tensor) -> Tensor:
    return ids.masked_fill(ids == 7, 0)


def written_through_a_view(ids: Tensor) -> Tensor:
    result = torch.zeros(2, 6, dtype=torch.long)
    result[:, 2:].copy_(ids)
    return result


class Model(nn.Module):
    """Attention over the embeddings of what ``prepare`` makes of the ids."""

    def __init__(self, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.prepare = prepare
        self.table = nn.Embedding(12, 6)
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.of_embeddings(self.table(self.prepare(ids)))

    def of_embeddings(self, x: Tensor) -> Tensor:
        x = x + (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)
        result: Tensor = self.head(x.mean(1))
        return result


PLACES = {
    padded: [0, 1, 2, 3, None, None],
    shifted: [None, 0, 1, 2],
    joined: [None, 0, 1, 2, 3],
    hashed: [0, 1, 2, 3],
    transposed: [0, 1, 2, 3],
    written_through_a_view: [None, None, 0, 1, 2, 3],
}


@pytest.mark.parametrize("prepare", PLACES, ids=lambda one: one.__name__)
def test_what_embeddings_get_is_their_token_s(prepare: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Model(prepare).double().eval()
    found = TransformerAttribution(model).explain(IDS, 1)
    embedded = model.table(prepare(IDS)).detach()
    plain = TransformerAttribution(model.of_embeddings).explain(embedded, 1)
    places = PLACES[prepare]
    of_tokens, lost = torch.zeros(2, 4, 6).double(), torch.zeros(2).double()
    for position, place in enumerate(places):
        amount = plain.relevances[0][:, position]
        if place is None:
            lost += amount.sum(-1)
        else:
            of_tokens[:, place] += amount
    assert torch.allclose(found.relevances[0], of_tokens, atol=1e-9)
    assert torch.allclose(found.absorbed.get("table.weight", torch.zeros(2)).double(), lost)
    assert torch.allclose(found.total, torch.ones(2).double(), atol=1e-6)


def test_an_id_that_the_model_overwrites_gets_nothing() -> None:
    torch.manual_seed(0)
    model = Model(masked).double().eval()
    found = TransformerAttribution(model).attribute(IDS, 1, keep_identity=True)
    assert isinstance(found, Tensor)
    assert not found[IDS == 7].any()
    assert (found[IDS != 7] > 0).all()
