"""What one attention adds to the token stream, taken apart by the token that it comes from.

Behind the product A V a branch merges its heads and multiplies by the output projection Wᴼ:
it is one affine map, the same for every token.  That map is read off the tape, whatever the model
calls its modules, and is checked to be what it is taken for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_transformer_lrp.attr import heads
from captum_transformer_lrp.attr.token_attribution import as_stream, by_token
from captum_transformer_lrp.engine.graph.seen import AttentionStep, Residual
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.errors import ExplanationError


def transformed_values(recording: Recording, step: AttentionStep, residual: Residual) -> Tensor:
    """f(x) of Kobayashi et al. 2020: each head's value vectors times its part of W^O.

    Returns:
        (N, heads, S, D), without the bias of the output projection, for an attention of plain maps
        (N, heads, S, S).

    Raises:
        ExplanationError: if the branch is not one affine map, the same for every token.
    """
    assert step.output is not None
    assert step.values is not None
    projection = _projection(recording, step, residual)
    values = heads.heads_apart(step.values.detach(), step)
    if values.dim() != 4 or step.gate != 0:
        raise ExplanationError(
            f"{step.name} has value vectors of shape {tuple(step.values.shape)}, of which it is "
            "not known which dimension is which"
        )
    return torch.einsum("nhsd,hdf->nhsf", values, projection)


def _projection(recording: Recording, step: AttentionStep, residual: Residual) -> Tensor:
    """The map from the heads' outputs to the branch, (heads, d, D)."""
    assert step.output is not None
    branch = by_token(recording, residual.branch.detach(), residual.branch)
    mixed = heads.heads_apart(step.output.detach(), step)
    if mixed.dim() != 4 or mixed.shape[2] != branch.shape[1]:
        raise ExplanationError(
            f"{step.name} mixes values into a tensor of shape {tuple(step.output.shape)}, of which "
            "it is not known which dimension is which"
        )
    examples, tokens, features = branch.shape
    rows = []
    # Row k of the map is the derivative of feature k.  It is the same at every token, so that each
    # token can be asked for another one.
    for first in range(0, features, examples * tokens):
        wanted = (torch.arange(examples * tokens, device=branch.device) + first) % features
        seed = torch.zeros_like(branch).flatten(0, 1)
        seed[torch.arange(len(wanted), device=branch.device), wanted] = 1
        gradient = _pulled_back(recording, step, residual, seed.reshape(branch.shape))
        rows.append(gradient.transpose(1, 2).flatten(0, 1))
    projection = torch.cat(rows)[:features].permute(1, 2, 0)
    bias = branch - torch.einsum("nhsd,hdf->nsf", mixed, projection)
    spread = (bias - bias[:1, :1]).abs().amax()
    rounding = torch.finfo(branch.dtype).eps ** 0.75
    if bool(spread > rounding * branch.abs().amax().clamp(min=1e-30)):
        raise ExplanationError(
            f"what {step.name} adds to its tokens is not one affine map of its heads' outputs, the "
            "same for every token (a normalisation or an activation lies in the branch), so it "
            "cannot be taken apart by token"
        )
    return projection


def _pulled_back(
    recording: Recording, step: AttentionStep, residual: Residual, seed: Tensor
) -> Tensor:
    """The derivative of the branch by A V, (N, heads, S, d)."""
    assert step.output is not None
    laid_out = as_stream(recording, seed, residual.branch)
    wanted = [step.output]
    (found,) = recording.run(recording.gradient, laid_out, wanted, origin=residual.branch)
    return heads.heads_apart(found, step)
