"""Calls that are several operations in one, made one after another so that each has its rule."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer_lrp.engine.watch.context import Handlers
from captum_transformer_lrp.rules.spellings import spelled

HANDLERS = Handlers()


@HANDLERS.composes(*spelled("addcmul"))
def _addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    product = tensor1 * tensor2
    return input + (product if value == 1 else product * value)


@HANDLERS.composes(*spelled("addcdiv"))
def _addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    quotient = tensor1 / tensor2
    return input + (quotient if value == 1 else quotient * value)


@HANDLERS.composes(*spelled("lerp"))
def _lerp(input: Tensor, end: Tensor, weight: Any) -> Any:
    """``input + weight · (end − input)``, as the mean of two that it is."""
    return input * (1 - weight) + end * weight


@HANDLERS.composes(*spelled("glu"))
def _glu(input: Tensor, dim: int = -1) -> Tensor:
    value, gate = input.chunk(2, dim)
    return value * gate.sigmoid()


@HANDLERS.composes(*spelled("outer", "ger"))
def _outer(input: Tensor, vec2: Tensor) -> Tensor:
    return input.unsqueeze(-1) * vec2.unsqueeze(-2)


@HANDLERS.composes(*spelled("dot", "vdot"))
def _dot(input: Tensor, other: Any = None, tensor: Any = None) -> Tensor:
    return torch.matmul(input, tensor if other is None else other)


@HANDLERS.composes(*spelled("inner"))
def _inner(input: Tensor, other: Tensor) -> Tensor:
    return torch.matmul(input, other if other.dim() < 2 else other.transpose(-1, -2))


@HANDLERS.composes(*spelled("bilinear"))
def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``u · W · v`` for each output: linear in u, and what that makes is multiplied by v."""
    rows = F.linear(input1, weight.mT.flatten(0, 1)).unflatten(-1, (weight.shape[0], -1))
    output = (rows @ input2.unsqueeze(-1)).squeeze(-1)
    return output if bias is None else output + bias


@HANDLERS.composes(*spelled("cosine_similarity"))
def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    shape = torch.broadcast_shapes(x1.shape, x2.shape)
    units = [F.normalize(_as_long(x, dim, shape), dim=dim, eps=eps) for x in (x1, x2)]
    return (units[0] * units[1]).sum(dim)


def _as_long(x: Tensor, dim: int, shape: torch.Size) -> Tensor:
    """With as many axes as a shape, and as long along one of them; the others can broadcast."""
    sizes = [1] * (len(shape) - x.dim()) + list(x.shape)
    sizes[dim] = shape[dim]
    return x.expand(sizes)


@HANDLERS.composes(*spelled("pairwise_distance"))
def _pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Any:
    return torch.linalg.vector_norm(x1 - x2 + eps, p, -1, keepdim)


@HANDLERS.composes(*spelled("cdist"))
def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Any:
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)
