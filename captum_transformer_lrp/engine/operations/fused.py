"""Fused attention, taken apart so that its map is a tensor on the tape."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import Function, expand
from captum_transformer_lrp.engine.watch.context import Context, Handlers
from captum_transformer_lrp.errors import ExplanationError

HANDLERS = Handlers()


@HANDLERS.binds(F.scaled_dot_product_attention)
def _scaled_dot_product_attention(
    watch: Context, function: Function, query: Tensor, key: Tensor, value: Tensor,
    attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, *,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if dropout_p:
        raise ExplanationError(
            f"{watch.names.caller()} drops attention at random (p = {dropout_p}), so the output "
            "has no one explanation: call model.eval() first"
        )
    with watch:
        if enable_gqa and key.shape[-3] != query.shape[-3]:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
        scores = torch.matmul(query, key.transpose(-2, -1))
        scores = scores * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if is_causal:
            rows, columns = scores.shape[-2:]
            allowed = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~allowed, -math.inf)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, -math.inf)
            else:
                scores = scores + attn_mask
        # Only a mask can switch all of a row's scores off.
        softmax = torch.softmax if attn_mask is None else torch._safe_softmax
        return torch.matmul(softmax(scores, -1), value)


HANDLERS.composes(F.multi_head_attention_forward)(expand(F.multi_head_attention_forward))
