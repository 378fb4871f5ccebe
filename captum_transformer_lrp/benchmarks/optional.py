"""Packages that only some benchmarks need."""

from __future__ import annotations

from typing import Any

from captum_transformer_lrp.benchmarks.errors import BenchmarkError


def scikit_learn_metrics(benchmark: str) -> Any:
    """The module `sklearn.metrics`.

    Args:
        benchmark: what needs it, for the message.

    Raises:
        BenchmarkError: where it is not installed.

    Example:
        >>> scikit_learn_metrics("rationale").f1_score([1, 0], [1, 1])
        0.666...
    """
    try:
        import sklearn.metrics
    except ImportError as error:
        raise BenchmarkError(
            f"the {benchmark} benchmark needs scikit-learn: pip install "
            "'captum-transformer-lrp[benchmarks]'"
        ) from error
    return sklearn.metrics
