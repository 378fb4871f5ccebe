"""Statistics of activations that are not what PyTorch calls a mean or a maximum."""

from __future__ import annotations

from torch import Tensor

from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.watch.context import Context


def note_detached(watch: Context, result: Tensor, mark: Mark, *, is_statistic: bool) -> None:
    """Note what a result without derivative is of: what a softmax subtracts needs none."""
    watch.tape.made_of.detached[result] = mark.but(statistic=mark.statistic or is_statistic)


def note_statistic(watch: Context, extremum: Tensor, source: Tensor) -> None:
    """An element that was picked by its size says of the others what their maximum does."""
    of_source, mark = watch.mark(source), watch.mark(extremum)
    if of_source is not None and mark is not None:
        watch.tape.marks[extremum] = mark.but(base=of_source.base, statistic=True, source=None)
