"""Curves of a benchmark, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """A metric over steps, such as accuracy over the share of pixels removed.

    Args:
        method: the method that it is of.
        panel: curves of the same panel are drawn into the same axes.
        x: the steps.
        y: the values.
        standard_errors: of the values.
        x_label: what the steps are, with their unit.
        y_label: what the values are, with their unit.
    """

    method: str
    panel: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    standard_errors: tuple[float, ...]
    x_label: str
    y_label: str
