"""Eq. 2 with the normalisation of eq. 9–10, against dense Jacobians; Lemmas 1 and 2.

Float64; 1e-8 of the largest relevance leaves room for denominators that nearly cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_transformer_lrp.rules import Call, MatmulRule, SignAwareStabilizer, SkipAddRule
from captum_transformer_lrp.rules.examples import Examples
from captum_transformer_lrp.rules.kernels import AutogradKernel


def check_two(equations: Any, operation: Callable[..., Tensor], u: Tensor, v: Tensor) -> None:
    """Both operands are activations."""
    found = equations.propagate(operation, u, v)
    relevance = equations.seed(found.output)

    def written_out(operands: list[Tensor], of_output: Tensor) -> list[Tensor]:
        parts = equations.eq_2(operation, operands, of_output)
        return equations.eq_9_and_10(parts, of_output)

    expected = equations.per_example(written_out, [u, v], relevance)
    assert torch.allclose(found.output, operation(u, v), rtol=1e-12, atol=0)
    for one, other in zip(found.inputs, expected, strict=True):
        assert float((one - other).abs().max()) < 1e-8 * float(other.abs().max())
    assert float((found.total - 1).abs().max()) < 1e-9


# -- skip-add -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "add",
    [
        lambda u, v: u + v,
        torch.add,
        lambda u, v: u.add(v),
        lambda u, v: torch.add(u, v, alpha=0.5),
        lambda u, v: u - v,
        torch.sub,
        lambda u, v: torch.sub(u, v, alpha=2),
        torch.rsub,
    ],
    ids=["+", "add", "method", "alpha", "-", "sub", "sub alpha", "rsub"],
)
def test_a_skip_add_follows_eq_2_and_9_and_10(equations: Any, noise: Any, add: Any) -> None:
    check_two(equations, add, noise(3, 4, 2), noise(3, 4, 2))


@pytest.mark.parametrize("shape", [(3, 1, 2), (3, 4, 1), (3, 1, 1)], ids=str)
def test_a_skip_add_broadcasts(equations: Any, noise: Any, shape: tuple[int, ...]) -> None:
    check_two(equations, torch.add, noise(3, 4, 2), noise(*shape))


@pytest.mark.parametrize(
    ("change", "effect"),
    [
        (lambda x, c: x + c, lambda c: c),
        (lambda x, c: c + x, lambda c: c),
        (lambda x, c: x - c, lambda c: -c),
        (lambda x, c: x + nn.Parameter(c), lambda c: c),
        (lambda x, c: x.clone().add_(c), lambda c: c),
    ],
    ids=["x + c", "c + x", "x - c", "parameter", "in place"],
)
def test_the_share_of_a_constant_is_absorbed(
    equations: Any, noise: Any, change: Any, effect: Any
) -> None:
    x, constant = noise(3, 4, 2), noise(4, 2)
    found = equations.propagate(lambda value: change(value, constant), x)
    relevance = equations.seed(found.output)

    def written_out(operands: list[Tensor], of_output: Tensor) -> list[Tensor]:
        both = [operands[0], effect(constant).expand_as(operands[0])]
        parts = equations.eq_2(torch.add, both, of_output)
        return equations.eq_9_and_10(parts, of_output)

    of_x, of_constant = equations.per_example(written_out, [x], relevance)
    assert torch.allclose(found.inputs[0], of_x, rtol=1e-8, atol=1e-10)
    assert torch.allclose(found.absorbed, of_constant.flatten(1).sum(1), rtol=1e-8, atol=1e-10)


def test_adding_a_number_is_adding_a_constant(equations: Any, noise: Any) -> None:
    x = noise(2, 5)
    number = equations.propagate(lambda value: value + 0.5, x)
    tensor = equations.propagate(lambda value: value + torch.full((2, 5), 0.5).double(), x)
    assert torch.equal(number.inputs[0], tensor.inputs[0])
    assert torch.equal(number.absorbed, tensor.absorbed)


def test_masking_by_a_large_negative_number_takes_nothing(equations: Any, noise: Any) -> None:
    scores = noise(2, 4, 4)
    for value in (-math.inf, torch.finfo(torch.float64).min, -1e5):
        mask = torch.zeros(4, 4).double().masked_fill(torch.ones(4, 4).triu(1).bool(), value)
        found = equations.propagate(lambda x, mask=mask: (x + mask).softmax(-1), scores)
        assert bool(found.inputs[0].isfinite().all())
        assert torch.allclose(found.total, torch.ones(2).double())
        assert not found.absorbed.any()


def test_a_skip_add_is_normalised_for_each_example(equations: Any, noise: Any) -> None:
    u, v = noise(4, 3), noise(4, 3)
    batch = equations.propagate(torch.add, u, v)
    relevance = equations.seed(batch.output)
    for i in range(4):
        rows = slice(i, i + 1)
        single = equations.propagate(torch.add, u[rows], v[rows], relevance=relevance[rows])
        for one, other in zip(batch.inputs, single.inputs, strict=True):
            assert torch.allclose(one[rows], other, rtol=1e-12, atol=1e-14)


def test_examples_may_lie_in_another_dimension() -> None:
    """The rule is told where: here along dimension 1, or two windows of each in dimension 0."""
    torch.manual_seed(0)
    u, v, relevance = (torch.randn(2, 3).double() for _ in range(3))

    def relevances(examples: Examples, *change: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        a, b, r = (change[0](one) for one in (u, v, relevance))
        call = Call(torch.add, AutogradKernel(torch.add), (a, b), a + b, examples=examples)
        return SkipAddRule().relevance(call, r)

    plain = relevances(Examples(2, 0), lambda t: t)
    turned = relevances(Examples(2, 1), lambda t: t.T)
    assert all(torch.allclose(a, b.T) for a, b in zip(plain, turned, strict=True))
    folded = relevances(Examples(2, 0, (0, 0, 0, 1, 1, 1)), lambda t: t.reshape(6, 1))
    assert all(torch.allclose(a, b.reshape(2, 3)) for a, b in zip(plain, folded, strict=True))


# -- products -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("product", "shapes"),
    [
        (lambda u, v: u @ v, ((2, 3, 4), (2, 4, 5))),
        (torch.matmul, ((2, 2, 3, 4), (2, 2, 4, 3))),
        (torch.bmm, ((2, 3, 4), (2, 4, 5))),
        (lambda u, v: u @ v.transpose(-2, -1), ((2, 3, 4), (2, 5, 4))),
        (lambda u, v: u @ v, ((2, 1, 3, 4), (2, 3, 4, 2))),
        (lambda u, v: torch.einsum("nid,njd->nij", u, v), ((2, 3, 4), (2, 5, 4))),
        (lambda u, v: torch.einsum("nhij,nhjd->nihd", u, v), ((2, 2, 3, 3), (2, 2, 3, 4))),
        (lambda u, v: torch.einsum("...id,...jd->...ij", u, v), ((2, 3, 4), (2, 5, 4))),
        (lambda u, v: u * v, ((2, 3, 4), (2, 3, 4))),
        (torch.mul, ((2, 3, 4), (2, 1, 4))),
    ],
    ids=[
        "@", "matmul", "bmm", "transposed", "broadcast @", "einsum of scores", "einsum of values",
        "einsum with ellipsis", "*", "broadcast *",
    ],
)  # fmt: skip
def test_a_product_of_two_activations_follows_eq_2_and_9_and_10(
    equations: Any, noise: Any, product: Any, shapes: Any
) -> None:
    check_two(equations, product, noise(*shapes[0]), noise(*shapes[1]))


@pytest.mark.parametrize("product", [torch.matmul, torch.mul], ids=["matmul", "mul"])
def test_each_operand_of_a_product_gets_half(equations: Any, noise: Any, product: Any) -> None:
    found = equations.propagate(product, noise(2, 3, 3), noise(2, 3, 3))
    for one in found.inputs:
        assert torch.allclose(one.flatten(1).sum(1), torch.full((2,), 0.5).double())


def test_relevance_of_a_product_that_is_zero_is_absorbed(equations: Any) -> None:
    u = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]).double()
    v = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]).double()
    relevance = torch.full((1, 2, 2), 0.25).double()
    found = equations.propagate(torch.matmul, u, v, relevance=relevance)
    assert torch.allclose(found.absorbed, torch.tensor([0.5]).double())
    assert torch.allclose(found.total, torch.ones(1).double())
    assert all(bool(one.isfinite().all()) for one in found.inputs)


def test_a_product_with_itself_conserves(equations: Any, noise: Any) -> None:
    found = equations.propagate(lambda x: x * x, noise(3, 5))
    assert torch.allclose(found.inputs[0], equations.seed(found.output))


def test_division_by_an_activation_conserves(equations: Any, noise: Any) -> None:
    found = equations.propagate(torch.div, noise(2, 5), noise(2, 5).abs() + 1)
    assert torch.allclose(found.total, torch.ones(2).double())


# -- the lemmas ---------------------------------------------------------------------------------

ORDINARY = st.floats(-10, 10, allow_nan=False, width=64)
AWKWARD = st.sampled_from([0.0, 1.0, -1.0, 1e-300, -1e-12, 1e12, -1e150])


@st.composite
def operands(draw: st.DrawFn, values: st.SearchStrategy[float]) -> tuple[Tensor, Tensor, Tensor]:
    """u, v and the relevance of what is made from them, of one shape (1, n)."""
    size = draw(st.integers(1, 6))
    rows = [draw(st.lists(values, min_size=size, max_size=size)) for _ in range(2)]
    u, v = (torch.tensor([row], dtype=torch.float64) for row in rows)
    if draw(st.booleans()):
        v = torch.where(torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size))),
                        -u, v)  # fmt: skip
    weights = draw(st.lists(st.floats(-1, 2), min_size=size, max_size=size))
    relevance = torch.tensor([weights], dtype=torch.float64)
    return u, v, relevance


def skip_add(u: Tensor, v: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    call = Call(
        torch.add,
        AutogradKernel(torch.add),
        (u, v),
        u + v,
        stabilizer=SignAwareStabilizer(),
    )
    of_u, of_v = SkipAddRule().relevance(call, relevance)
    return of_u, of_v


@settings(max_examples=100, deadline=None, derandomize=True)
@given(operands(ORDINARY))
def test_lemma_1_i_an_addition_conserves_by_eq_2_alone(values: Any) -> None:
    """Rᵘ + Rᵛ = (u/(u+v) + v/(u+v)) R = R, element by element."""
    u, v, relevance = values
    # 1 / (u + v) of the smallest numbers that there are is not one.
    kept = (u + v).abs() > (1e-3 * (u.abs() + v.abs())).clamp(min=1e-306)
    share = torch.where(kept, relevance / (u + v), 0.0)
    assert torch.allclose(u * share + v * share, relevance * kept, rtol=1e-9, atol=1e-9)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_lemma_1_ii_a_matmul_does_not(rows: int, inner: int, columns: int, seed: int) -> None:
    """Eq. 2 alone hands out the relevance twice, once to each operand."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(1, rows, inner, generator=generator, dtype=torch.float64) + 0.1
    v = torch.rand(1, inner, columns, generator=generator, dtype=torch.float64) + 0.1
    relevance = torch.rand(1, rows, columns, generator=generator, dtype=torch.float64)
    share = relevance / (u @ v)
    of_u, of_v = u * (share @ v.mT), v * (u.mT @ share)
    assert math.isclose(float(of_u.sum() + of_v.sum()), 2 * float(relevance.sum()), rel_tol=1e-9)
    call = Call(torch.matmul, AutogradKernel(torch.matmul), (u, v), u @ v)
    normalised = MatmulRule().relevance(call, relevance)
    total = float(sum(one.sum() for one in normalised))
    assert math.isclose(total, float(relevance.sum()), rel_tol=1e-9)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(operands(ORDINARY | AWKWARD))
