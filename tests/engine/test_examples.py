"""Where the examples of a batch lie, read from the numbers of its elements' examples."""

from __future__ import annotations

import pytest
import torch

from captum_transformer_lrp.rules.examples import Examples, read_examples


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([[1, 1, 1], [2, 2, 2]], Examples(2, 0)),
        ([[1, 2], [1, 2], [1, 2]], Examples(2, 1)),
        ([[1, 1], [1, 1], [2, 2], [2, 2]], Examples(2, 0, (0, 0, 1, 1))),
        # padding belongs to nobody
        ([[1, 2], [1, 0]], Examples(2, 1)),
        ([[1, 1], [0, 0]], Examples(2, 0)),
        ([[0, 0], [1, 1], [2, 2]], Examples(2, 0, (-1, 0, 1))),
        # mixed along every axis
        ([[1, 2], [2, 1]], Examples(2, None)),
        ([[1, 2, 1], [1, 1, 2]], Examples(2, None)),
        ([[1, 2], [1, 1]], Examples(2, None)),
    ],
)
def test_examples_lie_along_the_axis_whose_positions_have_one_each(
    numbers: list[list[int]], expected: Examples
) -> None:
    assert read_examples(torch.tensor(numbers).float(), 2) == expected
