"""Denominators near zero."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_transformer_lrp.rules import AdditiveStabilizer, SignAwareStabilizer

DTYPES = [torch.float64, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(-100, 100, width=32), st.floats(-1e6, 1e6, width=32))
def test_quotients_are_finite_and_of_the_right_sign(
    dtype: torch.dtype, numerator: float, denominator: float
) -> None:
    n, d = (torch.tensor([value], dtype=dtype) for value in (numerator, denominator))
    for scale in (None, d.abs() + 1):
        found = SignAwareStabilizer()(n, d, scale)
        assert bool(found.isfinite().all())
        if numerator and denominator and bool(found != 0):
            assert bool(found.sign() == n.sign() * d.sign())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("denominator", [1.0, -1.0, 1e-3, -1e6])
def test_ordinary_denominators_are_left_as_they_are(dtype: torch.dtype, denominator: float) -> None:
    one = torch.ones(1, dtype=dtype)
    found = SignAwareStabilizer()(one, denominator * one, None)
    assert torch.allclose(found * denominator, one, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_summand_over_what_is_left_of_it_stays_below_one_over_epsilon(
    dtype: torch.dtype,
) -> None:
    """u / (u + v) where v cancels u."""
    epsilon = torch.finfo(dtype).eps
    u = torch.tensor([1.0, 3.0, 1e10, -1e-10], dtype=dtype)
    found = SignAwareStabilizer()(u, torch.zeros_like(u), 2 * u.abs())
    assert bool((found.abs() <= 1 / epsilon).all())


def test_the_sign_of_the_denominator_decides() -> None:
    """The authors' constant of +1e-9 meets −1e-9 and explodes; a term of the same sign cannot."""
    near = torch.tensor([-1e-9 - 1e-20], dtype=torch.float64)
    theirs = AdditiveStabilizer()(torch.ones(1).double(), near, None)
    ours = SignAwareStabilizer()(torch.ones(1).double(), near, None)
    assert float(theirs.abs()) > 1e15
    assert float(ours) == pytest.approx(-1e9)


def test_the_authors_stabiliser_gives_nothing_for_zero() -> None:
    found = AdditiveStabilizer(1e-9)(torch.ones(2), torch.tensor([0.0, 1.0]), None)
    assert found.tolist() == [0.0, 1.0]


def test_stabilisers_are_values() -> None:
    assert AdditiveStabilizer(1e-9) == AdditiveStabilizer()
    assert SignAwareStabilizer() == SignAwareStabilizer()
