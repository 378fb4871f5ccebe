"""AttCAT (Qiang et al., NeurIPS 2022)."""

from __future__ import annotations

from torch import Tensor

from captum_transformer_lrp.attr.base import sum_all
from captum_transformer_lrp.attr.token_attribution import (
    TokenAttribution,
    by_token,
    live_tokens,
    maps_of,
    mean_of_live,
    one_sequence,
)
from captum_transformer_lrp.attr.views import Pass
from captum_transformer_lrp.engine.recording import Recording


class AttCat(TokenAttribution):
    r"""Attentive class activation tokens: gradient times hidden state, weighed by attention.

    With :math:`h^{(b)}_i` the hidden state of token :math:`i` that goes into block :math:`b`, and
    the attention that the token gets there from all tokens, averaged over them and the heads,

    .. math::
        \sum_b \Big(E_h E_q A^{(b)}_{h,q,i}\Big)
        \sum_d \frac{\partial y_t}{\partial h^{(b)}_{i,d}}\, h^{(b)}_{i,d}

    Values are of either sign and have no fixed sum.  Padding takes no part in the mean over
    queries.

    Args:
        forward_func: as in :class:`TransformerAttribution`.
        settings: ``rules``, ``stabilizer``, ``strict`` and ``dtype``, as in
            :class:`TransformerAttribution`.

    Reference:
        Yao Qiang et al., *AttCAT: Explaining Transformers via Attentive Class Activation Tokens*,
        NeurIPS 2022; which hidden state and which mean is meant is taken from their published
        code.

    Example:
        >>> import timm, torch
        >>> from captum_transformer_lrp import AttCat
        >>> model = timm.create_model("test_vit", num_classes=10).eval()
        >>> images = torch.randn(2, 3, 160, 160)
        >>> AttCat(model).attribute(images, target=1, granularity="token").shape
        torch.Size([2, 101])
    """

    def _token_values(self, recording: Recording, start: Tensor, steps: Pass) -> Tensor:
        pairs = one_sequence(recording, steps)
        hidden = [residual.tensor for _, residual in pairs]
        gradients = recording.run(recording.gradient, start, hidden)
        values = []
        for (step, residual), gradient in zip(pairs, gradients, strict=True):
            stream = residual.tensor
            activation = by_token(recording, gradient * stream.detach(), stream).sum(-1)
            attention = mean_of_live(maps_of(step).mean(1), live_tokens(step))
            values.append(activation * attention)
        return sum_all(values)
