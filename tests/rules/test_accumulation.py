"""Mixtures of experts: rows sorted by expert, a weight for each group, and added up again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PLACES = torch.tensor([2, 0, 2, 3, 0])


def test_relevance_of_a_sum_at_given_places_is_eq_2(
    equations: Any, noise: Callable[..., Tensor]
) -> None:
    onto, rows = noise(1, 4, 3), noise(1, 5, 3)

    def added(onto: Tensor, rows: Tensor) -> Tensor:
        return onto.index_add(1, PLACES, rows)

    relevance = equations.seed(added(onto, rows))
    found = equations.propagate(added, onto, rows, relevance=relevance)
    for one, expected in zip(
        found.inputs, equations.eq_2(added, [onto, rows], relevance), strict=True
    ):
        assert torch.allclose(one, expected, atol=1e-9)
    assert torch.allclose(found.total, torch.ones(1).double(), atol=1e-9)


def test_relevance_where_nothing_was_added_is_absorbed(
    equations: Any, noise: Callable[..., Tensor]
) -> None:
    """Row 1 stays 0: in eq. 2 its relevance is 0/0."""
    rows = noise(1, 5, 3)

    def added(rows: Tensor) -> Tensor:
        return torch.zeros(1, 4, 3).double().index_add(1, PLACES, rows)

    relevance = equations.seed(added(rows))
    found = equations.propagate(added, rows, relevance=relevance)
    assert torch.allclose(found.absorbed, relevance[:, 1].sum().reshape(1), atol=1e-9)
    assert torch.allclose(found.total, torch.ones(1).double(), atol=1e-9)


def test_adding_row_after_row_is_the_sum_of_all(
    equations: Any, noise: Callable[..., Tensor]
) -> None:
    """As mixtures of experts do, one expert after the other."""
    rows = noise(1, 3, 4)

    def one_by_one(rows: Tensor) -> Tensor:
        total = torch.zeros(1, 4).double()
        for row in range(3):
            total.index_add_(0, torch.tensor([0]), rows[:, row])
        return total

    relevance = equations.seed(rows.sum(1))
    found = equations.propagate(one_by_one, rows, relevance=relevance)
    at_once = equations.propagate(lambda rows: rows.sum(1), rows, relevance=relevance)
    assert torch.allclose(found.inputs[0], at_once.inputs[0], atol=1e-9)


def test_scatter_add_is_index_add_element_by_element(
    equations: Any, noise: Callable[..., Tensor]
) -> None:
    rows = noise(2, 5)
    places = torch.tensor([[0, 1, 0, 2, 2], [1, 1, 2, 0, 0]])

    def added(rows: Tensor) -> Tensor:
        return torch.zeros(2, 3).double().scatter_add(1, places, rows)

    relevance = equations.seed(added(rows))
    found = equations.propagate(added, rows, relevance=relevance)
    closed = rows * (relevance / added(rows)).gather(1, places)
    assert torch.allclose(found.inputs[0], closed, atol=1e-9)


def test_a_grouped_matrix_product_is_a_linear_layer_for_each_group(
    equations: Any, noise: Callable[..., Tensor]
) -> None:
    rows, experts = noise(6, 3), noise(2, 3, 4)
    ends = torch.tensor([2, 6], dtype=torch.int32)
    relevance = equations.seed(noise(6, 4))

    def grouped(rows: Tensor) -> Tensor:
        return torch._grouped_mm(rows, experts, offs=ends)

    def plain(rows: Tensor) -> Tensor:
        return torch.cat([rows[:2] @ experts[0], rows[2:] @ experts[1]])

    found = equations.propagate(grouped, rows, relevance=relevance)
    assert torch.allclose(found.output, plain(rows))
    expected = equations.eq_5(plain, rows, relevance)
    assert torch.allclose(found.inputs[0], expected, atol=1e-9)
