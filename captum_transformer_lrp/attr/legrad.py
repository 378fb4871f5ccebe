"""LeGrad (Bousselham et al., ICCV 2025)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from captum_transformer_lrp.attr import heads, views
from captum_transformer_lrp.attr.base import Settings
from captum_transformer_lrp.attr.token_attribution import (
    TokenAttribution,
    as_stream,
    by_token,
    live_tokens,
    maps_of,
    mean_of,
    mean_of_live,
    one_sequence,
)
from captum_transformer_lrp.engine.graph.ancestors import made_from
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.errors import ExplanationError


class LeGrad(TokenAttribution):
    r"""How each block's attention forms the features that the answer is read from.

    The mean of the tokens after block :math:`b` is read by what the model reads its last tokens
    with (final norm, head), which gives a score :math:`s^{(b)}` of the target, and

    .. math::
        \frac 1B \sum_b E_h E_q \Big(\frac{\partial s^{(b)}}{\partial A^{(b)}_{h,q,\cdot}}\Big)^+

    is the value of every token as a key.  Maps are returned as they are; the paper scales them to
    0 to 1.  The values of a block are those of all its skip connections up to the next attention.
    Padding takes part in no mean, and gets nothing.  Entries are not negative and have no fixed
    sum.

    Args:
        forward_func: as in :class:`TransformerAttribution`.
        layers: the attentions that take part, counted from the input, negative ones from the
            output; None for all.
        settings: ``rules``, ``stabilizer``, ``strict`` and ``dtype``, as in
            :class:`TransformerAttribution`.

    Reference:
        Walid Bousselham et al., *LeGrad: An Explainability Method for Vision Transformers via
        Feature Formation Sensitivity*, ICCV 2025; the pooling of the tokens, [CLS] among them, is
        that of their published code for CLIP.

    Example:
        >>> import timm, torch
        >>> from captum_transformer_lrp import LeGrad
        >>> model = timm.create_model("test_vit", num_classes=10).eval()
        >>> images = torch.randn(2, 3, 160, 160)
        >>> LeGrad(model, layers=[-2, -1]).attribute(images, target=1).shape
        torch.Size([2, 3, 160, 160])
    """

    keeps_readout = True
    multiplies_by_inputs = False

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        layers: Sequence[int] | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(forward_func, **settings)
        self.layers = None if layers is None else tuple(layers)

    def _token_values(self, recording: Recording, start: Tensor, steps: views.Pass) -> Tensor:
        views.one_pass(recording, advice=views.ONE_AT_A_TIME)
        if recording.output.dim() > 2:
            raise ExplanationError(
                "LeGrad reads one answer from the mean of all tokens, and this model gives an "
                f"answer for each of several tokens (its output has shape "
                f"{tuple(recording.output.shape)})"
            )
        steps = [step for step, _ in one_sequence(recording, steps)]
        outputs = block_outputs(recording)
        last = outputs[-1]
        values = []
        for index in views.chosen_layers(self.layers, len(steps)):
            step, output = steps[index], outputs[index]
            live = live_tokens(step)
            tokens = by_token(recording, output.detach(), output)
            pooled = mean_of_live(tokens, live).unsqueeze(1).requires_grad_()
            score = recording.read_out(as_stream(recording, pooled.expand_as(tokens), last))
            (of_pooled,) = recording.run(recording.gradient, start, [pooled], origin=score)
            share = live / live.sum(1, keepdim=True).clamp(min=1)
            seed = as_stream(recording, of_pooled * share.unsqueeze(-1), output)
            values.append(self._of_block(recording, step, output, seed, live))
        return mean_of(values)

    def _of_block(
        self, recording: Recording, step: AttentionStep, output: Tensor, seed: Tensor, live: Tensor
    ) -> Tensor:
        """One block's value of every token, (N, S)."""
        (gradient,) = recording.run(recording.gradient, seed, [step.attention], origin=output)
        positive = heads.per_head(gradient, step).clamp(min=0) * (maps_of(step) != 0)
        return mean_of_live(positive.mean(1), live)


def block_outputs(recording: Recording) -> list[Tensor]:
    """The token sequence after each attention's block: after its last skip connection."""
    outputs: list[Tensor] = []
    residuals = recording.tape.residuals
    is_read = made_from(recording.output, [residual.output for residual in residuals])
    if not is_read[-1]:
        raise ExplanationError(
            "the last skip connection of the forward pass is none that the output depends on, so "
            "it is not known how the model reads its last tokens: leave out what it does not need"
        )
    for residual, is_reached in zip(residuals, is_read, strict=True):
        if not is_reached:
            continue
        if residual.attentions:
            outputs.append(residual.output)
        elif outputs:
            outputs[-1] = residual.output
    return outputs