def test_lemma_2_relevance_is_conserved_and_bounded(values: Any) -> None:
    """ΣR̄ᵘ + ΣR̄ᵛ = ΣR, and each of the two lies between 0 and ΣR.

    Where u and v are both 0, or equal and opposite, eq. 2 is 0/0 or 1/0; what it gives must still
    be finite and within the bounds.  Sums of terms that cancel to a 1e9th of their size are
    compared on the scale of the terms; outputs below 1e-20 come near the stabiliser's ε² (5e-32).
    """
    u, v, relevance = values
    of_u, of_v = skip_add(u, v, relevance)
    assert bool(of_u.isfinite().all())
    assert bool(of_v.isfinite().all())
    total = float(relevance.sum())
    sums = [float(of_u.sum()), float(of_v.sum())]
    scale = max(float(of_u.abs().sum()), float(of_v.abs().sum()), abs(total))
    slack = 1e-9 * scale + 1e-12
    low, high = min(0.0, total), max(0.0, total)
    assert all(low - slack <= one <= high + slack for one in sums)
    solid = ((u + v).abs() > 1e-9 * (u.abs() + v.abs())) & ((u + v).abs() > 1e-20)
    if bool(solid.all()) and scale < 1e6 * abs(total):
        assert abs(sum(sums) - total) <= slack


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_example_of_large_cancelling_operands(dtype: torch.dtype) -> None:
    """u = (e^a, e^b), v = (1 - e^a, 1 - e^b): eq. 2 alone gives e^a, which explodes with a."""
    a = b = 30.0
    u = torch.tensor([[math.exp(a), math.exp(b)]], dtype=dtype)
    v = 1 - u
    of_u, of_v = skip_add(u, v, torch.ones(1, 2, dtype=dtype))
    assert bool(of_u.isfinite().all())
    assert bool(of_v.isfinite().all())
    assert float(of_u.abs().max()) <= 2  # no explosion
    assert float(of_v.abs().max()) <= 2
    assert math.isclose(float(of_u.sum() + of_v.sum()), 2.0, rel_tol=1e-6)


