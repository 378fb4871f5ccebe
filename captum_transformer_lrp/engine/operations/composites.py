"""Calls that are several operations in one, made one after another so that each has its rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs
from captum_transformer_lrp.engine.watch.context import Context, Handlers
from captum_transformer_lrp.rules.spellings import spelled

HANDLERS = Handlers()


@HANDLERS.handles(*spelled("addcmul"))
def _addcmul(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Any:
        return input, tensor1, tensor2, value

    offset, u, v, factor = bind(*args, **kwargs)
    with watch:
        product = u * v
        return offset + (product if factor == 1 else product * factor)


@HANDLERS.handles(*spelled("addcdiv"))
def _addcdiv(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Any:
        return input, tensor1, tensor2, value

    offset, u, v, factor = bind(*args, **kwargs)
    with watch:
        quotient = u / v
        return offset + (quotient if factor == 1 else quotient * factor)


@HANDLERS.handles(*spelled("lerp"))
def _lerp(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """``start + weight · (end − start)``, as the mean of two that it is."""

    def bind(input: Tensor, end: Tensor, weight: Any) -> Any:
        return input, end, weight

    start, end, weight = bind(*args, **kwargs)
    with watch:
        return start * (1 - weight) + end * weight


@HANDLERS.handles(*spelled("glu"))
def _glu(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(input: Tensor, dim: int = -1) -> Any:
        return input, dim

    x, dim = bind(*args, **kwargs)
    with watch:
        value, gate = x.chunk(2, dim)
        return value * gate.sigmoid()


@HANDLERS.handles(*spelled("outer", "ger"))
def _outer(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    u, v = (*args, *kwargs.values())
    with watch:
        return u.unsqueeze(-1) * v.unsqueeze(-2)


@HANDLERS.handles(*spelled("mv", "dot", "vdot"))
def _vector_product(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    u, v = (*args, *kwargs.values())
    with watch:
        return torch.matmul(u, v)


@HANDLERS.handles(*spelled("inner"))
def _inner(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    u, v = (*args, *kwargs.values())
    with watch:
        return torch.matmul(u, v if v.dim() < 2 else v.transpose(-1, -2))
