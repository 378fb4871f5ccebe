"""Patches that are cut out of an image by moving its pixels, and which pixels are whose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.grids import Axis, Grid, Patches
from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.graph.tape import Tape


def are_pixels(mark: Mark, parts: Sequence[Tensor], result: Tensor) -> bool:
    """Whether what is put together from pixels has the axes of pixels."""
    planes = mark.pixels.planes
    if planes and result.shape == planes[0].shape:
        return True  # whatever the axes of its parts are
    return mark.pixels.stem and (not planes or result.dim() == parts[0].dim())


def has_axes_of(part: Tensor, source: Tensor) -> bool:
    """Whether what has been taken out of pixels has their axes, in whatever order."""
    if part.numel() == source.numel() and sorted(part.shape) != sorted(source.shape):
        return False  # as where blocks of pixels become channels
    return part.dim() == source.dim() and part.shape[:1] == source.shape[:1]


def planes_behind(tape: Tape, mark: Mark, source: Tensor) -> tuple[Tensor, ...]:
    """:attr:`Pixels.planes` of what pixels are moved or averaged to."""
    stem, _, planes = mark.pixels
    return (source, *planes) if stem and source.dim() > 3 and not tape.has_layers(mark) else planes


def patches_of(tape: Tape, x: Tensor, plane: Tensor) -> Patches | None:
    """The patches that tokens ``x``, (..., features), are of the pixels of ``plane``.

    None unless they are a regular grid of windows that no pixel is in twice.
    """
    rollout = next((phase() for phase in tape.phases if phase.carries_mass), None)
    if rollout is None:
        return None
    count = x.shape[:-1].numel()
    number = torch.arange(1.0, count + 1, dtype=torch.float64, device=x.device)
    seeds = [
        values.to(x.dtype).reshape(*x.shape[:-1], 1).expand_as(x)
        for values in (torch.ones_like(number), number)
    ]
    times, whose = (tape.backward(rollout, x, seed, [plane])[0] for seed in seeds)
    alike = (times == 0) | ((times / times.max() - 1).abs() < 1e-4)
    whose = torch.where(times == 0, 0, whose / times)
    exact = bool(((whose - whose.round()).abs() < 0.1).all())
    if not bool(alike.all()) or not exact or not bool((whose[:, :1] - whose < 0.5).all()):
        return None
    found = whose[:, 0].round().long()  # 0 where no patch is
    tokens, axes = found, []
    for place in range(1, found.dim()):
        axis = _windows(found.movedim(place, -1).flatten(0, -2))
        if axis is None:
            return None
        first, step = int(axis.first), int(axis.stride)
        last = first + (found.shape[place] - int(axis.last) - 1) // step * step
        tokens = tokens.index_select(place, torch.arange(first, last + 1, step, device=x.device))
        axes.append(axis)
    whole = tokens
    for place, axis in enumerate(axes, 1):
        whole = _laid_out(whole, place, axis, found.shape[place])
    if tokens.numel() != count or not bool((tokens > 0).all()) or not torch.equal(whole, found):
        return None
    return Patches(Grid(plane, tuple(axes)), tokens - 1)


def patches_below(tape: Tape, x: Tensor, planes: Sequence[Tensor]) -> Patches | None:
    """The same for the last of several planes, or for what it has been resized or averaged from."""
    found = patches_of(tape, x, planes[0])
    mark = tape.mark(planes[0])
    below = None if mark is None else mark.pixels.grid
    if found is not None and below is None and len(planes) > 1:
        below = averaged_grid(tape, *planes[:2])
    if found is None or below is None or len(below.axes) != len(found.grid.axes):
        return found
    axes = tuple(axis.of(one) for axis, one in zip(found.grid.axes, below.axes, strict=True))
    return Patches(Grid(below.plane, axes), found.tokens)


def averaged_grid(tape: Tape, x: Tensor, plane: Tensor) -> Grid | None:
    """The grid of ``x``, (N, C, ...), each of whose pixels is a mean of a window of ``plane``.

    None if it is anything else.
    """
    found = patches_of(tape, x.movedim(1, -1), plane) if x.dim() == plane.dim() else None
    if found is None:
        return None
    in_order = torch.equal(found.tokens.flatten(), torch.arange(found.tokens.numel()).to(x.device))
    sizes = [axis.last - axis.first + 1 for axis in found.grid.axes]
    side_by_side = sizes == [axis.stride for axis in found.grid.axes]
    return found.grid if in_order and side_by_side and max(sizes) > 1 else None


def _windows(lines: Tensor) -> Axis | None:
    """How windows lie along the last axis, by the number of the window that each pixel is in."""
    read = (lines > 0).any(0)
    differs = (lines[:, 1:] != lines[:, :-1]).any(0)
    edge = differs.new_ones(1)
    starts = (read & torch.cat([edge, differs])).nonzero().flatten().tolist()
    ends = (read & torch.cat([differs, edge])).nonzero().flatten().tolist()
    if not starts:
        return None
    size = ends[0] - starts[0] + 1
    step = starts[1] - starts[0] if len(starts) > 1 else len(read)
    regular = all(start == starts[0] + step * place for place, start in enumerate(starts))
    if not regular or any(b - a + 1 != size for a, b in zip(starts, ends, strict=True)):
        return None
    return Axis(step, starts[0], ends[0])


def _laid_out(tokens: Tensor, place: int, axis: Axis, size: int) -> Tensor:
    """The number of a window at each of its pixels along one axis, 0 between windows."""
    pixel = torch.arange(size, device=tokens.device) - int(axis.first)
    window = pixel.div(int(axis.stride), rounding_mode="floor")
    inside = (pixel - window * int(axis.stride) <= int(axis.last - axis.first)) & (window >= 0)
    inside &= window < tokens.shape[place]
    shape = [-1 if one == place else 1 for one in range(tokens.dim())]
    found = tokens.index_select(place, window.clamp(0, tokens.shape[place] - 1))
    return found * inside.view(shape)
