"""PyTorch's flex attention, whose scores a function of the model's changes one by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs
from captum_transformer_lrp.engine.graph.marks import Kind
from captum_transformer_lrp.engine.operations.elementwise import elementwise
from captum_transformer_lrp.engine.watch.context import Context, Handler
from captum_transformer_lrp.rules.kernels import AutogradKernel


def _flex_attention(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """``softmax(score_mod(Q Kᵀ · scale))``, masked, times V; its log-sum-exp and largest scores.

    A ``score_mod`` that adds something adds a constant, as a float mask of fused attention does;
    any other is an activation function.
    """

    def bind(
        query: Tensor, key: Tensor, value: Tensor, score_mod: Callable[..., Tensor],
        block_mask: tuple[Any, ...], scale: float, kernel_options: Any = None,
        score_mod_other_buffers: Any = (), mask_mod_other_buffers: Any = (),
    ) -> Any:  # fmt: skip
        buffers = (*score_mod_other_buffers, *mask_mod_other_buffers)
        return query, key, value, score_mod, block_mask[-1], scale, buffers

    query, key, value, score_mod, mask_mod, scale, buffers = bind(*args, **kwargs)
    if buffers or any(watch.mark(tensor) for tensor in _closed_over(score_mod)):
        raise watch.unsupported(function, "a score_mod that reads activations")
    groups = query.shape[1] // key.shape[1]
    with watch:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = torch.matmul(query, key.transpose(-2, -1)) * scale
    scores = _modified(watch, scores, score_mod)
    allowed = _for_all_scores(mask_mod, scores)()
    with watch:
        scores = scores.masked_fill(~allowed.expand(scores.shape), -torch.inf)
        out = torch.matmul(torch._safe_softmax(scores, -1), value)
        return out, scores.logsumexp(-1) / math.log(2), scores.amax(-1) / math.log(2)


OPERATORS: dict[str, Handler] = {"flex_attention": _flex_attention}


def _modified(watch: Context, scores: Tensor, score_mod: Callable[..., Tensor]) -> Tensor:
    change = _for_all_scores(score_mod, scores)
    with torch.no_grad():
        added, changed = change(torch.zeros_like(scores)), change(scores)
    if not bool(added.any()) and torch.equal(changed, scores):
        return scores
    if torch.allclose(scores + added, changed, rtol=1e-6, atol=1e-6):
        with watch:
            return scores + added
    # The rule is that of any activation function.
    found: Tensor = elementwise(
        watch, torch.tanh, (scores,), {}, kind=Kind.ACTIVATION, kernel=AutogradKernel(change),
        run=change,
    )  # fmt: skip
    return found


def _for_all_scores(function: Callable[..., Tensor], scores: Tensor) -> Callable[..., Tensor]:
    """A function of a score and its place (batch, head, query, key), for all places at once."""
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    places = [torch.arange(size, device=scores.device) for size in scores.shape]

    def everywhere(*values: Tensor) -> Tensor:
        over = function
        for axis in (3, 2, 1, 0):
            along = [0 if place == axis else None for place in range(4)]
            over = torch.vmap(over, in_dims=(*(0 for _ in values), *along))
        with TransformGetItemToIndex():  # models index tensors by places
            return over(*values, *places)

    return everywhere


def _closed_over(function: Callable[..., Any]) -> list[Tensor]:
    """The tensors that a function has from where it was defined."""
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return [one for one in cells if isinstance(one, Tensor)]
