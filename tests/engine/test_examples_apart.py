"""A model that mixes the examples of a batch: an error; one that moves them: a map for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer_lrp import AttentionRollout, TransformerAttribution
from captum_transformer_lrp.errors import ExplanationError

# Sums of a few hundred float64 numbers of one size.
EXACT = 1e-9
WIDTH, TOKENS, EXAMPLES = 8, 5, 3

Step = Callable[["Net", Tensor, Tensor], Tensor]


class Net(nn.Module):
    """One block of attention, and what is done with the tokens before and after it."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.step = step
        self.qkv, self.other = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Linear(EXAMPLES, EXAMPLES)
        self.head = nn.Linear(WIDTH, 3)

    def attend(self, x: Tensor, by: nn.Linear) -> Tensor:
        q, k, v = by(x).chunk(3, -1)
        mixed: Tensor = (q @ k.mT).softmax(-1) @ v
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.step(self, x, self.attend(x, self.qkv))[:, 0])
        return found


def inputs() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(EXAMPLES, TOKENS, WIDTH, dtype=torch.float64, generator=generator)


def normalised(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0)


def _written(x: Tensor, places: Any, y: Tensor) -> Tensor:
    x = x.clone()
    x[places] = y
    return x


def _softmax(scores: Tensor) -> Tensor:
    weights = (scores - scores.max()).exp()
    return weights / weights.sum(-1, keepdim=True)


ORDER = torch.tensor([2, 0, 1])
ROWS = torch.arange(EXAMPLES)[:, None], torch.arange(TOKENS)

