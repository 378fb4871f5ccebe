"""Means, sums, extrema and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs
from captum_transformer_lrp.engine.graph.grids import EVERYWHERE, Grid, pooled_grid, resized_grid
from captum_transformer_lrp.engine.graph.marks import Kind, Mark, Pixels
from captum_transformer_lrp.engine.graph.patches import planes_behind
from captum_transformer_lrp.engine.graph.role import Flow
from captum_transformer_lrp.engine.operations.contractions import contracted, refuse_weighed
from captum_transformer_lrp.engine.watch.apart import require_apart
from captum_transformer_lrp.engine.watch.context import Context, Handlers
from captum_transformer_lrp.engine.watch.joins import note_sum_of_slice, sum_of_joined
from captum_transformer_lrp.engine.watch.statistics import (
    note_detached,
    note_statistic,
    reduced_axes,
    reduced_examples,
)
from captum_transformer_lrp.rules import registry
from captum_transformer_lrp.rules.kernels import AutogradKernel
from captum_transformer_lrp.rules.spellings import spelled

HANDLERS = Handlers()


@HANDLERS.handles(*registry.POOLINGS)
def _pooling(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    source = args[0] if args else kwargs["input"]
    mark = watch.mark(source)
    assert mark is not None
    if function in _REDUCTIONS:
        dim = reduced_axes(function, args, kwargs)
        total = sum_of_joined(watch, function, source, dim, kwargs)
        if total is None:
            total = contracted(watch, function, source, dim, kwargs)
        if total is not None:
            return total
        refuse_weighed(watch, mark)
    output = function(*args, **kwargs)
    if not isinstance(output, Tensor):
        raise watch.unsupported(function, "more than one output")
    reduces, examples = function in _REDUCTIONS, mark.examples
    if reduces:
        examples = reduced_examples(examples, reduced_axes(function, args, kwargs), source, output)
    else:
        require_apart(watch, examples, _windowed(function, args, kwargs, source), source.dim())
    if not output.requires_grad:
        note_detached(watch, output, mark.but(examples=examples), is_statistic=reduces)
        return output
    others = args[1:]  # a kernel that held the first one would keep its memory
    grid = EVERYWHERE if reduces else _grid(function, source, mark, output, others, kwargs)
    pixels = Pixels(mark.pixels.stem, grid, planes_behind(watch.tape, mark, source))
    kind = Kind.STATISTIC if reduces else Kind.POOLING
    mark = watch.tape.made(kind, (mark,), examples, pixels)
    kernel = AutogradKernel(lambda value: function(value, *others, **kwargs))
    rule, role = watch.rules.of(function), Flow.SUMMANDS if function in _SUMS else Flow.NATIVE
    result = watch.record(function, kernel, (source,), output, rule=rule, role=role, mark=mark)
    if function in _SUMS:
        note_sum_of_slice(watch, result, source, reduced_axes(function, args, kwargs))
    return result


def _grid(
    function: Function, source: Tensor, mark: Mark, output: Tensor, others: Args, kwargs: Kwargs
) -> Grid | None:
    """How the places of something pooled or resized lie on the pixels."""
    if function in _RESIZES:
        place = 3  # of align_corners, behind size, scale factor and mode
        corners = kwargs.get("align_corners", others[place] if len(others) > place else False)
        if not (mark.pixels.stem and source.dim() == output.dim() > 2):
            return None
        return resized_grid(mark.pixels.grid, source, output, corners=bool(corners))
    return pooled_grid(mark.pixels.grid, function.__name__, others, kwargs)


def _windowed(function: Function, args: Args, kwargs: Kwargs, source: Tensor) -> Sequence[int]:
    """The axes along which each result of a running sum or a window is made from several places."""
    if function in _RUNNING:
        return [reduced_axes(function, args, kwargs)]
    name = function.__name__
    if name[-2:] in ("1d", "2d", "3d"):
        return range(-int(name[-2]), 0)
    return range(2 if function in _RESIZES else 1, source.dim())


_REDUCTIONS = frozenset(
    spelled(
        "mean", "sum", "nanmean", "nansum", "amax", "amin", "logsumexp", "norm", "vector_norm",
        "var", "std",
    )
)  # fmt: skip

_RESIZES = frozenset(spelled("interpolate", "upsample"))

_RUNNING = frozenset(spelled("cumsum"))

_SUMS = frozenset(spelled("sum", "nansum"))


@HANDLERS.handles(*spelled("var_mean", "std_mean"))
def _spread_and_mean(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    spread = torch.var if function.__name__ == "var_mean" else torch.std
    source, rest = (args[0], args[1:]) if args else (kwargs.pop("input"), ())
    of_mean = {name: kwargs[name] for name in ("dim", "keepdim") if name in kwargs}
    with watch:
        return spread(source, *rest, **kwargs), torch.mean(source, *rest[:1], **of_mean)


@HANDLERS.handles(*spelled("max", "min", "maximum", "minimum"))
def _extremum(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """Of one tensor along a dimension, of one tensor in all, or of two element by element."""
    larger = function.__name__.startswith("max")
    values = (*args, *kwargs.values())
    if len(values) > 1 and isinstance(values[1], Tensor):
        with watch:
            return torch.where(values[0] >= values[1], *(values if larger else values[::-1]))
    reduced = torch.amax if larger else torch.amin
    if len(values) == 1:
        with watch:
            return reduced(values[0], tuple(range(values[0].dim())))
    result = function(*args, **kwargs)
    dim: int = kwargs["dim"] if "dim" in kwargs else args[1]
    keepdim = bool(kwargs.get("keepdim", args[2] if len(args) > 2 else False))
    with watch:
        found = torch.gather(values[0], dim, result.indices if keepdim else
                             result.indices.unsqueeze(dim))  # fmt: skip
        found = found if keepdim else found.squeeze(dim)
    note_statistic(watch, found, values[0])
    return type(result)((found, result.indices))


@HANDLERS.handles(*spelled("median", "nanmedian", "mode", "kthvalue"))
def _chosen(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """One of the elements along a dimension, or of all of them."""
    source = args[0] if args else kwargs.pop("input")
    result = function(source, *args[1:], **kwargs)
    if isinstance(result, Tensor):
        with watch:
            flat = source.flatten()
            return flat[function(flat.detach(), 0).indices]
    names = ("k", "dim", "keepdim") if function.__name__ == "kthvalue" else ("dim", "keepdim")
    given = {**dict(zip(names, args[1:], strict=False)), **kwargs}
    dim, keepdim = given.get("dim", -1), given.get("keepdim", False)
    with watch:
        places = result.indices if keepdim else result.indices.unsqueeze(dim)
        found = torch.gather(source, dim, places)
        return type(result)((found if keepdim else found.squeeze(dim), result.indices))
