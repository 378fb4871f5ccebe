"""Eq. 5, against the layer's dense matrix: only the products x_j w_ji ≥ 0 take part.

In float64 the engine's way, three matrix products and a subtraction, agrees with the equation
within 1e-9 of the largest relevance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer_lrp.rules import Call, LinearRule
from captum_transformer_lrp.rules.kernels import LinearKernel


def check(
    equations: Any,
    with_bias: Callable[[Tensor], Tensor],
    without_bias: Callable[[Tensor], Tensor],
    x: Tensor,
) -> None:
    found = equations.propagate(with_bias, x)
    expected = equations.eq_5(without_bias, x, equations.seed(found.output))
    assert torch.equal(found.output, with_bias(x))
    assert float((found.inputs[0] - expected).abs().max()) < 1e-9 * float(expected.abs().max())
    assert float((found.total - 1).abs().max()) < 1e-9


@pytest.mark.parametrize("shape", [(3, 6), (2, 4, 6), (2, 3, 2, 6)], ids=str)
@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
def test_linear_follows_eq_5(equations: Any, noise: Any, shape: Any, biased: bool) -> None:
    weight, bias = noise(5, 6), noise(5) if biased else None
    check(
        equations, lambda x: F.linear(x, weight, bias), lambda x: F.linear(x, weight), noise(*shape)
    )


CONVOLUTIONS_1D: list[dict[str, Any]] = [
    {},
    {"stride": 2},
    {"padding": 1},
    {"padding": "same"},
    {"dilation": 2},
    {"groups": 2},
    {"stride": 2, "padding": 2, "groups": 2},
]
CONVOLUTIONS_2D: list[dict[str, Any]] = [
    *CONVOLUTIONS_1D,
    {"stride": (1, 2), "padding": (0, 1)},
    {"groups": 4},  # depthwise
]


@pytest.mark.parametrize("options", CONVOLUTIONS_1D, ids=str)
@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
def test_conv1d_follows_eq_5(
    equations: Any, noise: Any, options: dict[str, Any], biased: bool
) -> None:
    weight = noise(4, 4 // options.get("groups", 1), 3)
    bias = noise(4) if biased else None
    check(
        equations,
        lambda x: F.conv1d(x, weight, bias, **options),
        lambda x: F.conv1d(x, weight, **options),
        noise(2, 4, 7),
    )


@pytest.mark.parametrize("options", CONVOLUTIONS_2D, ids=str)
@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
def test_conv2d_follows_eq_5(
    equations: Any, noise: Any, options: dict[str, Any], biased: bool
) -> None:
    weight = noise(4, 4 // options.get("groups", 1), 3, 3)
    bias = noise(4) if biased else None
    check(
        equations,
        lambda x: F.conv2d(x, weight, bias, **options),
        lambda x: F.conv2d(x, weight, **options),
        noise(2, 4, 5, 5),
    )


def test_transposed_convolution_follows_eq_5(equations: Any, noise: Any) -> None:
    weight, bias = noise(3, 2, 2, 2), noise(2)
    check(
        equations,
        lambda x: F.conv_transpose2d(x, weight, bias, stride=2),
        lambda x: F.conv_transpose2d(x, weight, stride=2),
        noise(2, 3, 3, 3),
    )


def test_addmm_follows_eq_5(equations: Any, noise: Any) -> None:
    """As in GPT-2's Conv1D."""
    weight, bias = noise(6, 5), noise(5)
    check(equations, lambda x: torch.addmm(bias, x, weight), lambda x: x @ weight, noise(3, 6))


@pytest.mark.parametrize(
    "product",
    [
        lambda x, w: x @ w,
        torch.matmul,
        torch.mm,
        lambda x, w: torch.einsum("nd,de->ne", x, w),
        lambda x, w: x.matmul(w),
    ],
    ids=["@", "matmul", "mm", "einsum", "method"],
)
def test_a_product_with_a_constant_is_a_linear_layer(
    equations: Any, noise: Any, product: Any
) -> None:
    weight = noise(6, 5)
    check(equations, lambda x: product(x, weight), lambda x: x @ weight, noise(3, 6))


