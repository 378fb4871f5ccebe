"""What can go wrong in a benchmark."""

from __future__ import annotations

from captum_transformer_lrp.errors import ExplanationError


class BenchmarkError(ExplanationError):
    """Data, settings or an output folder that a benchmark cannot be run with."""


class UnreadableExampleError(BenchmarkError):
    """One damaged example.  It is reported, counted and left out; the benchmark goes on."""
