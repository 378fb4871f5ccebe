"""Partial LRP (Voita et al. 2019), a baseline of the paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from captum_transformer_lrp.attr import heads
from captum_transformer_lrp.attr.attention_attribution import SingleAttentionAttribution
from captum_transformer_lrp.attr.base import Settings, relevances
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.phases import Relevance, Rollout
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.rules import preset as named_preset


class PartialLRP(SingleAttentionAttribution):
    """Relevance at one attention, averaged over its heads; it is propagated no further.

    Negative entries are cut off.  Those of tokens sum to the positive relevance of the row that the
    model reads its answer from.

    Args:
        forward_func: as in :class:`TransformerAttribution`.
        layer: which attention, counted from the input as in a list; -1 is nearest the output.
        preset: the rules, by name (see :func:`captum_transformer_lrp.rules.preset`): ``"lrp"`` for
            the paper's baseline, eq. 4 without normalisation; ``"paper"`` for the paper's own.
        epsilon: as in :class:`TransformerAttribution`.
        settings: ``rules``, ``stabilizer``, ``strict`` and ``dtype``, as in
            :class:`TransformerAttribution`.

    Reference:
        Elena Voita et al., *Analyzing Multi-Head Self-Attention: Specialized Heads Do the Heavy
        Lifting, the Rest Can Be Pruned*, ACL 2019.

    Example:
        >>> import timm, torch
        >>> from captum_transformer_lrp import PartialLRP
        >>> model = timm.create_model("test_vit", num_classes=10).eval()
        >>> method = PartialLRP(model, preset="paper")
        >>> [layer.shape for layer in method.relevance_per_head(torch.randn(1, 3, 160, 160))][:1]
        [torch.Size([1, 2])]
    """

    propagates_relevance = True
    phases = (Relevance, Rollout)

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        layer: int = -1,
        preset: str = "lrp",
        epsilon: float | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(forward_func, layer=layer, epsilon=epsilon, **settings)
        self.preset = named_preset(preset)

    def relevance_per_head(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
    ) -> list[Tensor]:
        """Each head's relevance, by which heads can be pruned.

        Takes the arguments of :meth:`attribute`.

        Returns:
            For each attention, in the order of the forward pass, the sum of the relevance of each
            head's map, (N, heads).
        """

        def explained(recording: Recording, start: Tensor) -> list[Tensor]:
            steps = recording.tape.attentions
            found = relevances(recording, start, steps)
            maps = [heads.per_head(one, step) for one, step in zip(found, steps, strict=True)]
            heads.check_heads(maps, steps, recording.output.shape[0])
            return [one.flatten(2).sum(-1) for one in maps]

        found: list[Tensor] = self._each_target(
            inputs,
            [target],
            additional_forward_args,
            explained,
            maps_of=lambda of: [torch.cat(of, 1)],
        )[0]
        return found

    def _weighted(self, recording: Recording, start: Tensor, step: AttentionStep) -> Tensor:
        (relevance,) = relevances(recording, start, [step])
        return relevance.clamp(min=0)
