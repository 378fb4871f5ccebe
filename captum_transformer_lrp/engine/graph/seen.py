"""What a forward pass was seen to do: attentions, skip connections, normalisations."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.rules.normalization import NormalizationKernel


@dataclass(eq=False)
class Residual:
    """One skip connection of the forward pass: a stream of tokens, and a branch added to it.

    Args:
        stream: the tokens that skip the branch, before they were copied or scaled; on the tape, as
            are the others.
        skipped: the same as they are added.
        branch: what is added to it.
        output: their sum.
        attends: whether an attention lies in the branch.
        norm: the normalisation that the sum goes through before the stream goes on, as in
            post-norm models; None if the sum is the stream.
    """

    stream: Tensor
    skipped: Tensor
    branch: Tensor
    output: Tensor
    attends: bool
    norm: Normalized | None = None


@dataclass(eq=False)
class Stream:
    """What skips attentions.

    Args:
        tensor: the operand of the addition that goes around them, before it was copied or scaled.
        attentions: their bits in :attr:`Mark.attentions`.
        branch: the other operand, which they lie in.
    """

    tensor: Tensor
    attentions: int
    branch: Tensor


@dataclass(eq=False)
class Normalized:
    """One normalisation of the forward pass: its input, its output and how it was computed."""

    source: Tensor
    output: Tensor
    kernel: NormalizationKernel


@dataclass(eq=False)
class AttentionStep:
    """One attention of the forward pass: a softmax map that multiplied values.

    Args:
        index: its place in the order of the forward pass.
        name: the qualified name of the module that computed it.
        attention: A, the map as it multiplied the values; on the tape.
        mark: its provenance.
        event: its bit in :attr:`Mark.events` and :attr:`Mark.attentions`.
        upstream: the bits of the attentions that its map or its values are computed from.
        position: which operand of the product A was, 0 or 1.
        axes: the axes of A, counted from the end, along which queries and keys lie; None where
            there is not one of each.
        values: V, what it multiplied; None if streams are not kept, as for the next two, but that
            attentions without another upstream have an output.
        output: the product, A V.
        residual: the skip connection around it, if there is one.
    """

    index: int
    name: str
    attention: Tensor
    mark: Mark
    event: int
    upstream: int
    position: int
    axes: tuple[int, int] | None = (-2, -1)
    values: Tensor | None = None
    output: Tensor | None = None
    residual: Residual | None = None
