"""Means and standard errors against NumPy, and their independence of the order."""

from __future__ import annotations

import math
import operator
import random
from functools import reduce

import numpy as np
import pytest

from captum_transformer_lrp.benchmarks.statistics import ExactMean, MethodMeans


def test_mean_and_standard_error_are_those_of_numpy() -> None:
    values = np.random.default_rng(0).normal(3, 2, 50)
    mean = ExactMean()
    for value in values:
        mean.add(value)
    assert mean.value == pytest.approx(values.mean(), rel=1e-15)
    assert mean.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(50), rel=1e-14)


def test_no_digit_depends_on_the_order() -> None:
    values = [random.Random(n).uniform(-1, 1) * 10.0 ** (n % 30 - 15) for n in range(200)]
    orders = [values, sorted(values), random.Random(0).sample(values, 200)]
    # One addition after the other does depend on it; sum() of Python 3.12 corrects itself.
    assert len({reduce(operator.add, order) for order in orders}) > 1
    found = set()
    for order in orders:
        mean = ExactMean()
        for value in order:
            mean.add(value)
        found.add((mean.value, mean.standard_error))
    assert len(found) == 1


def test_the_smallest_number_is_not_lost_beside_a_large_one() -> None:
    mean = ExactMean()
    for value in (5e-324, 1e150, -1e150, 5e-324, 5e-324, 5e-324):
        mean.add(value)
    assert mean.value == pytest.approx(5e-324 * 4 / 6, abs=5e-324)
    assert mean.value > 0
    assert mean.standard_error == pytest.approx(1e150 * math.sqrt(2 / 5 / 6))


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        ExactMean().add(math.nan)


def test_a_difference_is_paired() -> None:
    """Both methods vary by 20 from one example to the next, their difference does not at all."""
    means = MethodMeans(["ours", "theirs"], reference="ours")
    for value in (10.0, 30.0, 50.0):
        means.add({"ours": {("m", ""): value}, "theirs": {("m", ""): value + 2}})
    ours, theirs = means.figures()
    assert (ours.difference, theirs.difference) == (None, 2.0)
    assert theirs.standard_error > 10
    assert theirs.difference_standard_error == 0
