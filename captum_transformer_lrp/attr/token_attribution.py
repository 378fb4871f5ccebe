"""What the methods have in common that give every token of one sequence a value."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.attr import heads, views
from captum_transformer_lrp.attr.base import RecordedAttribution
from captum_transformer_lrp.engine.graph.seen import AttentionStep, Residual
from captum_transformer_lrp.engine.lineage.passes import blocks
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.errors import ExplanationError

_INSTEAD = "use TransformerAttribution or GenericAttention"


class TokenAttribution(RecordedAttribution):
    """A method that gives a value to every token of the sequence that all blocks work on.

    Models whose blocks do not all work on one sequence of tokens, such as windowed ones, are
    refused.
    """

    keeps_streams = True

    def _explained(self, recording: Recording, start: Tensor, view: views.View) -> Any:
        return views.row_view(
            recording, view, lambda steps: self._token_values(recording, start, steps)
        )

    @abstractmethod
    def _token_values(self, recording: Recording, start: Tensor, steps: views.Pass) -> Tensor:
        """A value for every token of a pass, (N, S), of the target of seed ``start``."""


def one_sequence(
    recording: Recording, steps: views.Pass | None = None
) -> list[tuple[AttentionStep, Residual]]:
    """Every attention of a pass with the skip connection around it, if all are in one sequence.

    Raises:
        ExplanationError: unless every attention is from all tokens of one sequence to all tokens
            of it, as it is not with windows, merged patches or cross-attention.
    """
    count = recording.output.shape[0]
    steps = views.one_pass(recording, steps)
    size = views.token_stream(recording, steps).shape
    found = []
    for step in steps:
        maps = heads.per_head(step.attention, step)
        if step.residual is None:
            raise ExplanationError(
                f"no skip connection leads around {step.name}, so it is not known which sequence "
                f"of tokens it works on, which this method is about: {_INSTEAD}"
            )
        tokens = step.residual.tensor.shape
        square = maps.dim() == 4 and maps.shape[0] == count and maps.shape[2] == maps.shape[3]
        if not square or tokens != size or maps.shape[2] * count != tokens[:-1].numel():
            raise ExplanationError(
                f"{step.name} does not attend from all tokens of the model's one sequence to all "
                f"of them (its map has shape {tuple(step.attention.shape)}, the sequence "
                f"{tuple(size)}), which this method is about: {_INSTEAD}"
            )
        found.append((step, step.residual))
    in_blocks = blocks(recording.tape, steps)
    for block in in_blocks:
        if len(block) > 1:
            raise ExplanationError(
                f"{' and '.join(step.name for step in block)} attend beside each other, and this "
                f"method is about blocks of one attention: {_INSTEAD}"
            )
    if not views.are_same_tokens(recording, in_blocks):
        raise ExplanationError(
            f"the tokens of {steps[-1].name} are not those of {steps[0].name}, though there are as "
            f"many, and this method is about one sequence of tokens: {_INSTEAD}"
        )
    return found


def maps_of(step: AttentionStep) -> Tensor:
    """A, (N, heads, S, S)."""
    return heads.per_head(step.attention.detach(), step)


def live_tokens(step: AttentionStep) -> Tensor:
    """Which tokens any token attends to, (N, S): all but padding."""
    return (maps_of(step) != 0).flatten(1, 2).any(1)


def mean_of_live(values: Tensor, live: Tensor) -> Tensor:
    """The mean of (N, S, ...) over the tokens that are not padding, (N, ...)."""
    weights = live.to(values.dtype).reshape(*live.shape, *[1] * (values.dim() - 2))
    return (values * weights).sum(1) / weights.sum(1).clamp(min=1)


def by_token(recording: Recording, values: Tensor, like: Tensor) -> Tensor:
    """Values laid out as the token sequence ``like`` of the tape, examples first: (N, S, D)."""
    axis = views.batch_axis(recording, like)
    if axis is None:
        return values.reshape(1, -1, values.shape[-1])
    return values.movedim(axis, 0).flatten(1, -2)


def as_stream(recording: Recording, tokens: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`by_token`: (N, S, D) laid out as the tensor ``like``."""
    axis = views.batch_axis(recording, like)
    if axis is None:
        return tokens.reshape(like.shape)
    return tokens.reshape(like.movedim(axis, 0).shape).movedim(0, axis)


def mean_of(values: Sequence[Tensor]) -> Tensor:
    """The mean of tensors of one shape."""
    return torch.stack(list(values)).mean(0)