def test_a_constant_from_the_left_is_a_linear_layer(equations: Any, noise: Any) -> None:
    """As in token-mixing layers."""
    mixing = noise(5, 4)
    check(equations, lambda x: mixing @ x, lambda x: mixing @ x, noise(3, 4, 2))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Linear(6, 5),
        lambda: nn.Linear(6, 5, bias=False),
    ],
    ids=["bias", "no bias"],
)
def test_a_linear_module_follows_eq_5(equations: Any, noise: Any, layer: Any) -> None:
    torch.manual_seed(0)
    module = layer().double()
    weight = module.weight.detach()
    check(equations, module, lambda x: F.linear(x, weight), noise(2, 6))


def test_the_bias_takes_no_relevance(equations: Any, noise: Any) -> None:
    x, weight = noise(2, 6), noise(5, 6)
    small = equations.propagate(lambda v: F.linear(v, weight, torch.zeros(5).double()), x)
    bias = 100 * noise(5)
    large = equations.propagate(lambda v: F.linear(v, weight, bias), x)
    assert torch.allclose(small.inputs[0], large.inputs[0], rtol=1e-9, atol=1e-12)


def test_products_that_speak_against_the_output_get_nothing(equations: Any) -> None:
    x = torch.tensor([[1.0, -2.0, 3.0, 4.0]]).double()
    weight = torch.tensor([[2.0, 1.0, -1.0, 0.5]]).double()  # products 2, -2, -3, 2
    found = equations.propagate(lambda v: F.linear(v, weight), x)
    assert torch.allclose(found.inputs[0], torch.tensor([[0.5, 0.0, 0.0, 0.5]]).double())


def test_relevance_of_an_output_without_positive_products_is_absorbed(equations: Any) -> None:
    """Eq. 5 is 0/0 there."""
    x = torch.tensor([[1.0, 2.0]]).double()
    weight = torch.tensor([[-1.0, -1.0], [1.0, 0.0]]).double()
    relevance = torch.tensor([[0.3, 0.7]]).double()
    found = equations.propagate(lambda v: F.linear(v, weight), x, relevance=relevance)
    assert torch.allclose(found.inputs[0], torch.tensor([[0.7, 0.0]]).double())
    assert torch.allclose(found.absorbed, torch.tensor([0.3]).double())


def test_zeros_get_nothing_and_break_nothing(equations: Any, noise: Any) -> None:
    x, weight = noise(2, 6), noise(5, 6)
    x[1] = 0
    found = equations.propagate(lambda v: F.linear(v, weight, torch.ones(5).double()), x)
    assert bool(found.inputs[0].isfinite().all())
    assert not found.inputs[0][1].any()
    assert torch.allclose(found.total, torch.ones(2).double())


def test_a_rule_can_be_called_without_the_engine(equations: Any, noise: Any) -> None:
    x, weight, bias = noise(2, 6), noise(5, 6), noise(5)
    output = F.linear(x, weight, bias)
    relevance = equations.seed(output)
    call = Call(F.linear, LinearKernel(), (x,), output, weight=weight, bias=bias)
    found = LinearRule().relevance(call, relevance)
    expected = equations.eq_5(lambda v: F.linear(v, weight), x, relevance)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_float32_is_accurate_where_products_cancel(equations: Any, noise: Any) -> None:
    """(|x||W| + xW)/2 cancels where the positive products are small beside the negative ones."""
    x, weight = noise(4, 64), noise(32, 64)
    double = equations.propagate(lambda v: F.linear(v, weight), x)
    single = equations.propagate(
        lambda v: F.linear(v, weight.float()),
        x.float(),
        relevance=equations.seed(double.output).float(),
    )
    error = (single.inputs[0].double() - double.inputs[0]).abs().max()
    assert float(error / double.inputs[0].abs().max()) < 1e-5
