"""A draw beside the plain spelling of the same model: A, ∇A, R and the map."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from captum_transformer_lrp import Explanation, ExplanationError, TransformerAttribution
from tests.grammar.transformer import (
    BLOCKS,
    HEADS,
    MOVED,
    Draw,
    Meaning,
    Transformer,
    inputs_of,
    moved_back,
)

TARGET = 1
EXACT = 1e-9
"""Float64; the same sums in another order."""

Found: TypeAlias = dict[str, Tensor]


class OtherOutputError(AssertionError):
    """A production that does not compute what the plain one does: a fault of the grammar."""


def differences(draw: Draw) -> dict[str, float]:
    """What of an explanation differs from the plain spelling's, and by how much of its largest.

    Raises:
        ExplanationError: if the draw is refused.
        OtherOutputError: if the two models do not compute the same.
    """
    expected = _plain(draw.meaning)
    found = _found(draw, *inputs_of(draw.meaning))
    result = {}
    for name, value in expected.items():
        if found[name].shape != value.shape:
            result[name] = float("inf")
            continue
        largest = float(value.abs().max()) or 1.0  # all of a map may be 0
        difference = float((found[name] - value).abs().max()) / largest
        if not difference <= EXACT:
            result[name] = difference
    if "output" in result:
        raise OtherOutputError(f"{draw} computes something else: {result['output']:.1e}")
    return result


@lru_cache(maxsize=1)
def _plain(meaning: Meaning) -> Found:
    """The plain spelling's; where pixels are moved first, that of moved pixels, moved back."""
    inputs, keep = inputs_of(meaning)
    if meaning.prepared not in MOVED:
        return _found(Draw(meaning, {}), inputs, keep)
    moved = MOVED[meaning.prepared](inputs)
    found = _found(Draw(replace(meaning, prepared=""), {}), moved, keep)
    for name in ("map", "R of the inputs"):
        found[name] = moved_back(meaning.prepared, found[name], inputs)
    return found


def _found(draw: Draw, inputs: Tensor, keep: Tensor | None) -> Found:
    model = Transformer(draw)
    additional = None if keep is None else {"keep": keep}
    explanation = TransformerAttribution(model).explain(inputs, TARGET, additional)
    assert isinstance(explanation.attributions, Tensor)
    found = {"output": explanation.output, "map": explanation.attributions}
    if draw.meaning.prepared not in ("normalised", "padded", "halved"):
        # There constants take a share, or eq. 2 divides it, by how the image is written.
        found["R of the inputs"] = explanation.relevances[0]
    for name, letter in (("attention", "A"), ("gradient", "∇A"), ("relevance", "R")):
        found[letter] = _joined(explanation, name)
    return found


def _joined(explanation: Explanation, name: str) -> Tensor:
    """One of A, ∇A and R of all blocks; maps of single heads, chunks or examples put together."""
    pieces = [getattr(one, name) for one in explanation.attentions]
    each = len(pieces) // BLOCKS  # one more where tokens are pooled by an attention
    assert each
    blocks = []
    for block in range(BLOCKS):
        parts = pieces[block * each : (block + 1) * each]
        *before, queries, keys = parts[0].shape
        if before == [HEADS]:  # one for each example
            parts = [torch.stack(parts)]
        elif each == HEADS and queries == keys:  # one for each head
            parts = [one.reshape(-1, 1, queries, keys) for one in parts]
        heads = min(HEADS, parts[0].shape[-3])  # windows lie beside examples, or beside heads
        parts = [one.reshape(-1, heads, *one.shape[-2:]) for one in parts]
        blocks.append(torch.cat(parts, 1 if heads < HEADS else 2))
    return torch.stack(blocks)


def fault_of(draw: Draw) -> str:
    """Empty if nothing differs; ``"refused: …"``, or what differs, with the fewest productions."""
    try:
        found = differences(draw)
    except ExplanationError as error:
        return f"refused: {error}"
    if not found:
        return ""
    smallest = _shrunk(draw)
    left = ", ".join(f"{name} {value:.1e}" for name, value in differences(smallest).items())
    return f"{left} in {smallest}"


def _shrunk(draw: Draw) -> Draw:
    """The same without what the difference does not need."""
    for slot in draw.written:
        fewer = draw.without(slot)
        try:
            if differences(fewer):
                draw = fewer
        except ExplanationError:
            continue
    return draw