@pytest.mark.parametrize("a", [0.0, 1.0, 10.0, 30.0])
def test_the_example_follows_the_equations(a: float) -> None:
    """By hand: ΣRᵘ = 2e^a and ΣRᵛ = 2(1 - e^a), so R̄ᵘ = e^a/(2e^a - 1) for each of the two."""
    u = torch.full((1, 2), math.exp(a), dtype=torch.float64)
    of_u, of_v = skip_add(u, 1 - u, torch.ones(1, 2, dtype=torch.float64))
    share = math.exp(a) / (2 * math.exp(a) - 1)
    # At a = 30 the stabiliser's ε·(|u| + |v|) is 0.2 % of u + v = 1; it drops out of the ratio.
    assert torch.allclose(of_u, torch.full((1, 2), share).double(), rtol=1e-6)
    assert torch.allclose(of_v, torch.full((1, 2), 1 - share).double(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equal_and_opposite_operands_break_nothing(dtype: torch.dtype) -> None:
    u = torch.tensor([[1.0, 2.0, 3.0]], dtype=dtype)
    of_u, of_v = skip_add(u, -u, torch.ones(1, 3, dtype=dtype) / 3)
    assert bool(of_u.isfinite().all())
    assert bool(of_v.isfinite().all())
    assert math.isclose(float(of_u.sum() + of_v.sum()), 1.0, rel_tol=1e-5)


def test_scores_that_are_switched_off_twice_stay_finite(equations: Any, noise: Any) -> None:
    """As in banded attention: -inf written into the scores, and a mask of -inf added."""
    scores = noise(3, 4)
    off = torch.tensor([False, True, False, False])
    relevance = equations.seed(scores).masked_fill(off, 0)

    def masked(x: Tensor) -> Tensor:
        return x.masked_fill(off, -torch.inf) + torch.zeros(4).masked_fill(off, -torch.inf).double()

    found = equations.propagate(masked, scores, relevance=relevance)
    assert torch.allclose(found.inputs[0], relevance, atol=1e-12)
