"""However a model spells an operation out, its relevance and its map are those of PyTorch's own.

Float64; 1e-9 of the largest entry leaves room for rounding only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer_lrp import TransformerAttribution
from captum_transformer_lrp.rules import Call, Rule

WIDTH, HEADS, TOKENS = 8, 2, 5


class Model(nn.Module):
    """One block, in which one operation can be replaced."""

    def __init__(self, **operations: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)
        self.double().eval()
        self.activation = operations.get("activation", F.gelu)
        self.linear = operations.get("linear", F.linear)
        self.layer_norm = operations.get("layer_norm", plain_norm)
        self.readout = operations.get("readout", lambda x: x.mean(1))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.layer_norm(x, self.norm)
        qkv = self.linear(normed, self.qkv.weight, self.qkv.bias)
        q, k, v = qkv.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.mT).softmax(-1) @ v
        x = x + self.linear(mixed.transpose(1, 2).flatten(2), self.out.weight, self.out.bias)
        hidden = self.activation(self.linear(x, self.fc1.weight, self.fc1.bias))
        x = x + self.linear(hidden, self.fc2.weight, self.fc2.bias)
        return self.linear(self.readout(x), self.head.weight, self.head.bias)


def plain_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, (WIDTH,), norm.weight, norm.bias, norm.eps)


def assert_alike(model: Model, other: Model) -> None:
    inputs = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    ours, theirs = (TransformerAttribution(one).explain(inputs, 1) for one in (model, other))
    pairs: list[tuple[Any, Any]] = [
        (ours.output, theirs.output),
        (ours.attributions, theirs.attributions),
        (ours.relevances[0], theirs.relevances[0]),
        (ours.attentions[0].relevance, theirs.attentions[0].relevance),
    ]
    for found, expected in pairs:
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-9


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "GELU by tanh": (
        lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608028654 * (x + 0.044715 * x.pow(3)))),
        lambda x: F.gelu(x, approximate="tanh"),
    ),
    "GELU by tanh, x³ multiplied out": (
        lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608028654 * x * (1 + 0.044715 * x * x))),
        lambda x: F.gelu(x, approximate="tanh"),
    ),
    "GELU by erf": (lambda x: (1 + torch.erf(x / 2**0.5)) * (x * 0.5), F.gelu),
    "SiLU": (lambda x: torch.sigmoid(x) * x, F.silu),
    "SiLU of a copy": (lambda x: x.clone() * torch.sigmoid(x), F.silu),
    "SiLU by exp": (lambda x: x / (1 + torch.exp(-x)), F.silu),
    "hard swish": (lambda x: x * F.relu6(x + 3) / 6, F.hardswish),
    "mish": (lambda x: x * torch.tanh(F.softplus(x)), F.mish),
    "softsign": (lambda x: x / (1 + x.abs()), F.softsign),
    "tanhshrink": (lambda x: x - torch.tanh(x), F.tanhshrink),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation(name: str) -> None:
    spelled_out, pytorchs = ACTIVATIONS[name]
    assert_alike(Model(activation=spelled_out), Model(activation=pytorchs))


class _ToTheFirst(Rule):
    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        return relevance, *(torch.zeros_like(value) for value in call.inputs[1:])


def test_a_gate_of_other_elements_is_no_activation() -> None:
    """Two halves of one layer: a gate, whose two factors share the relevance."""

    def gated(x: Tensor) -> Tensor:
        value, gate = x.chunk(2, -1)
        return torch.cat([value * torch.sigmoid(gate)] * 2, -1)

    inputs = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    ours = TransformerAttribution(Model(activation=gated)).explain(inputs, 1)
    switched = TransformerAttribution(
        Model(activation=gated), rules={torch.mul: _ToTheFirst}
    ).explain(inputs, 1)
    difference = (ours.relevances[0] - switched.relevances[0]).abs().max()
    assert difference > 0.01 * ours.relevances[0].abs().max()


LINEARS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "matmul and bias": lambda x, weight, bias: x @ weight.T + bias,
    "einsum and bias": lambda x, weight, bias: torch.einsum("...i,oi->...o", x, weight) + bias,
    "linear and bias": lambda x, weight, bias: bias + F.linear(x, weight),
    "bias reshaped": lambda x, weight, bias: (
        F.linear(x, weight).unflatten(-1, (-1, 1)) + bias[:, None]
    ).flatten(-2),
    "a copy of the weights for each example": lambda x, weight, bias: (
        x @ weight.T.expand(*x.shape[:-2], -1, -1) + bias
    ),
    "bmm": lambda x, weight, bias: (
        torch.bmm(x.reshape(-1, *x.shape[-2:]), weight.T[None].expand(x.shape[:-2].numel(), -1, -1))
        + bias
    ).reshape(*x.shape[:-1], -1),
    "addmm": lambda x, weight, bias: torch.addmm(bias, x.flatten(0, -2), weight.T).unflatten(
        0, x.shape[:-1]
    ),
}


@pytest.mark.parametrize("name", LINEARS)
def test_a_linear_layer(name: str) -> None:
    assert_alike(Model(linear=LINEARS[name]), Model())


def standardized(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias


def by_powers(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return (
        norm.weight * (centered * centered.pow(2).mean(-1, True).add(norm.eps).rsqrt()) + norm.bias
    )


@pytest.mark.parametrize("way", [standardized, by_powers])
def test_a_norm(way: Callable[[Tensor, nn.LayerNorm], Tensor]) -> None:
    assert_alike(Model(layer_norm=way), Model())


MEAN = torch.full((1, TOKENS), 1 / TOKENS, dtype=torch.float64)
KEPT = torch.tensor([1.0, 0, 1, 1, 0]).double()
FIRST = torch.tensor([1.0, 0, 0, 0, 0]).double()


def kept(x: Tensor) -> Tensor:
    return (x * KEPT[:, None]).sum(1) / 3


READOUTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "sum": (lambda x: x.sum(1) / TOKENS, lambda x: x.mean(1)),
    "masked sum": (
        lambda x: (x * torch.ones(1, TOKENS, 1)).sum(1) / torch.ones(1, TOKENS, 1).sum(1),
        lambda x: x.mean(1),
    ),
    "einsum": (lambda x: torch.einsum("nsd,s->nd", x, MEAN[0]), lambda x: x.mean(1)),
    "matmul": (lambda x: (MEAN @ x).squeeze(1), lambda x: x.mean(1)),
    "linear": (lambda x: F.linear(x.mT, MEAN).squeeze(-1), lambda x: x.mean(1)),
    "a vector": (lambda x: x.mT @ MEAN[0], lambda x: x.mean(1)),
    "ones": (lambda x: (torch.ones_like(MEAN) @ x).squeeze(1) / TOKENS, lambda x: x.mean(1)),
    "some, einsum": (lambda x: torch.einsum("nsd,s->nd", x, KEPT / 3), kept),
    "some, matmul": (lambda x: (KEPT[None] @ x).squeeze(1) / 3, kept),
    "one, einsum": (lambda x: torch.einsum("nsd,s->nd", x, FIRST), lambda x: x[:, 0]),
    "one, matmul": (lambda x: FIRST @ x, lambda x: x[:, 0]),
}


@pytest.mark.parametrize("name", READOUTS)
def test_a_product_with_constants_that_averages_is_a_mean(name: str) -> None:
    product, mean = READOUTS[name]
    assert_alike(Model(readout=product), Model(readout=mean))


def test_a_product_with_a_vector_keeps_examples_apart() -> None:
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3)).double()

    def pooled(scores: Tensor, x: Tensor) -> Tensor:
        return (scores.softmax(1).unsqueeze(1) @ x).squeeze(1)

    plain = Model(readout=lambda x: pooled((x @ vector[:, None]).squeeze(-1), x))
    assert_alike(Model(readout=lambda x: pooled(x @ vector, x)), plain)
    by_mv = Model(readout=lambda x: pooled(torch.mv(x.flatten(0, 1), vector).view(2, -1), x))
    assert_alike(by_mv, plain)


def test_an_einsum_that_sums_nothing_scales() -> None:
    scale = torch.linspace(-1, 2, WIDTH).double()
    for equation in ("nsd,d->nsd", "nsd,d->snd", "nsd,sd->dns"):
        by = scale.expand(TOKENS, -1) if ",sd" in equation else scale
        order = ["nsd".index(one) for one in equation.split("->")[1]]
        back = [order.index(axis) for axis in range(3)]
        by_einsum = Model(
            readout=lambda x, e=equation, b=by, p=back: torch.einsum(e, x, b).permute(p).mean(1)
        )
        assert_alike(by_einsum, Model(readout=lambda x: (x * scale).mean(1)))


def test_padding_does_not_scale_the_map_of_a_masked_mean() -> None:
    def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
        return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    model = Model()
    inputs = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    padded = torch.cat([inputs, torch.randn(1, 3, WIDTH, dtype=torch.float64)], 1)

    def masked(x: Tensor) -> Tensor:
        mask = (torch.arange(x.shape[1]) < TOKENS).double()[None]
        q, k, v = model.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT).masked_fill(mask[:, None, None] == 0, -torch.inf)
        x = x + model.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return model.head(masked_mean(x, mask))

    whole = TransformerAttribution(masked).attribute(padded, 1)
    assert torch.allclose(whole[:, :TOKENS], TransformerAttribution(masked).attribute(inputs, 1))
    assert not whole[:, TOKENS:].any()
