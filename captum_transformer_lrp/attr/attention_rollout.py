"""Attention rollout (Abnar & Zuidema 2020), a baseline of the paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from torch import Tensor
from typing_extensions import Unpack

from captum_transformer_lrp.attr import heads, views
from captum_transformer_lrp.attr.attention_attribution import RolloutAttribution
from captum_transformer_lrp.attr.base import Settings
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.phases import Rollout
from captum_transformer_lrp.engine.recording import Recording

HeadFusion: TypeAlias = Literal["mean", "max", "min"]


class AttentionRollout(RolloutAttribution):
    r"""The product of the attention maps themselves.

    .. math::
        \hat A^{(b)} = I + E_h A^{(b)}, \qquad
        \mathrm{rollout} = \hat A^{(1)} \cdot \hat A^{(2)} \cdots \hat A^{(B)}
        \qquad \text{(eq. 15, 16)}

    It is the same for every target.  With ``row_normalize=True`` in :meth:`attribute` the rows of
    each factor sum to 1, as Abnar & Zuidema have it.  The map is the row of the product less I.
    With B blocks and the mean over heads those of tokens sum to :math:`2^B - 1`, and to
    :math:`1 - 2^{-B}` if rows are normalised.

    Args:
        forward_func: as in :class:`TransformerAttribution`.
        head_fusion: how the heads of a block become one map: their mean (eq. 15), max or min.
        discard_ratio: the share of each fused map's lowest entries that is set to 0, from 0
            (none, the default) to below 1.
        settings: ``rules``, ``stabilizer``, ``strict`` and ``dtype``, as in
            :class:`TransformerAttribution`.

    Reference:
        Samira Abnar, Willem Zuidema, *Quantifying Attention Flow in Transformers*, ACL 2020.

    Example:
        >>> import timm, torch
        >>> from captum_transformer_lrp import AttentionRollout
        >>> model = timm.create_model("test_vit", num_classes=10).eval()
        >>> images = torch.randn(2, 3, 160, 160)
        >>> AttentionRollout(model).attribute(images, granularity="token").shape
        torch.Size([2, 101])
    """

    phases = (Rollout,)
    multiplies_by_inputs = False

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        head_fusion: HeadFusion = "mean",
        discard_ratio: float = 0.0,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(forward_func, **settings)
        views.check_choice("head_fusion", head_fusion, HeadFusion)
        if not 0 <= discard_ratio < 1:
            raise ValueError(f"discard_ratio must be at least 0 and below 1; found {discard_ratio}")
        self.head_fusion = head_fusion
        self.discard_ratio = discard_ratio

    def _maps(
        self, recording: Recording, start: Tensor, used: Sequence[AttentionStep]
    ) -> dict[int, Tensor]:
        maps = {}
        for step in used:
            attention = step.attention.detach()
            if self.head_fusion == "mean" and not self.discard_ratio:
                maps[step.index] = attention  # the rollout phase takes the mean by itself
                continue
            fused = heads.fused_heads(recording, attention, step, self.head_fusion)
            if self.discard_ratio:
                fused = _without_lowest(fused, self.discard_ratio)
            fused = fused.expand_as(heads.per_head(attention, step))
            maps[step.index] = heads.as_attention(fused, step)
        return maps


def _without_lowest(maps: Tensor, ratio: float) -> Tensor:
    """Each example's map (N, 1, S, S) with the lowest ``ratio`` of its entries set to 0."""
    flat = maps.flatten(1)
    lowest = flat.topk(int(flat.shape[1] * ratio), dim=1, largest=False).indices
    return flat.scatter(1, lowest, 0.0).reshape_as(maps)
