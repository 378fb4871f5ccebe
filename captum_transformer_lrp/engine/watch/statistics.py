"""Statistics of activations that are not what PyTorch calls a mean or a maximum."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs
from captum_transformer_lrp.engine.graph.marks import Mark, Move
from captum_transformer_lrp.engine.watch.apart import of_one_example
from captum_transformer_lrp.engine.watch.context import Context
from captum_transformer_lrp.rules.examples import Examples


def note_detached(watch: Context, result: Tensor, mark: Mark, *, is_statistic: bool) -> None:
    """Note what a result without derivative is of: what a softmax subtracts needs none."""
    reduces = mark.is_statistic or is_statistic
    watch.tape.made_of.detached[result] = mark.but(moved=Move(reduces=reduces))


def note_statistic(watch: Context, extremum: Tensor, source: Tensor) -> None:
    """An element that was picked by its size says of the others what their maximum does."""
    of_source, mark = watch.mark(source), watch.mark(extremum)
    if of_source is not None and mark is not None:
        watch.tape.marks[extremum] = mark.but(node=of_source.node, moved=Move(reduces=True))


def reduced_axes(function: Function, args: Args, kwargs: Kwargs) -> Any:
    """The argument that says along which axes a call reduces, None for all of them."""
    place = 2 if function.__name__.endswith("norm") else 1  # behind p, the order of the norm
    given = kwargs.get("dim", kwargs.get("axis", args[place] if len(args) > place else None))
    return None if isinstance(given, bool) else given  # x.var(False) is not along axis 0


def reduced_examples(examples: Examples, dim: Any, source: Tensor, result: Tensor) -> Examples:
    """The examples of a statistic of ``source`` along the axes ``dim``, None for all of them."""
    if examples.count == 1 or examples.axis is None:
        return examples
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    gone = {one % source.dim() for one in dims if isinstance(one, int)}
    if None in dims or examples.axis in gone:
        return of_one_example(examples, result)
    before = 0 if result.dim() == source.dim() else sum(one < examples.axis for one in gone)
    return Examples(examples.count, examples.axis - before, examples.index)
