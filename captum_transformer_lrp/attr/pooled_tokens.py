"""The tokens that a model pools, each taken as if the model had read its answer from it alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_transformer_lrp.attr import views
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.engine.tape import Phase, Pooling
from captum_transformer_lrp.errors import ExplanationError

_WHOLE = 1e-4
"""By how much mass may miss 1 for rounding."""


@dataclass
class PooledTokens:
    """What the phases bring to the tokens that are pooled into the answer to one target.

    Args:
        source: the tokens, on the tape.
        layout: from the axes of ``source`` to (N, tokens, features), and back.
        gradient: what ∂y/∂x of each token would be if all were read from it, (N, tokens, features).
        relevance: R of each token, as a distribution over its features.
        weights: the share of the answer's relevance that each token has, not below 0, (N, tokens).
    """

    source: Tensor
    layout: Layout
    gradient: Tensor
    relevance: Tensor
    weights: Tensor

    def seeds(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each token that has a weight the seeds of gradient, relevance and mass.

        If none has, as where all logits are 0 whatever the tokens, those of the first token.
        """
        features = self.relevance.shape[-1]
        weighing = self.weights.any(0).nonzero().flatten().tolist()
        for token in weighing or [0]:
            mass = self.weights[:, token]
            alone = torch.zeros_like(self.relevance)
            alone[:, token] = (mass > 0).unsqueeze(-1)
            yield (
                self.layout.back(self.gradient * alone),
                self.layout.back(self.relevance * alone),
                self.layout.back(alone * (mass / features)[:, None, None]),
            )


@dataclass
class Layout:
    """Where examples, tokens and features lie in a tensor.

    Args:
        order: its axes, those of examples first, then those of tokens, then those of features.
        shape: its sizes in that order.
        examples: how many of the axes are of examples, 0 or 1.
        tokens: how many are of tokens.
    """

    order: tuple[int, ...]
    shape: torch.Size
    examples: int
    tokens: int

    @classmethod
    def of(cls, pooling: Pooling, examples: int | None) -> Layout:
        """The layout of what is pooled, with examples along an axis, or a single one."""
        first = () if examples is None else (examples,)
        last = (n for n in range(pooling.source.dim()) if n not in (*first, *pooling.axes))
        order = (*first, *pooling.axes, *last)
        shape = torch.Size(pooling.source.shape[axis] for axis in order)
        return cls(order, shape, len(first), len(pooling.axes))

    def there(self, values: Tensor) -> Tensor:
        """As (N, tokens, features)."""
        ends = self.examples, self.examples + self.tokens
        sizes = (self.shape[: ends[0]], self.shape[ends[0] : ends[1]], self.shape[ends[1] :])
        return values.permute(self.order).reshape([size.numel() for size in sizes])

    def back(self, values: Tensor) -> Tensor:
        """The inverse of :meth:`there`."""
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return values.reshape(self.shape).permute(inverse)


def pooled_tokens(recording: Recording, start: Tensor) -> PooledTokens | None:
    """The tokens that the answer to the target of seed ``start`` is pooled from.

    They are what the first reduction after the last attention reduces that all token mass goes
    through.  None for models that read their answer from one token.

    Raises:
        ExplanationError: if it is read from several, but not by such a reduction.
    """
    tape = recording.tape
    last = [one for one in tape.poolings if one.attentions == len(tape.attentions)]
    for pooling in last:
        (mass,) = tape.backward(Phase.ROLLOUT, recording.output, start, [pooling.source])
        if not bool(mass.any()):  # a statistic, as norms that are written by hand take them
            continue
        examples = views.batch_axis(recording, pooling.source)
        if examples in pooling.axes:
            continue
        layout = Layout.of(pooling, examples)
        mass = layout.there(mass).sum(-1, keepdim=True)
        if bool(((mass.sum(1) - 1).abs() < _WHOLE).all()):
            break
    else:
        _require_one_token(recording, start)
        return None
    source = [pooling.source]
    (gradient,) = tape.backward(Phase.GRADIENT, recording.output, start, source)
    (relevance,) = tape.backward(Phase.RELEVANCE, recording.output, start, source)
    gradient, relevance = layout.there(gradient), layout.there(relevance)
    return PooledTokens(
        pooling.source,
        layout,
        gradient=_divided(gradient, mass),
        relevance=_divided(relevance, relevance.abs().sum(-1, keepdim=True)),
        weights=relevance.sum(-1).clamp(min=0),
    )


def _require_one_token(recording: Recording, start: Tensor) -> None:
    """Raise if mass arrives at several tokens of an example, though no attention has moved it."""
    if not recording.tape.streams:
        return
    if bool((views.token_mass(recording, start).count_nonzero(1) > 1).any()):
        raise ExplanationError(
            "the model reads its answer from several tokens, but not by a mean, a sum, a maximum "
            'or a pooling layer over all of them: use pooled="together"'
        )


def _divided(values: Tensor, by: Tensor) -> Tensor:
    """0 for tokens that are not read at all, such as padding."""
    return torch.where(by > 0, values / by.clamp(min=torch.finfo(by.dtype).tiny), 0.0)
