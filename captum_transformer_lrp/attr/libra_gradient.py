"""LibraGrad (Mehri et al., CVPR 2025): input times pruned gradient, and FullGrad+."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor

from captum_transformer_lrp.attr import views
from captum_transformer_lrp.attr.token_attribution import by_token, mean_of, one_sequence
from captum_transformer_lrp.attr.transformer_lrp import TransformerLRP
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.rules.call import Stabilizer
from captum_transformer_lrp.rules.registry import Target

Aggregation: TypeAlias = Literal["input", "layers"]


class LibraGradient(TransformerLRP):
    r"""Input times a gradient whose backward pass is pruned until it is complete.

    In the backward pass attention maps, the gates of activation functions
    (:math:`\Phi(x)` of :math:`x\,\Phi(x)`) and the deviations of normalisations are constants, and
    each factor of a gated product gets half (section 3.5, *Libra neural operations*).  What the
    model is then is affine in its input, so that by Corollary 3

    .. math:: x \cdot \nabla_{\!x} f + \sum_i b_i \cdot \nabla_{\!b_i} f = f(x)

    It is computed as relevance: :math:`x \odot \nabla` goes from layer to layer by the preset
    ``"libra"``.

    Args:
        forward_func: as in :class:`TransformerAttribution`.
        aggregation: ``"input"`` for Libra Input × Grad, at the input; ``"layers"`` for Libra
            FullGrad+ without its maps of biases (Table 5, *No Bias*): the mean over blocks of
            Input × Grad at the tokens that go into each, for models whose blocks all work on one
            sequence of tokens.
        rules: as in :class:`TransformerAttribution`; they go before the preset's.
        stabilizer: likewise.
        strict: likewise.
        dtype: likewise.

    Reference:
        Faridoun Mehri et al., *LibraGrad: Balancing Gradient Flow for Universally Better Vision
        Transformer Attributions*, CVPR 2025.

    Example:
        >>> import timm, torch
        >>> from captum_transformer_lrp import LibraGradient
        >>> _ = torch.manual_seed(0)
        >>> model = timm.create_model("test_vit", num_classes=10).eval()
        >>> images = torch.randn(2, 3, 160, 160)
        >>> attributions, delta = LibraGradient(model).attribute(
        ...     images, target=3, return_convergence_delta=True)
        >>> logits = model(images)[:, 3]  # delta: the biases' share
        >>> torch.allclose(attributions.flatten(1).sum(1) + delta, logits, atol=1e-5)
        True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        aggregation: Aggregation = "input",
        rules: dict[Target, PropagationRule | type[PropagationRule]] | None = None,
        stabilizer: Stabilizer | None = None,
        strict: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        # By name: TransformerLRP takes more, which would no longer be LibraGrad.
        super().__init__(
            forward_func,
            preset="libra",
            start="logit",
            rules=rules,
            stabilizer=stabilizer,
            strict=strict,
            dtype=dtype,
        )
        views.check_choice("aggregation", aggregation, Aggregation)
        self.aggregation = aggregation
        self.keeps_streams = self.needs_attention = aggregation != "input"

    def _down(
        self, recording: Recording, one_hot: Tensor, granularity: str
    ) -> list[tuple[Tensor, ...]]:
        if self.aggregation == "input":
            return super()._down(recording, one_hot, granularity)
        streams = [residual.tensor for _, residual in one_sequence(recording)]
        (found,) = self._arrived(recording, one_hot, streams)
        values = [
            by_token(recording, one.detach(), stream).sum(-1)
            for one, stream in zip(found, streams, strict=True)
        ]
        row = mean_of(values)
        if granularity == "token":
            return [(row,)]
        spread = views.spread_over_features(recording, row)
        maps = views.input_mass(recording, views.token_stream(recording), spread)
        return [tuple(one.detach() for one in maps)]
