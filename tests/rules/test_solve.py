"""Triangular systems of two activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.mark.parametrize("unitriangular", [False, True])
def test_relevance_of_a_solution_is_eq_2_normalised_by_eq_9_and_10(
    equations: Any, noise: Callable[..., Tensor], unitriangular: bool
) -> None:
    matrix = noise(2, 4, 4).tril() + 2 * torch.eye(4).double()
    right = noise(2, 4, 3)

    def solved(matrix: Tensor, right: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(
            matrix, right, upper=False, unitriangular=unitriangular
        )

    relevance = equations.seed(solved(matrix, right))
    found = equations.propagate(solved, matrix, right, relevance=relevance)
    expected = equations.per_example(
        lambda values, r: equations.eq_9_and_10(equations.eq_2(solved, values, r), r),
        [matrix, right],
        relevance,
    )
    for one, other in zip(found.inputs, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-9)
    assert torch.allclose(found.total, torch.ones(2).double(), atol=1e-9)
