"""Along which axes a reduction reduces, however it is called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import Function
from captum_transformer_lrp.engine.watch.statistics import reduced_axes

X = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "expected"),
    [
        (torch.mean, (X, 1), {}, 1),
        (Tensor.sum, (X, (1, 2)), {}, (1, 2)),
        (Tensor.amax, (X,), {"axis": 2}, 2),
        (Tensor.sum, (X,), {}, None),
        # the first argument of a norm is its order
        (Tensor.norm, (X, 1, -1), {}, -1),
        (torch.norm, (X,), {"p": 1, "dim": 2}, 2),
        (torch.linalg.vector_norm, (X, 1, 2), {}, 2),
        (Tensor.norm, (X, 1), {}, None),
        # that of a spread may be whether it is corrected
        (Tensor.std, (X, False), {}, None),
        (Tensor.var, (X, -1, False), {}, -1),
    ],
)
def test_the_axes_of_a_reduction(
    function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any
) -> None:
    assert reduced_axes(function, args, kwargs) == expected
