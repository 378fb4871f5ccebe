"""Raw attention, a baseline of the paper."""

from __future__ import annotations

from torch import Tensor

from captum_transformer_lrp.attr.attention_attribution import SingleAttentionAttribution
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.phases import Rollout
from captum_transformer_lrp.engine.recording import Recording


class RawAttention(SingleAttentionAttribution):
    """The attention map of one block, averaged over its heads.

    It is the same for every target, and the entries of tokens sum to 1.  The default is the block
    nearest the output, the paper's block 1.

    Args:
        forward_func: as in :class:`TransformerAttribution`.
        layer: which attention, counted from the input as in a list; -1 is nearest the output.
        settings: ``rules``, ``stabilizer``, ``strict`` and ``dtype``, as in
            :class:`TransformerAttribution`.

    Example:
        >>> import timm, torch
        >>> from captum_transformer_lrp import RawAttention
        >>> model = timm.create_model("test_vit", num_classes=10).eval()
        >>> row = RawAttention(model).attribute(torch.randn(1, 3, 160, 160), granularity="token")
        >>> round(row.sum().item(), 4)
        1.0
    """

    phases = (Rollout,)
    multiplies_by_inputs = False

    def _weighted(self, recording: Recording, start: Tensor, step: AttentionStep) -> Tensor:
        return step.attention.detach()
