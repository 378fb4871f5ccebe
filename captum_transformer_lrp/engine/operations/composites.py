"""Calls that are several operations in one, made one after another so that each has its rule."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
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


@HANDLERS.handles(*spelled("bilinear"))
def _bilinear(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """``u · W · v`` for each output: linear in u, and what that makes is multiplied by v."""

    def bind(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        return input1, input2, weight, bias

    u, v, weight, bias = bind(*args, **kwargs)
    with watch:
        rows = F.linear(u, weight.mT.flatten(0, 1)).unflatten(-1, (weight.shape[0], -1))
        output = (rows @ v.unsqueeze(-1)).squeeze(-1)
        return output if bias is None else output + bias


@HANDLERS.handles(*spelled("cosine_similarity"))
def _cosine_similarity(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Any:
        return x1, x2, dim, eps

    u, v, dim, eps = bind(*args, **kwargs)
    with watch:
        shape = torch.broadcast_shapes(u.shape, v.shape)
        units = [F.normalize(_as_long(x, dim, shape), dim=dim, eps=eps) for x in (u, v)]
        return (units[0] * units[1]).sum(dim)


def _as_long(x: Tensor, dim: int, shape: torch.Size) -> Tensor:
    """With as many axes as a shape, and as long along one of them; the others can broadcast."""
    sizes = [1] * (len(shape) - x.dim()) + list(x.shape)
    sizes[dim] = shape[dim]
    return x.expand(sizes)


@HANDLERS.handles(*spelled("pairwise_distance"))
def _pairwise_distance(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(
        x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
    ) -> Any:
        return x1, x2, p, eps, keepdim

    u, v, p, eps, keepdim = bind(*args, **kwargs)
    with watch:
        return torch.linalg.vector_norm(u - v + eps, p, -1, keepdim)


@HANDLERS.handles(*spelled("cdist"))
def _cdist(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Any:
        return x1, x2, p

    u, v, p = bind(*args, **kwargs)
    with watch:
        return torch.linalg.vector_norm(u.unsqueeze(-2) - v.unsqueeze(-3), p, -1)
