"""What a call means for token mass; how mass passes each is the rollout phase's affair."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from captum_transformer_lrp.engine.graph.grids import Patches
from captum_transformer_lrp.engine.graph.seen import AttentionStep

Shares: TypeAlias = tuple[float, float]
"""The parts of the mass that arrives which two operands are given."""


class Flow(enum.Enum):
    """The roles that have a name alone."""

    KEEP = enum.auto()
    NATIVE = enum.auto()
    SUMMANDS = enum.auto()
    BLOCKED = enum.auto()
    MASKED = enum.auto()
    SPREAD_EVENLY = enum.auto()
    AVERAGED = enum.auto()
    SPREAD_OVER_FEATURES = enum.auto()
    TO_PIXELS = enum.auto()
    ACCUMULATION = enum.auto()
    UNKNOWN = enum.auto()
    REFUSED = enum.auto()
    UNIT = enum.auto()

    __hash__ = object.__hash__  # Enum's own is slow


@dataclass(frozen=True, slots=True)
class Scattered:
    """Patches of an image with so many channels that are no regular grid."""

    channels: int


@dataclass(frozen=True, slots=True)
class Sum:
    """A sum; for each operand the bits of the attentions in it, if the other goes around them."""

    shares: Shares
    attentions: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Product:
    """A product of two activations that is no attention.

    Args:
        shares: of the mass.
        places: which factor's places queries are compared with, if any.
        gate: which factor is a gate, if one is.
    """

    shares: Shares
    places: int | None = None
    gate: int | None = None


Role: TypeAlias = Flow | Patches | Scattered | Sum | AttentionStep | Product
