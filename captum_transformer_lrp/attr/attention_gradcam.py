"""Grad-CAM on an attention map, a baseline of the paper."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_transformer_lrp.attr import heads
from captum_transformer_lrp.attr.attention_attribution import SingleAttentionAttribution
from captum_transformer_lrp.attr.base import gradients
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.phases import Gradient, Rollout
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.errors import ExplanationError


class AttentionGradCam(SingleAttentionAttribution):
    r"""Grad-CAM with the [CLS] row of the last attention as the feature map (section 4).

    Head :math:`h` is weighted by the mean of its gradients along the row of the class token, and
    the map is :math:`(E_h\,\bar\nabla_h A_h)^+`.  The class token's own column takes no part in
    the mean, nor do tokens that the row cannot attend to: padding, and later tokens of a causal
    model.  Under mean pooling the rows are averaged, each without its own column.  Entries are not
    negative and have no fixed sum.

    Args:
        forward_func: as in :class:`TransformerAttribution`.
        layer: which attention, counted from the input as in a list; -1 is nearest the output.
        settings: ``rules``, ``stabilizer``, ``strict`` and ``dtype``, as in
            :class:`TransformerAttribution`.

    Reference:
        Ramprasaath R. Selvaraju et al., *Grad-CAM*, ICCV 2017, as section 4 of Chefer et al. 2021
        applies it to Transformers.

    Example:
        >>> import timm, torch
        >>> from captum_transformer_lrp import AttentionGradCam
        >>> model = timm.create_model("test_vit", num_classes=10).eval()
        >>> AttentionGradCam(model).attribute(torch.randn(2, 3, 160, 160), target=1).shape
        torch.Size([2, 3, 160, 160])
    """

    phases = (Rollout, Gradient)

    def _weighted(self, recording: Recording, start: Tensor, step: AttentionStep) -> Tensor:
        (gradient,) = gradients(recording, start, [step])
        attention = heads.per_head(step.attention.detach(), step)
        gradient = heads.per_head(gradient, step)
        count = recording.output.shape[0]
        if attention.dim() != 4 or attention.shape[0] != count:
            raise ExplanationError(
                f"{step.name} has no row of a class token (its map has shape "
                f"{tuple(step.attention.shape)}): Grad-CAM on attention needs plain attention"
            )
        rows, columns = attention.shape[2:]
        # Rows that the target does not depend on have no gradient: what is left is the readout's.
        reads = (gradient != 0).any(-1).any(1)
        own = torch.eye(rows, columns, dtype=torch.bool, device=gradient.device)
        # A masked score has a gradient, too, by the value that it would let in.
        others = (attention != 0).any(1, keepdim=True) & ~own
        means = (gradient * others).sum(-1) / others.sum(-1).clamp(min=1)
        weights = means.sum(-1) / reads.sum(-1).clamp(min=1).unsqueeze(-1)
        fused = (attention * weights[..., None, None]).mean(1, keepdim=True).clamp(min=0)
        return heads.as_attention(fused.expand_as(attention), step)
