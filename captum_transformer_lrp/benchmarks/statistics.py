"""Means and standard errors whose digits do not depend on the order of the values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Final

from captum_transformer_lrp.benchmarks.results import Figure

REFERENCE: Final = "transformer_attribution"
"""The method that the others are compared with, where it takes part."""


class ExactMean:
    """The mean of float64 values, and its standard error, in exact arithmetic.

    Sums of floats depend on their order in the last digits, so one process and two would differ.
    Here the sum and the sum of squares are fractions of whole numbers.

    Example:
        >>> mean = ExactMean()
        >>> for value in (1e16, 1.0, -1e16, 2.0):
        ...     mean.add(value)
        >>> mean.value, mean.count
        (0.75, 4)
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum = self._squares = Fraction(0)

    def add(self, value: float) -> None:
        """Take one value.

        Raises:
            ValueError: for NaN and infinity.
        """
        if not math.isfinite(value):
            raise ValueError(f"found {value}, expected a finite number")
        exact = Fraction(value)
        self.count += 1
        self._sum += exact
        self._squares += exact * exact

    @property
    def value(self) -> float:
        """The mean; NaN of no values."""
        return float(self._sum / self.count) if self.count else math.nan

    @property
    def standard_error(self) -> float:
        """Its standard error: the sample's standard deviation over √count; NaN below two values.

        >>> mean = ExactMean()
        >>> for value in (0.0, 0.0, 1.0, 1.0):
        ...     mean.add(value)
        >>> round(mean.standard_error, 6)  # √(1/3) / √4
        0.288675
        """
        if self.count < 2:
            return math.nan
        deviations = self._squares - self._sum * self._sum / self.count
        return math.sqrt(deviations / (self.count * (self.count - 1)))

    def figure(self, method: str, metric: str, condition: str = "", unit: str = "%") -> Figure:
        """The mean as a figure of a result."""
        return Figure(
            method, metric, condition, self.value, self.standard_error, self.count, unit=unit
        )


class MethodMeans:
    """Means over the examples, for each method and metric, with paired differences.

    Args:
        methods: the methods in the order of the result.
        reference: the method that the others are compared with; the first one if it is not there.
        unit: what the values are in, such as ``"%"``.

    Example:
        >>> means = MethodMeans(["ours", "random"], reference="ours", unit="%")
        >>> means.add({"ours": {("AUC", "target"): 10.0}, "random": {("AUC", "target"): 30.0}})
        >>> means.add({"ours": {("AUC", "target"): 20.0}, "random": {("AUC", "target"): 40.0}})
        >>> [(one.method, one.value, one.difference) for one in means.figures()]
        [('ours', 15.0, None), ('random', 35.0, 20.0)]
    """

    def __init__(
        self, methods: Sequence[str], reference: str | None = REFERENCE, unit: str = ""
    ) -> None:
        self._methods = tuple(methods)
        self._reference = reference if reference in self._methods else [*self._methods, ""][0]
        self._unit = unit
        # By method, metric and condition the mean, and that of the differences.
        self._means: dict[tuple[str, str, str], tuple[ExactMean, ExactMean]] = {}

    def add(self, values: Mapping[str, Mapping[tuple[str, str], float]]) -> None:
        """Take one example's values: for each method, by (metric, condition)."""
        compared = values.get(self._reference, {})
        for method, of_method in values.items():
            for key, value in of_method.items():
                pair = self._means.setdefault((method, *key), (ExactMean(), ExactMean()))
                pair[0].add(value)
                if method != self._reference and key in compared:
                    pair[1].add(value - compared[key])

    def figures(self) -> list[Figure]:
        """One figure for each method, metric and condition, methods in their order."""
        found = []
        for key in sorted(self._means, key=lambda key: self._methods.index(key[0])):
            mean, other = self._means[key]
            figure = mean.figure(*key, self._unit)
            if other.count:
                error = other.standard_error
                figure = replace(figure, difference=other.value, difference_standard_error=error)
            found.append(figure)
        return found
