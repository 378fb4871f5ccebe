"""Means, sums, extrema and pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs
from captum_transformer_lrp.engine.graph.flow import Flow
from captum_transformer_lrp.engine.watch.context import Context, Handlers
from captum_transformer_lrp.rules import registry
from captum_transformer_lrp.rules.examples import Examples, unknown_examples
from captum_transformer_lrp.rules.kernels import AutogradKernel
from captum_transformer_lrp.rules.spellings import spelled

HANDLERS = Handlers()


@HANDLERS.handles(*registry.POOLINGS)
def _pooling(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    source = args[0] if args else kwargs["input"]
    mark = watch.mark(source)
    assert mark is not None
    output = function(*args, **kwargs)
    if not isinstance(output, Tensor):
        raise watch.unsupported(function, "more than one output")
    if not output.requires_grad:
        return output
    dim = _dim(function, args, kwargs)
    reduces = function in _REDUCTIONS
    examples = mark.examples
    if reduces and examples.count > 1 and examples.axis is not None:
        kept = output.dim() == source.dim()
        dims = dim if isinstance(dim, (tuple, list)) else (dim,)
        gone = {one % source.dim() for one in dims if isinstance(one, int)}
        if None in dims or examples.axis in gone:
            examples = unknown_examples(examples)
        elif not kept:
            before = sum(one < examples.axis for one in gone)
            examples = Examples(examples.count, examples.axis - before, examples.index)
    others = args[1:]  # a kernel that held the first one would keep its memory
    return watch.record(
        function,
        AutogradKernel(lambda value: function(value, *others, **kwargs)),
        (source,),
        output,
        rule=watch.rules.of(function),
        flow=Flow.SUMMANDS if function in _SUMS else Flow.NATIVE,
        mark=mark.but(
            examples=examples,
            source=None,
            statistic=mark.statistic or reduces,
            arrangement=object(),
            channels=0,
            features=None if reduces else mark.features,
        ),
    )


def _dim(function: Function, args: Args, kwargs: Kwargs) -> Any:
    """The argument that says along which axes a call reduces, None for all of them."""
    place = 2 if function.__name__.endswith("norm") else 1  # behind p, the order of the norm
    given = kwargs.get("dim", kwargs.get("axis", args[place] if len(args) > place else None))
    return None if isinstance(given, bool) else given  # x.var(False) is not along axis 0


_REDUCTIONS = frozenset(
    spelled(
        "mean", "sum", "nanmean", "nansum", "amax", "amin", "logsumexp", "norm", "vector_norm",
        "var", "std",
    )
)  # fmt: skip

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
    return type(result)((found, result.indices))
