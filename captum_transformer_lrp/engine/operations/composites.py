"""Calls that are several operations in one, made one after another so that each has its rule."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs
from captum_transformer_lrp.engine.graph.books import report_filling
from captum_transformer_lrp.engine.watch import moves
from captum_transformer_lrp.engine.watch.interception import Interception, handles
from captum_transformer_lrp.rules.spellings import spelled


@handles(*spelled("addcmul"))
def _addcmul(watch: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Any:
        return input, tensor1, tensor2, value

    offset, u, v, factor = bind(*args, **kwargs)
    with watch:
        product = u * v
        return offset + (product if factor == 1 else product * factor)


@handles(*spelled("addcdiv"))
def _addcdiv(watch: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Any:
        return input, tensor1, tensor2, value

    offset, u, v, factor = bind(*args, **kwargs)
    with watch:
        quotient = u / v
        return offset + (quotient if factor == 1 else quotient * factor)


@handles(*spelled("lerp"))
def _lerp(watch: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """``start + weight · (end − start)``, as the mean of two that it is."""

    def bind(input: Tensor, end: Tensor, weight: Any) -> Any:
        return input, end, weight

    start, end, weight = bind(*args, **kwargs)
    with watch:
        return start * (1 - weight) + end * weight


@handles(*spelled("glu"))
def _glu(watch: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(input: Tensor, dim: int = -1) -> Any:
        return input, dim

    x, dim = bind(*args, **kwargs)
    with watch:
        value, gate = x.chunk(2, dim)
        return value * gate.sigmoid()


@handles(*spelled("outer", "ger"))
def _outer(watch: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    u, v = (*args, *kwargs.values())
    with watch:
        return u.unsqueeze(-1) * v.unsqueeze(-2)


@handles(*spelled("mv", "dot", "vdot"))
def _vector_product(watch: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    u, v = (*args, *kwargs.values())
    with watch:
        return torch.matmul(u, v)


@handles(*spelled("inner"))
def _inner(watch: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    u, v = (*args, *kwargs.values())
    with watch:
        return torch.matmul(u, v if v.dim() < 2 else v.transpose(-1, -2))


@handles(*spelled("pad", "constant_pad_nd"))
def _pad(watch: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """Padding takes relevance where something is made of it, such as a norm's bias or a sum."""

    def bind(input: Tensor, pad: Any, mode: Any = "constant", value: Any = None) -> Any:
        return input, pad, mode, value

    x, pad, mode, value = bind(*args, **kwargs)
    if not isinstance(mode, str):  # of constant_pad_nd
        mode, value = "constant", mode
    result = moves.rearrange(watch, function, args, kwargs)
    if watch.tape.keeps_books and mode == "constant" and math.isfinite(value or 0):
        inside = F.pad(torch.ones_like(x, dtype=torch.bool), pad)
        report_filling(watch.tape, result, inside, f"{watch.module_name()} (padding)")
    return result


@handles(*spelled("where"))
def _where(watch: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """Numbers among the choices become tensors, so that their share is reported."""
    if function is Tensor.where:  # x.where(condition, other)
        args = (args[1] if len(args) > 1 else kwargs.pop("condition"), args[0], *args[2:])

    def bind(condition: Tensor, input: Any, other: Any) -> Any:
        return condition, input, other

    condition, *choices = bind(*args, **kwargs)
    like = next(choice for choice in choices if isinstance(choice, Tensor))
    choices = [
        choice
        if isinstance(choice, Tensor)
        else torch.full((), choice, dtype=like.dtype, device=like.device)
        for choice in choices
    ]
    return moves.join(watch, torch.where, (condition, *choices), {})
