"""Rows that are put in the place of others, added up there, or averaged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs
from captum_transformer_lrp.engine.watch.context import Context, Handlers
from captum_transformer_lrp.engine.watch.moves import join
from captum_transformer_lrp.rules.spellings import spelled

HANDLERS = Handlers()


@HANDLERS.handles(*spelled("scatter_reduce", "index_reduce"))
def _scatter_reduce(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """A sum or a mean of what is added up at each place, or a choice among it."""

    def bind(
        input: Tensor, dim: int, index: Tensor, src: Any = None, reduce: str = "",
        *, source: Any = None, include_self: bool = True,
    ) -> Any:  # fmt: skip
        return input, dim, index, src if source is None else source, reduce, include_self

    onto, dim, index, source, reduce, includes_self = bind(*args, **kwargs)
    if reduce in ("amax", "amin"):
        return join(watch, function, args, kwargs)
    if reduce not in ("sum", "mean"):
        raise watch.unsupported(function, f"reduce={reduce!r}")
    by_row = function.__name__.startswith("index")
    add = torch.index_add if by_row else torch.scatter_add
    ones = torch.ones_like(source.detach())[_as_far_as(index, dim, by_row=by_row)]
    count = add(torch.zeros_like(onto.detach()), dim, index, ones)
    with watch:
        kept = onto if includes_self else torch.where(count > 0, torch.zeros_like(onto), onto)
        total = add(kept, dim, index, source)
        return total if reduce == "sum" else total / (count + includes_self).clamp(min=1)


def _as_far_as(index: Tensor, dim: int, *, by_row: bool) -> tuple[slice, ...]:
    """The part of a source that is read: scattering reads as much of it as there are indices."""
    return () if by_row else tuple(slice(size) for size in index.shape)


@HANDLERS.handles(*spelled("index_put"))
def _index_put(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """Rows put in the place of others, or added to them."""
    bind = lambda input, indices, values, accumulate=False: (input, indices, values, accumulate)  # noqa: E731
    onto, indices, values, accumulate = bind(*args, **kwargs)
    if not accumulate:
        return join(watch, function, args, kwargs)
    places = torch.arange(onto.numel(), device=onto.device).reshape(onto.shape)[tuple(indices)]
    with watch:
        rows = values.expand(places.shape)
        nothing = torch.zeros_like(onto)
        if len(places.unique()) == places.numel():
            return onto + nothing.index_put(tuple(indices), rows)
        added = nothing.flatten().index_add(0, places.flatten(), rows.flatten())
        return onto + added.view(onto.shape)
