"""What the tape knows of a tensor: which call made it, and how its examples and pixels lie.

What a call is, such as attention or a skip connection, is read from the calls before it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from torch import Tensor

from captum_transformer_lrp.engine.graph.grids import Grid, common_grid
from captum_transformer_lrp.engine.graph.unit import Unit
from captum_transformer_lrp.rules.examples import Examples


class Pixels(NamedTuple):
    """How a tensor that is made from pixels lies on them.

    Attributes:
        stem: whether nothing but convolutions, element by element operations and pooling has
            touched the pixels of an input, wherever they were moved first.
        grid: of such a tensor how its places lie on the pixels; None if no convolution has been
            there since they were moved.
        planes: the pixels that it has been moved from, (N, C, H, W, ...), as they lay before each
            move, the last move first; none where a layer has been there since.
    """

    stem: bool = False
    grid: Grid | None = None
    planes: tuple[Tensor, ...] = ()


NO_PIXELS: Final = Pixels()


class Kind(enum.Enum):
    """What was called."""

    INPUT = enum.auto()
    JOIN = enum.auto()  # several tensors, put together
    ELEMENTWISE = enum.auto()  # a scaling, or a constant that is added
    ACTIVATION = enum.auto()
    WEIGHING = enum.auto()  # an activation function that makes attention weights of scores
    NORMALIZATION = enum.auto()
    SOFTMAX = enum.auto()
    POOLING = enum.auto()
    STATISTIC = enum.auto()  # over whole axes
    LINEAR = enum.auto()
    QUERIES = enum.auto()  # a linear layer that is learned queries
    SUM = enum.auto()
    GATE = enum.auto()  # a product element by element
    PRODUCT = enum.auto()  # a matrix product of two activations
    ATTENTION = enum.auto()
    ACCUMULATION = enum.auto()
    OTHER = enum.auto()

    __hash__ = object.__hash__  # Enum's own is slow


_EVENTS = frozenset(
    {Kind.INPUT, Kind.ACTIVATION, Kind.WEIGHING, Kind.LINEAR, Kind.QUERIES, Kind.GATE, Kind.PRODUCT,
     Kind.ATTENTION, Kind.OTHER}
)  # fmt: skip
"""What a stream of tokens goes around, by skip connections, and does not go through."""

_ACTIVATIONS = frozenset({Kind.ACTIVATION, Kind.WEIGHING})

_KEEPS_BASE = _ACTIVATIONS | {
    Kind.ELEMENTWISE, Kind.POOLING, Kind.STATISTIC, Kind.SUM, Kind.GATE, Kind.JOIN,
}  # fmt: skip

_LAYERS = frozenset({Kind.LINEAR, Kind.QUERIES, Kind.NORMALIZATION})

_KEEPS_FEATURES = _ACTIVATIONS | {
    Kind.ELEMENTWISE, Kind.NORMALIZATION, Kind.SOFTMAX, Kind.POOLING, Kind.SUM,
}  # fmt: skip


@dataclass(slots=True, eq=False)
class Move:
    """How elements have been moved since they were made, and whether to a mean or the like."""

    reduces: bool = False


class Node:
    """One call, input or join, read from what it was made on.

    Args:
        kind: what was called.
        below: what it was called on.
        bit: its own, in the masks below.
        like: those of ``below`` whose kind of thing it is, if not all: of a gate those that are
            not broadcast.
        channels: how many outputs a linear layer (or the scaling by a parameter) has whose bare
            product this is: a bias may follow.
        features: the axis, counted from the end, that a layer's outputs lie along.
        source: the index of the explained input.
        unit: the call of a module with a rule of its own that it was made in, if any.

    Attributes:
        stream: of a sum which operand is a skip connection, if one is.
        events: bit mask of the calls (linear, activation, attention, …) that it has passed since
            the stream that it belongs to, and of the inputs that it is made from.  Of two operands
            of a sum, the one whose events are a subset of the other's is the skip connection.
        attentions: bit mask of all attentions upstream, which skip connections do not take away.
        scores: whether it is, or is made from, a product of two activations (query · key).
        softmax: whether it is, or is made from, a softmax over anything.
        attention: whether it is, or is made from, a softmax over such scores.
        weighed: whether it is values times an attention's weights, not summed over keys yet.
        activated: whether an activation function has been applied since the last linear operation.
        terms: how many tensors, neither of them a skip connection, have been added up to it.
        base: identifies what it is computed from element by element, or by statistics.
        moved: how elements have been moved since the base.
    """

    __slots__ = (
        "activated", "attention", "attentions", "base", "bit", "channels", "events", "features",
        "moved", "scores", "softmax", "source", "stream", "terms", "unit", "weighed",
    )  # fmt: skip
    activated: bool
    attention: bool
    base: Any
    scores: bool
    terms: int

    def __init__(
        self,
        kind: Kind,
        below: Sequence[Mark],
        bit: int,
        *,
        like: Sequence[Mark] | None = None,
        channels: int = 0,
        features: int | None = None,
        source: int | None = None,
        unit: Unit | None = None,
    ) -> None:
        self.bit, self.channels, self.source, self.unit = bit, channels, source, unit
        nodes = [one.node for one in below]
        self.stream = skipped(*nodes) if kind is Kind.SUM else None
        upstream = nodes if self.stream is None else [nodes[self.stream]]
        self.events = bit if kind in _EVENTS else 0
        for node in upstream:
            self.events |= node.events
        self.attentions = bit if kind is Kind.ATTENTION else 0
        for node in nodes:
            self.attentions |= node.attentions
        self.terms, self.activated = 1, kind in _ACTIVATIONS
        if len(nodes) == 1:
            self.activated |= node.activated and kind not in _LAYERS
            self.terms = node.terms if kind in (Kind.ELEMENTWISE, Kind.JOIN) else 1
        elif kind is Kind.SUM and self.stream is None:
            self.terms = nodes[0].terms + nodes[1].terms
        if kind is Kind.JOIN and all(node.source == nodes[0].source for node in nodes):
            self.source = nodes[0].source
        self._read_maps(kind, nodes, [one.node for one in like] if like else upstream)
        if kind is Kind.GATE and not like:
            # Each value beside its weight: what sums them over keys is the attention.
            self.weighed, self.attention = nodes[0].attention != nodes[1].attention, False
        self._read_base(kind, below)
        self.features = features
        if features is None and kind in _KEEPS_FEATURES:
            known = [one.features for one in below]
            self.features = known[-1] if known[0] is None else known[0]

    def _read_maps(self, kind: Kind, nodes: list[Node], like: list[Node]) -> None:
        """Whether it is scores, a softmax or an attention map, or made from any."""
        scores = self.softmax = self.attention = self.weighed = False
        for node in nodes:
            self.weighed |= node.weighed
        for node in like if kind is not Kind.ATTENTION else ():
            scores |= node.scores
            self.softmax |= node.softmax
            self.attention |= node.attention
        if kind is Kind.SOFTMAX:
            self.softmax, self.attention = True, scores
        elif kind is Kind.WEIGHING:
            self.attention |= scores
        # Whatever is normalised is no longer the product of two activations: no softmax's scores.
        remains = scores and kind is not Kind.NORMALIZATION
        self.scores = remains or kind in (Kind.PRODUCT, Kind.QUERIES)

    def _read_base(self, kind: Kind, below: Sequence[Mark]) -> None:
        """What it is computed from element by element, and how that has been moved."""
        base = below[0].node.base if below and kind in _KEEPS_BASE else None
        if base is None or (len(below) > 1 and any(one.node.base is not base for one in below)):
            self.base, self.moved = object(), None
            return
        self.base, self.moved = base, below[0].moved
        if kind is Kind.STATISTIC:
            self.moved = Move(reduces=True)
        elif kind in (Kind.POOLING, Kind.JOIN) or below[-1].moved is not self.moved:
            reduced = [one.is_statistic for one in below]
            self.moved = Move(reduces=all(reduced) if kind is Kind.GATE else any(reduced))


def skipped(u: Node, v: Node) -> int | None:
    """Which of two operands is what skips the other, if one is."""
    if u.events == v.events:
        return None
    if u.events & ~v.events == 0:
        return 0
    return 1 if v.events & ~u.events == 0 else None


@dataclass(frozen=True, eq=False)
class Mark:
    """What is known of one tensor that descends from the explained inputs.

    Args:
        examples: which example each element belongs to.
        node: the call whose result it is, or rearranges.
        moved: how its elements have been moved since they were made; None if they have not.
        pixels: how it lies on the pixels of an input.
        columns: of a product of each answer with each, whose rows lie as `examples` says, how the
            examples of the other factor lie; None for anything else.
    """

    examples: Examples
    node: Node
    moved: Move | None = None
    pixels: Pixels = NO_PIXELS
    columns: Examples | None = None

    def but(self, **changes: Any) -> Mark:
        """A copy with some facts changed."""
        copy = object.__new__(Mark)  # several times faster than dataclasses.replace()
        vars(copy).update(vars(self), **changes)
        return copy

    @property
    def features(self) -> int | None:
        """The axis, counted from the end, along which the features of a place lie.

        That of the channels after a convolution, the last after a linear layer; None once they
        have been moved.
        """
        return self.node.features if self.moved is self.node.moved else None

    @property
    def is_statistic(self) -> bool:
        """Whether a mean, a norm or the like was taken since :attr:`Node.base`."""
        return self.moved is not None and self.moved.reduces


def common_pixels(marks: Sequence[Mark]) -> Pixels:
    """How what is made from several tensors lies on the pixels."""
    first, *others = [mark.pixels for mark in marks] or [NO_PIXELS]
    if all(one is first for one in others):
        return first
    planes = tuple(
        one for one in first.planes if all(any(one is of for of in own.planes) for own in others)
    )
    stem = first.stem and all(one.stem for one in others)
    return Pixels(stem, common_grid([first.grid, *(one.grid for one in others)]), planes)


def is_statistic_of(statistic: Mark, of: Mark) -> bool:
    """Whether one tensor is a mean, norm or the like of what the other is made from."""
    same = statistic.node.base is of.node.base
    return same and statistic.is_statistic and not of.is_statistic


def is_function_of_same(u: Mark, v: Mark) -> bool:
    """Whether two tensors are made, element by element, from the same elements."""
    same = u.node.base is v.node.base and u.moved is v.moved
    return same and not (u.is_statistic or v.is_statistic)


def attends_beyond(mark: Mark, other: Mark) -> bool:
    """Whether one tensor has passed an attention that the other has not."""
    return bool(mark.node.attentions & ~other.node.attentions)