MIXED: dict[str, Step] = {
    "mean": lambda net, x, y: x + y + x.mean(0),
    "largest": lambda net, x, y: x + y - x.amax(0, keepdim=True),
    "roll": lambda net, x, y: x + y + x.roll(1, 0),
    "flip": lambda net, x, y: x + y * x.flip(0).sigmoid(),
    "sort": lambda net, x, y: x + y.sort(0).values,
    "sorted tokens": lambda net, x, y: (x + y).sort(dim=0)[0],
    "topk": lambda net, x, y: x + y.topk(EXAMPLES, 0).values,
    "by index": lambda net, x, y: x + y[ORDER],
    "of the first": lambda net, x, y: x + y + x[:1],
    "less the first": lambda net, x, y: x + y - x[0],
    "where": lambda net, x, y: torch.where(x > 0, x, x.roll(1, 0)) + y,
    "cumsum": lambda net, x, y: x + y.cumsum(0),
    "put elsewhere": lambda net, x, y: x.index_put((ORDER,), y, accumulate=True),
    "all put on one": lambda net, x, y: x.index_put(
        (torch.zeros_like(ORDER),), y, accumulate=True
    ),
    "written elsewhere": lambda net, x, y: x + _written(x, ORDER, y),
    "index_copy": lambda net, x, y: x + x.index_copy(0, ORDER, y),
    "index_add": lambda net, x, y: x.index_add(0, ORDER, y),
    "batch norm": lambda net, x, y: normalised(x + y),
    "batch norm of attention": lambda net, x, y: x + normalised(y),
    "norm over the batch": lambda net, x, y: x + y / y.norm(dim=0, keepdim=True),
    "softmax over the batch": lambda net, x, y: x + y.softmax(0),
    "layer norm over all": lambda net, x, y: x + F.layer_norm(y, y.shape),
    "linear over the batch": lambda net, x, y: x + net.mix(y.transpose(0, 2)).transpose(0, 2),
    "einsum over the batch": lambda net, x, y: x + torch.einsum(
        "bsd,be->esd", y, net.mix.weight
    ),
    "matmul over the batch": lambda net, x, y: x + (
        net.mix.weight @ y.transpose(0, 1)
    ).transpose(0, 1),
    "convolution over the batch": lambda net, x, y: x + F.conv1d(
        y.permute(1, 0, 2), net.mix.weight[..., None]
    ).permute(1, 0, 2),
    "attention between examples": lambda net, x, y: x + y + net.attend(
        x.transpose(0, 1), net.other
    ).transpose(0, 1),
    "attention between answers": lambda net, x, y: x + net.attend(
        (x + y).mean(1), net.other
    )[:, None],
    "attention between features": lambda net, x, y: x + y + (
        (x[..., 0] @ y[..., 0].T).softmax(-1) @ y[..., 1]
    )[..., None],
    "each with each, of others": lambda net, x, y: x + y * (x[:, 0] @ y[:, 0].T)[:, :1, None],
    "einsum of examples": lambda net, x, y: x + torch.einsum("bsd,csd->bcd", x, y).sum(
        1, keepdim=True
    ),
    "answers of others": lambda net, x, y: (x + y)[ORDER],
    "less the mean": lambda net, x, y: x + y - y.mean(0),
    "less the largest": lambda net, x, y: x + (y - y.max(0).values).sigmoid(),
    "less what is detached": lambda net, x, y: x + y - y.mean(0).detach(),
    "less what is made of the detached": lambda net, x, y: x + y - y.detach().mean(0),
    "by the norm of the detached": lambda net, x, y: x + y / y.detach().norm(dim=0),
    "normalize": lambda net, x, y: x + F.normalize(y, dim=0),
    "log-softmax": lambda net, x, y: x + F.log_softmax(y, 0),
    "softmax of no axis": lambda net, x, y: x + F.softmax(y),
    "rms norm over all": lambda net, x, y: x + F.rms_norm(y, y.shape),
    "torch's layer norm": lambda net, x, y: x + torch.layer_norm(y, y.shape),
    "group norm of tokens first": lambda net, x, y: x + F.group_norm(
        y.transpose(0, 1), 1
    ).transpose(0, 1),
    "pooling": lambda net, x, y: x + F.avg_pool1d(y.permute(1, 2, 0), 3, 1, 1).permute(2, 0, 1),
    "resizing": lambda net, x, y: x + F.interpolate(
        y.permute(1, 2, 0), size=EXAMPLES, mode="linear"
    ).permute(2, 0, 1),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("step", MIXED)
@pytest.mark.parametrize("method", [TransformerAttribution, AttentionRollout])
def test_what_mixes_examples_is_refused(method: type[AttentionRollout], step: str) -> None:
    model = Net(MIXED[step]).double().eval()
    with pytest.raises(ExplanationError, match="one example at a"):
        method(model).attribute(inputs(), 1)
    assert method(Net(lambda net, x, y: x + y).double().eval()).attribute(inputs(), 1).any()


MIXED_GATES: dict[str, Step] = {
    "each with each, normalised": lambda net, x, y: x + y * torch.linalg.vector_norm(
        x[:, 0] @ y[:, 0].T, dim=1
    )[:, None, None],
    "each with each, summed": lambda net, x, y: x + y * (
        x[:, 0] @ y[:, 0].T
    ).mean(1)[:, None, None],
    "each with each, multiplied": lambda net, x, y: x + y * (
        x[:, 0] @ y[:, 0].T @ net.mix.weight
    )[:, :1, None],
}  # fmt: skip
"""Relevance goes to these, mass goes to what they are multiplied with."""


@pytest.mark.parametrize("step", MIXED_GATES)
def test_gates_that_mix_examples_are_refused(step: str) -> None:
    model = Net(MIXED_GATES[step]).double().eval()
    with pytest.raises(ExplanationError, match="one example at a"):
        TransformerAttribution(model).attribute(inputs(), 1)


def test_a_loss_over_the_batch_is_nobodys_business() -> None:
    def step(net: Net, x: Tensor, y: Tensor) -> Tensor:
        logits = x[:, 0] @ y[:, 0].T
        F.cross_entropy(logits, ROWS[0][:, 0])
        return x + y * logits.diagonal()[:, None, None]

    plain = APART["each with itself, of each with each"]
    found, expected = (
        TransformerAttribution(Net(one).double().eval()).attribute(inputs(), 1)
        for one in (step, plain)
    )
    assert torch.equal(found, expected)


APART: dict[str, Step] = {
    "there and back": lambda net, x, y: x + y.roll(1, 0).mul(2).roll(-1, 0),
    "rolled alike": lambda net, x, y: (x.roll(1, 0) + y.roll(1, 0)).roll(-1, 0),
    "by index and back": lambda net, x, y: (x[ORDER] + y[ORDER])[ORDER.argsort()],
    "one by one": lambda net, x, y: torch.stack([a + b for a, b in zip(x, y, strict=True)]),
    "attention one by one": lambda net, x, y: x + torch.cat(
        [net.attend(one[None], net.qkv) for one in x]
    ),
    "attention of two axes": lambda net, x, y: x + torch.stack(
        [net.attend(one, net.qkv) for one in x.unbind()]
    ),
    "tokens sorted": lambda net, x, y: x + y.sort(1).values,
    "written in place": lambda net, x, y: x + _written(x, ROWS, y),
    "put in place": lambda net, x, y: x.index_put(ROWS, y, accumulate=True),
    "tokens put twice": lambda net, x, y: x.index_put(
        (ROWS[0], torch.zeros_like(ROWS[1])), y, accumulate=True
    ),
    "tokens first": lambda net, x, y: (x.transpose(0, 1) + y.transpose(0, 1)).transpose(0, 1),
    "sums of tokens": lambda net, x, y: x + y + x.mean(1, keepdim=True),
    "cumsum of tokens": lambda net, x, y: x + y.cumsum(1),
    "folded": lambda net, x, y: (x.flatten(0, 1) + y.flatten(0, 1)).unflatten(0, (EXAMPLES, -1)),
    "einsum": lambda net, x, y: x + torch.einsum("bst,btd->bsd", x @ y.mT, y),
    "less the mean of features": lambda net, x, y: x + y - y.mean(-1, keepdim=True),
    "less what is detached": lambda net, x, y: x + y - y.detach().amax(1, keepdim=True),
    "normalize": lambda net, x, y: x + F.normalize(y, dim=-1),
    "group norm": lambda net, x, y: x + F.group_norm(y, 1),
    "instance norm": lambda net, x, y: x + F.instance_norm(y),
    "pooling of tokens": lambda net, x, y: x + F.avg_pool1d(y.mT, 3, 1, 1).mT,
    "each with itself, of each with each": lambda net, x, y: x + y * (
        x[:, 0] @ y[:, 0].T
    ).diagonal()[:, None, None],
    "each with itself, by index": lambda net, x, y: x + y * (
        2 * x[:, 0] @ y[:, 0].T
    )[ROWS[0][:, 0], ROWS[0][:, 0], None, None],
    "each with itself, transposed": lambda net, x, y: x + y * (
        x[:, 0] @ y[:, 0].T
    ).T.tanh().diagonal()[:, None, None],
    "softmax less the largest of all": lambda net, x, y: x + _softmax(x @ y.mT) @ y,
}  # fmt: skip


WRITTEN_FOR_A_BATCH = {
    "by index and back",
    "written in place",
    "put in place",
    "tokens put twice",
    "folded",
    "each with itself, by index",
}


@pytest.mark.parametrize("step", APART)
def test_what_moves_examples_has_for_each_the_map_that_it_has_alone(step: str) -> None:
    model = Net(APART[step]).double().eval()
    method = TransformerAttribution(model)
    together = method.explain(inputs(), 1)
    assert torch.allclose(together.total, torch.ones(EXAMPLES, dtype=torch.float64))
    if step not in WRITTEN_FOR_A_BATCH:
        for place, one in enumerate(inputs()):
            alone, found = method.attribute(one[None], 1)[0], together.attributions[place]
            assert torch.allclose(found, alone, rtol=0, atol=EXACT * float(alone.abs().max()))
