"""What can go wrong in a benchmark."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from captum_transformer_lrp.errors import ExplanationError


class BenchmarkError(ExplanationError):
    """Data, settings or an output folder that a benchmark cannot be run with."""


class UnreadableExampleError(BenchmarkError):
    """One damaged example.  It is reported, counted and left out; the benchmark goes on."""


def optional(module: str, package: str, what: str) -> Any:
    """A module that only some benchmarks need; where it is missing, what to install.

    >>> optional("sklearn.metrics", "scikit-learn", "rationale").f1_score([1, 0], [1, 1])
    0.666...
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise BenchmarkError(f"{what} needs {package}: pip install {package}") from error
