"""Rules that pass relevance on unchanged, and eq. 2 for pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNCHANGED: dict[str, Callable[[Tensor], Tensor]] = {
    "GELU": F.gelu,
    "GELU, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "ReLU": F.relu,
    "ReLU in place": lambda x: F.relu_(x.clone()),
    "SiLU": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "method": lambda x: x.tanh(),
    "softplus": F.softplus,
    "clamp": lambda x: x.clamp(min=-0.5),
    "exp": torch.exp,
    "softmax": lambda x: x.softmax(-1),
    "functional softmax": lambda x: F.softmax(x, dim=1),
    "log-softmax": lambda x: x.log_softmax(-1),
    "LayerNorm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "RMSNorm": lambda x: F.rms_norm(x, x.shape[-1:]),
    "GroupNorm": lambda x: F.group_norm(x, 2),
    "scaling by a number": lambda x: 3 * x,
    "scaling by a negative number": lambda x: x * -0.5,
    "division by a number": lambda x: x / 8,
    "scaling by a parameter": lambda x: x * torch.linspace(-1, 1, 6).double(),
    "division by a parameter": lambda x: x / torch.linspace(1, 2, 6).double(),
    "negation": lambda x: -x,
    "scaling in place": lambda x: x.clone().mul_(2),
    "inactive dropout": lambda x: F.dropout(x, 0.5, training=False),
    "detour by float32": lambda x: x.float().double(),
    "a norm written out": lambda x: (
        (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    ),
    "an RMS norm written out": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "L2 normalisation": lambda x: F.normalize(x, dim=-1),
    "L2 normalisation written out": lambda x: x / x.norm(dim=-1, keepdim=True),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_relevance_passes_unchanged_through(equations: Any, noise: Any, name: str) -> None:
    found = equations.propagate(UNCHANGED[name], noise(2, 4, 6))
    relevance = equations.seed(found.output)
    assert torch.allclose(found.inputs[0], relevance, rtol=1e-9, atol=1e-12)
    assert not found.absorbed.any()


@pytest.mark.parametrize(
    "module",
    [nn.GELU(), nn.Softmax(-1), nn.LayerNorm(6), nn.GroupNorm(2, 4), nn.Identity(), nn.Dropout()],
    ids=lambda module: type(module).__name__,
)
def test_relevance_passes_unchanged_through_the_module(
    equations: Any, noise: Any, module: nn.Module
) -> None:
    found = equations.propagate(module.double().eval(), noise(2, 4, 6))
    assert torch.allclose(found.inputs[0], equations.seed(found.output), rtol=1e-9, atol=1e-12)


def test_relevance_passes_unchanged_through_batch_norm_in_eval_mode(
    equations: Any, noise: Any
) -> None:
    module = nn.BatchNorm1d(4).double().eval()
    nn.init.normal_(module.running_mean)
    found = equations.propagate(module, noise(2, 4, 6))
    assert torch.allclose(found.inputs[0], equations.seed(found.output), rtol=1e-9, atol=1e-12)


MOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "reshape": lambda x: x.reshape(2, -1),
    "permute": lambda x: x.permute(0, 2, 1),
    "transpose": lambda x: x.mT,
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(2, 1),
    "chunks": lambda x: torch.cat(x.chunk(2, -1)[::-1], -1),
    "splits": lambda x: torch.cat(x.split([1, 3], 1), 1),
    "unbound": lambda x: torch.stack(x.unbind(1), 1),
    "indices": lambda x: x[:, [3, 2, 1, 0]],
    "index_select": lambda x: x.index_select(1, torch.tensor([1, 0, 3, 2])),
    "gather": lambda x: x.gather(1, torch.tensor([1, 0, 3, 2])[None, :, None].expand(2, 4, 6)),
    "padding": lambda x: F.pad(x, (1, 2)),
    "where": lambda x: torch.where(torch.ones(4, 6).bool(), x, torch.zeros(()).double()),
    "clone": lambda x: x.clone().contiguous(),
}


@pytest.mark.parametrize("name", MOVED)
def test_relevance_moves_with_its_elements_through(equations: Any, noise: Any, name: str) -> None:
    x = noise(2, 4, 6)
    found = equations.propagate(MOVED[name], x)
    expected = torch.autograd.functional.vjp(MOVED[name], x, equations.seed(found.output))[1]
    assert torch.equal(found.inputs[0], expected)


def test_relevance_of_what_is_cut_away_is_none(equations: Any, noise: Any) -> None:
    found = equations.propagate(lambda x: x[:, 0], noise(2, 4, 6))
    assert not found.inputs[0][:, 1:].any()
    assert torch.allclose(found.total, torch.ones(2).double())


def test_relevance_of_several_consumers_adds_up(equations: Any, noise: Any) -> None:
    found = equations.propagate(lambda x: torch.cat([x, x.tanh()], -1), noise(2, 6))
    expected = equations.seed(found.output)
    assert torch.allclose(found.inputs[0], expected[:, :6] + expected[:, 6:])


def test_masked_scores_keep_their_relevance_and_give_no_nan(equations: Any, noise: Any) -> None:
    hidden = torch.ones(4, 4).triu(1).bool()
    found = equations.propagate(
        lambda x: x.masked_fill(hidden, -torch.inf).softmax(-1), noise(2, 4, 4)
    )
    assert bool(found.inputs[0].isfinite().all())


POOLINGS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "mean over tokens": (lambda x: x.mean(1), (2, 4, 6)),
    "mean over features": (lambda x: x.mean(-1, keepdim=True), (2, 4, 6)),
    "mean over both": (lambda x: x.mean((1, 2)), (2, 4, 6)),
    "sum": (lambda x: x.sum(1), (2, 4, 6)),
    "torch.sum": (lambda x: torch.sum(x, dim=1), (2, 4, 6)),
    "average pooling": (lambda x: F.avg_pool2d(x, 2), (2, 3, 4, 4)),
    "adaptive average pooling": (lambda x: F.adaptive_avg_pool2d(x, 2), (2, 3, 5, 5)),
    "average pooling in 1 dimension": (lambda x: F.avg_pool1d(x, 2), (2, 3, 6)),
    "max pooling": (lambda x: F.max_pool2d(x, 2), (2, 3, 4, 4)),
    "maximum over tokens": (lambda x: x.amax(1), (2, 4, 6)),
    "bilinear interpolation": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        (2, 2, 3, 3),
    ),
}


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_follows_eq_2(equations: Any, noise: Any, name: str) -> None:
    pool, shape = POOLINGS[name]
    x = noise(*shape)
    found = equations.propagate(pool, x)
    (expected,) = equations.per_example(
        lambda inputs, of_output: equations.eq_2(pool, inputs, of_output),
        [x],
        equations.seed(found.output),
    )
    assert float((found.inputs[0] - expected).abs().max()) < 1e-9 * float(expected.abs().max())
    assert float((found.total - 1).abs().max()) < 1e-9
