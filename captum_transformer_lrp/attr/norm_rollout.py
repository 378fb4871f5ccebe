"""Rollout of the norms of what tokens add to tokens (Kobayashi, GlobEnc, ALTI)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from typing_extensions import Unpack

from captum_transformer_lrp.attr import views
from captum_transformer_lrp.attr.base import Settings
from captum_transformer_lrp.attr.token_attribution import (
    TokenAttribution,
    by_token,
    maps_of,
    one_sequence,
)
from captum_transformer_lrp.attr.transformed_values import transformed_values
from captum_transformer_lrp.engine.graph.seen import AttentionStep, Normalized, Residual
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.errors import ExplanationError

Contribution: TypeAlias = Literal["residual", "residual_norm", "globenc", "alti"]

# Elements of (queries, S, D) that are taken apart at a time: 32 MB in float64.
_CHUNK = 2**22


class NormRollout(TokenAttribution):
    r"""What tokens add to each other, vectors and all, rolled out over the blocks.

    Attention, skip connection and normalisation add to token :math:`i` from token :math:`j`

    .. math::
        T_{ij} = \sum_h A^h_{ij}\, v^h_j W^{O,h} + \delta_{ij}\, x_i

    and what counts as a contribution of :math:`j` to :math:`i` is, by ``contribution``,

    * ``"residual"``: :math:`\|T_{ij}\|_2` (Kobayashi et al. 2021, AttnRes-N);
    * ``"residual_norm"``: the same behind the LayerNorm that follows, whose deviation is held
      constant, :math:`\|\gamma\,(T_{ij} - \overline{T_{ij}})/\sigma_i\|_2` (ibid., AttnResLn-N);
    * ``"globenc"``: behind the LayerNorm after the MLP, too, of which the MLP itself is left out
      (Modarressi et al. 2022, N\ :sub:`ENC`);
    * ``"alti"``: behind the first LayerNorm, how much nearer :math:`T_{ij}` brings to the block's
      output :math:`y_i`, :math:`(\|y_i\|_1 - \|y_i - T_{ij}\|_1)^+`, each row divided by its sum
      (Ferrando et al. 2022).

    The matrices are multiplied as in eq. 16; they hold the skip connection already.  LayerNorms
    count where the token stream itself goes through them, as in post-norm models like BERT.  In
    pre-norm models it does not, and the first three are the same.  It is the same for every target
    that is read from the same tokens.  The skip connection is part of each matrix, so there is no I
    to leave out.  The tokens' entries of ``"alti"`` sum to 1; the others have no fixed sum.

    Args:
        forward_func: as in :class:`TransformerAttribution`.
        contribution: see above.
        settings: ``rules``, ``stabilizer``, ``strict`` and ``dtype``, as in
            :class:`TransformerAttribution`.

    Reference:
        Goro Kobayashi et al., *Incorporating Residual and Normalization Layers into Analysis of
        Masked Language Models*, EMNLP 2021; Ali Modarressi et al., *GlobEnc: Quantifying Global
        Token Attribution by Incorporating the Whole Encoder Layer in Transformers*, NAACL 2022;
        Javier Ferrando et al., *Measuring the Mixing of Contextual Information in the
        Transformer*, EMNLP 2022 (ALTI).

    Example:
        >>> import timm, torch
        >>> from captum_transformer_lrp import NormRollout
        >>> model = timm.create_model("test_vit", num_classes=10).eval()
        >>> images = torch.randn(2, 3, 160, 160)
        >>> row = NormRollout(model, contribution="alti").attribute(images, granularity="token")
        >>> torch.allclose(row.sum(1), torch.ones(2))
        True
    """

    multiplies_by_inputs = False

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        contribution: Contribution = "globenc",
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(forward_func, **settings)
        views.check_choice("contribution", contribution, Contribution)
        self.contribution = contribution

    def _token_values(self, recording: Recording, start: Tensor, steps: views.Pass) -> Tensor:
        row = views.token_mass(recording, start, steps).detach().unsqueeze(1)
        for step, residual in reversed(one_sequence(recording, steps)):
            row = row @ self._contributions(recording, step, residual)
        return row.squeeze(1)

    def _contributions(
        self, recording: Recording, step: AttentionStep, residual: Residual
    ) -> Tensor:
        """How much each token adds to each, (N, S, S)."""
        values = transformed_values(recording, step, residual)
        norms = [norm for norm in self._norms(recording, residual) if norm is not None]
        linear = [_linear_part(recording, norm) for norm in norms]
        summed = norms[0].output if norms and self.contribution == "alti" else residual.output
        output = by_token(recording, summed.detach(), residual.output)
        stream = by_token(recording, residual.skipped.detach(), residual.skipped)
        examples = []
        for index, maps in enumerate(maps_of(step)):
            rows = []
            for queries in _chunks(*stream.shape[1:]):
                added = torch.einsum("hqk,hkf->qkf", maps[:, queries], values[index])
                places = torch.arange(stream.shape[1], device=stream.device)[queries]
                added[torch.arange(len(places), device=stream.device), places] += stream[
                    index, queries
                ]
                for centred, scale in linear:
                    added = added - added.mean(-1, keepdim=True) if centred else added
                    added = added * scale[index, queries].unsqueeze(1)
                rows.append(self._sizes(added, output[index, queries]))
            examples.append(torch.cat(rows))
        return torch.stack(examples)

    def _norms(self, recording: Recording, residual: Residual) -> list[Normalized | None]:
        """The normalisations that the stream goes through and that count."""
        if self.contribution == "residual":
            return []
        residuals = recording.tape.residuals
        place = next(i for i, one in enumerate(residuals) if one is residual)
        found = [stream_norm(recording, place)]
        if self.contribution == "globenc":
            for later in range(place + 1, len(residuals)):
                if residuals[later].attentions:
                    break
                found.append(stream_norm(recording, later))
        return found

    def _sizes(self, added: Tensor, output: Tensor) -> Tensor:
        """The size of each contribution, (queries, S), of vectors (queries, S, D)."""
        if self.contribution != "alti":
            return added.norm(dim=-1)
        missing = (output.unsqueeze(1) - added).abs().sum(-1)
        nearer = (output.abs().sum(-1, keepdim=True) - missing).clamp(min=0)
        # A masked token adds nothing, and brings nothing nearer but for rounding.
        nearer = nearer * (added != 0).any(-1)
        return nearer / nearer.sum(-1, keepdim=True).clamp(min=torch.finfo(nearer.dtype).tiny)


def stream_norm(recording: Recording, place: int) -> Normalized | None:
    """The normalisation that the token stream goes through after its skip connection, if any.

    The last one, too, if the stream goes through one after all others.
    """
    residuals = recording.tape.residuals
    if place < len(residuals) - 1:
        return residuals[place].norm
    if place == 0 or any(one.norm is None for one in residuals[:-1]):
        return None
    for norm in recording.tape.normalizations:
        if norm.source is residuals[place].output:
            return norm
    return None


def _linear_part(recording: Recording, norm: Normalized) -> tuple[bool, Tensor]:
    """Whether a normalisation subtracts the mean, and γ/σ of every token, (N, S, D)."""
    found = norm.kernel.last_axes_of(norm.source.detach())
    if found is None or len(found[0]) > 1:
        raise ExplanationError(
            "the token stream goes through a normalisation that is no LayerNorm or RMSNorm over "
            'the features of each token: use contribution="residual"'
        )
    _, centred, scale = found
    return centred, by_token(recording, scale.expand_as(norm.source), norm.source)


def _chunks(tokens: int, features: int) -> Iterator[slice]:
    size = max(1, _CHUNK // (tokens * features))
    for first in range(0, tokens, size):
        yield slice(first, min(first + size, tokens))
