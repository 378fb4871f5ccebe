"""What two inputs make is no skip connection of one around the other; each term of a sum is alike.

Token mass tells: a skip connection around an MLP takes all of it, terms of a sum share it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer_lrp import TransformerLRP
from captum_transformer_lrp.engine.phases import Rollout

WIDTH = 6
WEIGHT = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)).double()


def mlp(x: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, WEIGHT)), WEIGHT)


def mass(operation: Callable[..., Tensor], *inputs: Tensor) -> list[float]:
    """The part of an answer's mass that comes to each of the inputs."""
    method = TransformerLRP(operation, dtype=torch.float64)
    with method._recorded(inputs, None) as recording:
        start = torch.zeros_like(recording.output)
        start[:, 1] = 1
        found = recording.tape.backward(Rollout(), recording.output, start, recording.all_leaves)
    return [float(one.sum()) / len(start) for one in found]


def inputs(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, WIDTH, generator=generator).double() for _ in range(count)]


TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda a, b: a + mlp(b),
    "other way around": lambda a, b: mlp(a) + b,
    "difference": lambda a, b: a - mlp(b),
    "multiple": lambda a, b: torch.add(a, mlp(b), alpha=2),
    "copy": lambda a, b: a.clone() + mlp(b),
    "stack": lambda a, b: torch.stack([a, mlp(b)]).sum(0),
    "in place": lambda a, b: mlp(b).add_(a),
    "scaled": lambda a, b: 1.5 * a + mlp(b),
}


@pytest.mark.parametrize("spelling", TWO)
def test_an_input_is_no_skip_connection_around_another(spelling: str) -> None:
    assert mass(TWO[spelling], *inputs(2)) == pytest.approx([0.5, 0.5])


def test_an_input_is_a_skip_connection_around_what_is_made_of_it() -> None:
    both = mass(lambda a, b: (a + mlp(a)) + mlp(b), *inputs(2))
    assert both == pytest.approx([0.5, 0.5])
    alone = mass(lambda a, b: (a + b) + mlp(a + b), *inputs(2))
    assert alone == pytest.approx([0.5, 0.5])


THREE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "one after another": lambda a, b, c: a + b + c,
    "with a bias": lambda a, b, c: (a + b + WEIGHT[0]) + c,
    "with a number": lambda a, b, c: c + (a + b + 1),
    "scaled": lambda a, b, c: 0.5 * (a + b) + c,
    "copied": lambda a, b, c: (a + b).clone() + c,
    "moved": lambda a, b, c: (a + b).flip(1) + c,
}


@pytest.mark.parametrize("spelling", THREE)
def test_terms_of_a_sum_share_its_mass(spelling: str) -> None:
    assert mass(THREE[spelling], *inputs(3)) == pytest.approx([1 / 3] * 3)


ROWS = torch.tensor([0, 1])

ADDED: dict[str, Callable[[Tensor], Tensor]] = {
    "index_add": lambda x: x.index_add(1, ROWS, x[:, 2:4]),
    "scatter_add": lambda x: x.scatter_add(1, ROWS.expand(2, 2), x[:, 2:4]),
    "scatter_reduce": lambda x: x.scatter_reduce(1, ROWS.expand(2, 2), x[:, 2:4], "sum"),
    "index_reduce": lambda x: x.index_reduce(1, ROWS, x[:, 2:4], "mean"),
    "in place": lambda x: x.clone().index_add_(1, ROWS, x[:, 2:4]),
}


@pytest.mark.parametrize("spelling", ADDED)
def test_no_mass_is_lost_where_parts_of_a_stream_are_added_to_it(spelling: str) -> None:
    """As where tokens are merged: what nothing is added to keeps all of its mass."""
    (found,) = mass(lambda x: mlp(ADDED[spelling](mlp(x))), *inputs(1))
    assert found == pytest.approx(1)
