"""Generic attention explainability (Chefer, Gur & Wolf, ICCV 2021)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from captum_transformer_lrp.attr.attention_attribution import RolloutAttribution, maps_by_gradients
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.recording import Recording


class GenericAttention(RolloutAttribution):
    r"""Attention maps weighted by their own gradients, rolled out over the blocks.

    .. math::
        \bar A = E_h\big((\nabla A \odot A)^+\big), \qquad R \leftarrow R + \bar A \cdot R
        \qquad \text{(eq. 5, 6)}

    from :math:`R = I`: the rollout of :class:`TransformerAttribution` without relevance.  Where a
    decoder attends to an encoder the rollout goes on by :math:`\bar A` into the encoder, which is
    eq. 10 without its two normalisations (eq. 8, 9) and without the context
    :math:`(\bar R^{ss})^\top` on its left.  The map is the row of :math:`R - I`.  Its
    entries are not negative; those of tokens sum to the mass that attentions have moved.

    Args:
        forward_func: as in :class:`TransformerAttribution`.
        settings: ``rules``, ``stabilizer``, ``strict`` and ``dtype``, as in
            :class:`TransformerAttribution`.

    Reference:
        Hila Chefer, Shir Gur, Lior Wolf, *Generic Attention-model Explainability for Interpreting
        Bi-Modal and Encoder-Decoder Transformers*, ICCV 2021.

    Example:
        >>> import timm, torch
        >>> from captum_transformer_lrp import GenericAttention
        >>> model = timm.create_model("test_vit", num_classes=10).eval()
        >>> GenericAttention(model).attribute(torch.randn(2, 3, 160, 160), target=1).shape
        torch.Size([2, 3, 160, 160])
    """

    def _maps(
        self, recording: Recording, start: Tensor, used: Sequence[AttentionStep]
    ) -> dict[int, Tensor]:
        return maps_by_gradients(
            recording,
            start,
            used,
            lambda place, gradient: (gradient * used[place].attention.detach()).clamp_(min=0),
        )
