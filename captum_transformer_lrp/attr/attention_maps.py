"""What is known of one attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AttentionMaps:
    """One attention of the model, for each example and head.

    An attention is a product of a softmax map with values; a model that multiplies head by head
    has one for each head.

    Args:
        name: the qualified name of the module that computed it, e.g. ``blocks.0.attn``.
        attention: A, the softmax map that multiplied the values, (N, heads, S, S) for plain
            attention, otherwise as the model has it.
        gradient: ∇A, the derivative of the target's logit by A.
        relevance: R, the relevance of A.
        weighted: (∇A ⊙ R)⁺ of eq. 13, before the mean over heads.
    """

    name: str
    attention: Tensor
    gradient: Tensor
    relevance: Tensor
    weighted: Tensor
