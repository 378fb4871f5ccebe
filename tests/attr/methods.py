"""The methods of attribution, for what holds of each of them."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import pytest

from captum_transformer_lrp import (
    AttCat,
    AttentionFlow,
    AttentionGradCam,
    AttentionRollout,
    BiAttention,
    GenericAttention,
    LeGrad,
    LibraGradient,
    NormRollout,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
    TransformerLRP,
)

OF_TOKENS: dict[str, Any] = {
    "transformer_attribution": TransformerAttribution,
    "checkpointed": partial(TransformerAttribution, checkpointing=True),
    "rollout": AttentionRollout,
    "flow": AttentionFlow,
    "raw": RawAttention,
    "grad_cam": AttentionGradCam,
    "partial": PartialLRP,
    "generic": GenericAttention,
    "legrad": LeGrad,
    "attcat": AttCat,
    "libra_layers": partial(LibraGradient, aggregation="layers"),
    "norm_rollout": NormRollout,
    "alti": partial(NormRollout, contribution="alti"),
    "bi_attention": partial(BiAttention, n_steps=2),
    "bi_attention_heads": partial(BiAttention, n_steps=2, perception="head"),
}
"""The methods whose maps are of tokens."""

OF_RELEVANCE: dict[str, Any] = {
    "lrp": TransformerLRP,
    "baseline": partial(TransformerLRP, preset="lrp"),
    "attnlrp": partial(TransformerLRP, preset="attnlrp"),
    "cp_lrp": partial(TransformerLRP, preset="cp_lrp"),
    "gamma": partial(TransformerLRP, preset="gamma"),
    "clrp": partial(TransformerLRP, contrast="clrp"),
    "sglrp": partial(TransformerLRP, contrast="sglrp"),
    "libra": LibraGradient,
}
METHODS = {**OF_TOKENS, **OF_RELEVANCE}


def each_once(
    names: Collection[str], methods: Collection[Any] = METHODS, *, times: int = 1
) -> list[Any]:
    """Pairs of a method and a name, each of them so many times at least; other pairs are slow.

    For what all methods do by the same code, such as reading their inputs.
    """
    size = max(len(names), len(methods))
    quick = {
        (index % len(methods), (index + shift) % len(names))
        for index in range(size)
        for shift in range(times)
    }
    return [
        pytest.param(method, name, marks=[] if (i, j) in quick else [pytest.mark.slow])
        for i, method in enumerate(methods)
        for j, name in enumerate(names)
    ]
