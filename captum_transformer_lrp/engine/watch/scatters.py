"""Rows that are put in the place of others, added up there, or averaged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import Function
from captum_transformer_lrp.engine.watch.context import Context, Handlers
from captum_transformer_lrp.engine.watch.moves import join
from captum_transformer_lrp.rules.spellings import spelled

HANDLERS = Handlers()


@HANDLERS.binds(*spelled("scatter_reduce", "index_reduce"))
def _scatter_reduce(
    watch: Context, function: Function, input: Tensor, dim: int, index: Tensor, src: Any = None,
    reduce: str = "", *, source: Any = None, include_self: bool = True,
) -> Any:  # fmt: skip
    """A sum or a mean of what is added up at each place, or a choice among it."""
    source = src if source is None else source
    if reduce in ("amax", "amin"):
        more = {"include_self": include_self}
        return join(watch, function, (input, dim, index, source, reduce), more)
    if reduce not in ("sum", "mean"):
        raise watch.unsupported(function, f"reduce={reduce!r}")
    by_row = function.__name__.startswith("index")
    add = torch.index_add if by_row else torch.scatter_add
    ones = torch.ones_like(source.detach())[_as_far_as(index, dim, by_row=by_row)]
    count = add(torch.zeros_like(input.detach()), dim, index, ones)
    with watch:
        kept = input if include_self else torch.where(count > 0, torch.zeros_like(input), input)
        total = add(kept, dim, index, source)
        return total if reduce == "sum" else total / (count + include_self).clamp(min=1)


def _as_far_as(index: Tensor, dim: int, *, by_row: bool) -> tuple[slice, ...]:
    """The part of a source that is read: scattering reads as much of it as there are indices."""
    return () if by_row else tuple(slice(size) for size in index.shape)


@HANDLERS.binds(*spelled("index_put"))
def _index_put(
    watch: Context, function: Function, input: Tensor, indices: Any, values: Tensor,
    accumulate: bool = False,
) -> Any:  # fmt: skip
    """Rows put in the place of others, or added to them."""
    if not accumulate:
        return join(watch, function, (input, indices, values), {})
    places = torch.arange(input.numel(), device=input.device).reshape(input.shape)[tuple(indices)]
    with watch:
        rows = values.expand(places.shape)
        nothing = torch.zeros_like(input)
        if len(places.unique()) == places.numel():
            return input + nothing.index_put(tuple(indices), rows)
        added = nothing.flatten().index_add(0, places.flatten(), rows.flatten())
        return input + added.view(input.shape)
