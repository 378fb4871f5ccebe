"""Which pixels a token is made from: the grid that a stack of convolutions lays over its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Sizes = int | tuple[int, ...] | str
"""An argument of a convolution: one number for all axes, one for each, or a way to pad."""


@dataclass(frozen=True)
class Axis:
    """Along one axis place i of a grid is made from pixels stride·i + first to stride·i + last.

    These are the receptive fields of Araujo, Norris and Sim, *Computing Receptive Fields of
    Convolutional Neural Networks*, Distill 2019.

    Example:
        >>> patches = Axis().behind(kernel=3, stride=2, padding=1).behind(kernel=3, stride=2)
        >>> patches
        Axis(stride=4, first=-1, last=5)
    """

    stride: float = 1
    first: float = 0
    last: float = 0

    def behind(self, kernel: int, stride: int, padding: int = 0, dilation: int = 1) -> Axis:
        """The axis of what a convolution makes from this one."""
        first = self.first - padding * self.stride
        last = self.last + ((kernel - 1) * dilation - padding) * self.stride
        return Axis(self.stride * stride, first, last)

    def of(self, below: Axis) -> Axis:
        """The axis on what the places of ``below`` lie on, if this one is of these places."""
        first, last = (below.stride * one for one in (self.first, self.last))
        return Axis(self.stride * below.stride, below.first + first, below.last + last)

    def resized(self, before: int, after: int, *, corners: bool) -> Axis:
        """The axis of ``before`` places resized to ``after``; ``corners`` says what stays put."""
        ends = int(corners and after > 1)
        step = (before - ends) / (after - ends)
        lowest = -step / 2 if ends else -0.5
        first = self.first + self.stride * lowest
        return Axis(self.stride * step, first, self.last + self.stride * (lowest + step))

    def spread(self, mass: Tensor, axis: int, size: int) -> Tensor:
        """Mass of places along ``axis`` at ``size`` pixels: linear between the middles of places.

        Pixels that no place is made from get nothing.
        """
        count = mass.shape[axis]
        pixel = torch.arange(size, device=mass.device, dtype=torch.float64)
        place = (pixel - (self.first + self.last) / 2) / self.stride
        place = place.clamp(0, count - 1)
        before = place.floor().long()
        after = (before + 1).clamp(max=count - 1)
        lowest = ((pixel - self.last) / self.stride).ceil().clamp(min=0)
        highest = ((pixel - self.first) / self.stride).floor().clamp(max=count - 1)
        is_read = (lowest <= highest).to(mass)
        share = (place - before).to(mass)
        shape = [-1 if one == axis % mass.dim() else 1 for one in range(mass.dim())]
        of_before = mass.index_select(axis, before) * ((1 - share) * is_read).view(shape)
        of_after = mass.index_select(axis, after) * (share * is_read).view(shape)
        return of_before + of_after


@dataclass(frozen=True, eq=False)
class Grid:
    """A grid of places and what it has been made from.

    Args:
        plane: the pixels that the lowest convolution reads, (N, C, ...), on the tape; None if each
            place is made from all of them, as after pooling.
        axes: how the places lie on it, for each axis behind the channels.
    """

    plane: Tensor | None
    axes: tuple[Axis, ...]

    @classmethod
    def of(cls, plane: Tensor, spatial: int) -> Grid:
        """The pixels themselves, with ``spatial`` axes."""
        return cls(plane, (Axis(),) * spatial)

    def behind(self, kernel: Sizes, stride: Sizes, padding: Sizes = 0, dilation: Sizes = 1) -> Grid:
        """The grid that a convolution or pooling makes from this one."""
        count = len(self.axes)
        kernels, dilations = _each(kernel, count), _each(dilation, count)
        if isinstance(padding, str):
            reach = [(k - 1) * d // 2 for k, d in zip(kernels, dilations, strict=True)]
            paddings = reach if padding == "same" else [0] * count
        else:
            paddings = _each(padding, count)
        moves = zip(kernels, _each(stride, count), paddings, dilations, strict=True)
        pairs = zip(self.axes, moves, strict=True)
        return replace(self, axes=tuple(axis.behind(*move) for axis, move in pairs))

    def padded(self, pad: Sequence[int]) -> Grid | None:
        """The grid with places before and behind its own, of the last axis first."""
        befores = list(pad)[::2]
        if self.plane is None or len(befores) > len(self.axes):
            return None
        befores = [0] * (len(self.axes) - len(befores)) + befores[::-1]
        pairs = zip(self.axes, befores, strict=True)
        return replace(self, axes=tuple(axis.behind(1, 1, before) for axis, before in pairs))

    def at_pixels(self, mass: Tensor) -> Tensor:
        """Mass of each place, (N, 1, ...), for the pixels: spread evenly over their channels."""
        assert self.plane is not None
        for number, axis in enumerate(self.axes):
            place = number - len(self.axes)
            mass = axis.spread(mass, place, self.plane.shape[place])
        channels = self.plane.shape[-1 - len(self.axes)]
        return mass.expand(self.plane.shape) / channels


EVERYWHERE = Grid(None, ())
"""The grid of what is made from all places."""


@dataclass(frozen=True, eq=False)
class Patches:
    """Tokens each of which holds one window of an image.

    Args:
        grid: how the windows lie.
        tokens: for each place of it the number of its token among all, (N, ...).
    """

    grid: Grid
    tokens: Tensor


def common_grid(grids: list[Grid | None]) -> Grid | None:
    """The grid of what is computed from several place by place; None if they do not fit."""
    known = [one for one in grids if one is not EVERYWHERE]
    if not known:
        return EVERYWHERE
    first = known[0]
    if first is None or all(one is first for one in known):
        return first
    axes = first.axes
    for one in known[1:]:
        if one is None or one.plane is not first.plane or len(one.axes) != len(axes):
            return None
        if any(a.stride != b.stride for a, b in zip(one.axes, axes, strict=True)):
            return None
        axes = tuple(
            Axis(a.stride, min(a.first, b.first), max(a.last, b.last))
            for a, b in zip(one.axes, axes, strict=True)
        )
    return Grid(first.plane, axes)


def resized_grid(
    grid: Grid | None, source: Tensor, result: Tensor, *, corners: bool
) -> Grid | None:
    """The grid behind a change of size, by which pixels of the result are a source's."""
    if grid is EVERYWHERE:
        return EVERYWHERE
    below = grid or Grid.of(source, source.dim() - 2)
    sizes = zip(below.axes, source.shape[2:], result.shape[2:], strict=True)
    axes = tuple(axis.resized(before, after, corners=corners) for axis, before, after in sizes)
    return replace(below, axes=axes)


def pooled_grid(grid: Grid | None, name: str, rest: tuple[Any, ...], kwargs: Any) -> Grid | None:
    """The grid behind a pooling window, None if it is not one of a fixed size.

    Args:
        grid: of what is pooled.
        name: of the function.
        rest: its arguments behind the first.
        kwargs: likewise.
    """
    if grid is None or grid is EVERYWHERE or not name.startswith(("max_pool", "avg_pool")):
        return None
    names = ["kernel_size", "stride", "padding"]
    given = dict(zip([*names, "dilation"], rest, strict=False)) | kwargs
    kernel, stride, padding = (given.get(one) for one in names)
    dilation = given.get("dilation", 1) if name.startswith("max") else 1
    return grid.behind(kernel, kernel if stride in (None, ()) else stride, padding or 0, dilation)


def _each(given: Any, count: int) -> list[int]:
    """An argument for each of ``count`` axes."""
    values = [given] if isinstance(given, int) else list(given)
    return values * count if len(values) == 1 else values
