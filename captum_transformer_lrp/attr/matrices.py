"""The matrix C between tokens, of the maps of single attentions (eq. 13–14)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from captum_transformer_lrp.attr import heads, views
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.lineage.passes import blocks
from captum_transformer_lrp.engine.phases import Arrivals
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.errors import ExplanationError

_INSTEAD = 'use granularity="input" or "token" without row_normalize'


def attention_matrices(
    recording: Recording, steps: views.Pass, maps: Mapping[int, Tensor]
) -> list[Tensor]:
    """E_h of each block's map, (N, S, S) each; ``maps`` are by the attentions' indices.

    Several attentions of a block are its heads, if they are joined, or branches, if they are
    added.  The mass that the block's sum sends to each head of each tells which: all heads of one
    branch get it together, in equal parts unless the model weighs them once more.

    Raises:
        ExplanationError: if the model's attentions are not all between the same tokens.
    """
    count, found = recording.output.shape[0], {}
    for step in steps:
        weighted = heads.per_head(maps[step.index], step)
        shape = weighted.shape
        if len(shape) != 4 or shape[0] != count or shape[2] != shape[3]:
            raise ExplanationError(
                f"{step.name} attends within windows or between different tokens (its map has "
                f"shape {tuple(step.attention.shape)}), so there is no one matrix over all tokens: "
                f"{_INSTEAD}"
            )
        found[step.index] = (weighted * _shares(recording, step, weighted)).sum(1)
    sizes = {matrix.shape[-1] for matrix in found.values()}
    if len(sizes) > 1:
        raise ExplanationError(
            f"the attentions are between {sorted(sizes)} tokens, so they have no product: "
            f"{_INSTEAD}"
        )
    together = blocks(recording.tape, steps)
    if not views.are_same_tokens(recording, together):
        raise ExplanationError(
            f"the tokens of {steps[-1].name} are not those of {steps[0].name}, though there are as "
            f"many, so there is no one matrix over all tokens: {_INSTEAD}"
        )
    return [torch.stack([found[step.index] for step in block]).sum(0) for block in together]


def _shares(recording: Recording, step: AttentionStep, maps: Tensor) -> Tensor:
    """The part of a block's mass that comes to each head and query, (N, heads, S, 1)."""
    tape = recording.tape
    stream = next((one for one in tape.streams if one.attentions & step.event), None)
    if stream is None:
        return torch.full_like(maps[:, :, :, :1], 1 / maps.shape[1])
    arrivals = Arrivals(step.index)
    seed = torch.ones_like(stream.branch)
    recording.run(arrivals, seed, [step.attention], origin=stream.branch)
    if arrivals.found is None:
        raise ExplanationError(
            f"{step.name} lies below another attention of its block, so there is no one matrix "
            f"over all tokens: {_INSTEAD}"
        )
    of_token = stream.branch.numel() / (maps.shape[0] * maps.shape[2])
    return heads.per_head(arrivals.found, step)[..., :1] / of_token


def rollout_matrix(matrices: Sequence[Tensor], *, row_normalize: bool) -> Tensor:
    """C of eq. 14: the product of I + E_h(∇A ⊙ R)⁺ over the blocks.

    The paper numbers blocks from the output; in its published code and here the matrix of the
    block nearest the output stands on the left, so that row i says what token i of the output is
    made from.

    Args:
        matrices: (N, S, S) for each block, the block nearest the input first.
        row_normalize: whether each I + E_h(∇A ⊙ R)⁺ has its rows divided by their sums.

    Example:
        >>> half = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
        >>> rollout_matrix([half, half], row_normalize=False)
        tensor([[[1., 2.],
                 [0., 1.]]])
    """
    unmoved, moved = rollout_parts(matrices, row_normalize=row_normalize)
    return moved + torch.diag_embed(unmoved)


def rollout_parts(matrices: Sequence[Tensor], *, row_normalize: bool) -> tuple[Tensor, Tensor]:
    """C of eq. 14 in two parts: what no attention has moved, and what at least one has.

    Takes the arguments of :func:`rollout_matrix`.

    Returns:
        The diagonal of the first, (N, S), all ones unless rows are normalised; and the second,
        (N, S, S), which is C − I then.  It is computed without that difference.

    Example:
        >>> half = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
        >>> rollout_parts([half, half], row_normalize=False)[1]
        tensor([[[0., 2.],
                 [0., 0.]]])
    """
    unmoved = matrices[0].new_ones(matrices[0].shape[:-1])
    moved = torch.zeros_like(matrices[0])
    for matrix in matrices:
        stays = torch.ones_like(unmoved)
        if row_normalize:
            stays = 1 / (1 + matrix.sum(-1))
            matrix = matrix * stays.unsqueeze(-1)
        moved = stays.unsqueeze(-1) * moved + matrix @ moved + matrix * unmoved.unsqueeze(-2)
        unmoved = stays * unmoved
    return unmoved, moved
