"""What a forward pass was seen to do: attentions, skip connections, normalisations."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.rules.normalization import NormalizationKernel


@dataclass(eq=False)
class Stream:
    """What skips a branch.

    Args:
        tensor: the tokens that skip it, before they were copied or scaled; on the tape, as are the
            others.
        branch: what is added to them.
        attentions: bits of those that lie in the branch.
    """

    tensor: Tensor
    branch: Tensor
    attentions: int


@dataclass(eq=False)
class Residual(Stream):
    """One skip connection of the forward pass.

    Args:
        skipped: the tokens as they are added.
        output: the sum.
        norm: the normalisation that the sum goes through before the stream goes on, as in
            post-norm models; None if the sum is the stream.
    """

    skipped: Tensor
    output: Tensor
    norm: Normalized | None = None


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
        event: its bit in :attr:`Node.events` and :attr:`Node.attentions`.
        upstream: the bits of the attentions that its map or its values are computed from.
        gate: which operand of the product A was, 0 or 1.
        axes: the axes of A, counted from the end, along which queries and keys lie; None where
            there is not one of each.
        values: V, what it multiplied; None if streams are not kept, as for the next two.
        output: the product, A V.
        residual: the skip connection around it, if there is one.
    """

    index: int
    name: str
    attention: Tensor
    mark: Mark
    event: int
    upstream: int
    gate: int
    axes: tuple[int, int] | None = (-2, -1)
    values: Tensor | None = None
    output: Tensor | None = None
    residual: Residual | None = None
