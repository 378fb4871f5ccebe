"""What an explanation consists of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captum_transformer_lrp.attr.attention_maps import AttentionMaps
from captum_transformer_lrp.engine.graph.arguments import replace_tensors
from captum_transformer_lrp.result import Result


@dataclass(frozen=True, repr=False, eq=False)
class Explanation(Result):
    """Everything that ``attribute`` is a view of; a notebook shows it, and ``save`` writes it.

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

    def __repr__(self) -> str:
        shapes = " and ".join(str(tuple(one.shape)) for one in self._each_input())
        return f"Explanation(attributions {shapes}; {len(self.attentions)} attentions)"

    def _each_input(self) -> tuple[Tensor, ...]:
        found = self.attributions
        return found if isinstance(found, tuple) else (found,)

    def topk(
        self, k: int = 5, *, example: int = 0, place: int = 0
    ) -> list[tuple[tuple[int, ...], float]]:
        """The largest attributions of one example, in descending order.

        Args:
            k: how many.
            example: which example of the batch.
            place: which of the inputs, where there are several.

        Returns:
            where each is (a token; the row and column of a pixel, whose channels are added up) and
            how large.
        """
        values = self._each_input()[place][example]
        values = values.sum(0) if values.dim() == 3 else values
        found = values.flatten().topk(min(k, values.numel()))
        places = np.stack(np.unravel_index(found.indices.cpu().numpy(), values.shape), 1)
        return [
            (tuple(map(int, where)), value)
            for where, value in zip(places, found.values.tolist(), strict=True)
        ]

    def to_numpy(self) -> dict[str, npt.NDArray[Any]]:
        """Everything by name, such as ``attention/blocks.0.attn`` and ``absorbed/pos_embed``."""
        return {name: _array(value) for name, value in self._named()}

    def as_dict(self) -> dict[str, Any]:
        """Attributions, output, target and where the relevance went; no maps of attentions."""
        kept = ("attributions", "output", "total", "absorbed")
        target = self.target.tolist() if isinstance(self.target, Tensor) else self.target
        named = {name: value for name, value in self._named() if name.split("/")[0] in kept}
        numbers = {name: _array(value).tolist() for name, value in named.items()}
        return {"target": target if not callable(target) else repr(target), **numbers}

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        for name, values in (("attributions", self._each_input()), ("relevances", self.relevances)):
            for place, one in enumerate(values):
                yield (f"{name}/{place}" if len(values) > 1 else name), one
        yield from (("output", self.output), ("total", self.total))
        for name, value in self.absorbed.items():
            yield f"absorbed/{name}", value
        for place, maps in enumerate(self.attentions):
            # A model that multiplies head by head has several of one name.
            again = sum(one.name == maps.name for one in self.attentions[:place])
            label = f"{maps.name}/{again}" if again else maps.name
            yield from ((f"{kind}/{label}", getattr(maps, kind)) for kind in _MAPS)

    def to(self, dtype: torch.dtype) -> Explanation:
        """The same in another precision."""

        def change(value: Any) -> Any:
            return replace_tensors(value, lambda one: one.to(dtype))

        maps = (
            AttentionMaps(one.name, *(change(getattr(one, kind)) for kind in _MAPS))
            for one in self.attentions
        )
        others = ("attributions", "output", "relevances", "absorbed", "total")
        changed = {name: change(getattr(self, name)) for name in others}
        return replace(self, attentions=tuple(maps), **changed)


_MAPS = ("attention", "gradient", "relevance", "weighted")


def _array(value: Tensor) -> npt.NDArray[Any]:
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
