"""What an explanation consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.arguments import replace_tensors


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


@dataclass(frozen=True)
class Explanation:
    """Everything that ``attribute`` is a view of.

    Args:
        attributions: what ``attribute`` returns for the same arguments.
        output: the model's logits, (N, C).
        target: the explained target; the predicted classes if none was given.
        attentions: every attention, in the order of the forward pass.
        relevances: R of every input, shaped as it is; for token ids (N, S, D), that of their
            embeddings.
        absorbed: relevance that ended in a parameter or constant, by its name, each of shape (N,).
        total: for each example, the sum of all relevance that arrived anywhere: ``relevances``
            and ``absorbed``.  By eq. 3 it is 1.
    """

    attributions: Tensor | tuple[Tensor, ...]
    output: Tensor
    target: Any
    attentions: tuple[AttentionMaps, ...]
    relevances: tuple[Tensor, ...]
    absorbed: dict[str, Tensor]
    total: Tensor

    def to(self, dtype: torch.dtype) -> Explanation:
        """The same in another precision."""

        def change(value: Tensor) -> Tensor:
            return value.to(dtype)

        return Explanation(
            attributions=replace_tensors(self.attributions, change),
            output=self.output.to(dtype),
            target=self.target,
            attentions=tuple(
                AttentionMaps(maps.name, *(change(getattr(maps, name)) for name in _MAPS))
                for maps in self.attentions
            ),
            relevances=replace_tensors(self.relevances, change),
            absorbed=replace_tensors(self.absorbed, change),
            total=self.total.to(dtype),
        )


_MAPS = ("attention", "gradient", "relevance", "weighted")
