"""Whether the places that a map ranks first matter more to the logit than those it ranks last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from captum._utils.common import _select_targets
from torch import Tensor

from captum_transformer_lrp.attr.embeddings import EmbeddingLookup
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.verification.results import Check

NAME = "occlusion"
CLAIM = "top tenth matters more than bottom"
DRAWS = 16
"""Random tenths, whose spread is the unit of the difference."""
LEAST = 2.0
"""The least difference that decides, in standard deviations."""
FEWEST = 4
"""With fewer places there is no tenth."""
GRID = 10
"""Images are cut into so many rows and columns."""


@dataclass(frozen=True)
class _Places:
    """The places of one input.

    Args:
        values: the map's value of each place, (N, P).
        spread: from a mask of places, (N, P), to one that broadcasts against the input.
    """

    values: Tensor
    spread: Callable[[Tensor], Tensor]

    @property
    def live(self) -> Tensor:
        """The places that anything arrives at: not padding."""
        return self.values != 0

    @property
    def tenth(self) -> int:
        return max(1, int(self.live.sum(1).min()) // 10)

    def top(self) -> Tensor:
        return self._largest(self.values)

    def bottom(self) -> Tensor:
        return self._largest(-self.values)

    def at_random(self, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(self.values.shape, generator=generator, dtype=torch.float64)
        return self._largest(drawn.to(self.values))

    def _largest(self, score: Tensor) -> Tensor:
        chosen = score.masked_fill(~self.live, -torch.inf).topk(self.tenth, dim=1).indices
        return torch.zeros_like(self.live).scatter_(1, chosen, True)


def occlusion(
    run: Callable[[tuple[Tensor, ...]], Tensor],
    inputs: tuple[Tensor, ...],
    maps: Sequence[Tensor],
    target: Any,
) -> Check:
    """Occlude a tenth of the places: those ranked first, those ranked last, and random ones.

    A place is replaced by the mean over all places that anything arrives at.  Token ids are
    replaced by the mean of the embeddings that are looked up for them.  Images are cut into
    10 × 10 cells.  ``run`` is the plain model; maps are shaped as the inputs.
    """
    if any(one.shape != value.shape for value, one in zip(inputs, maps, strict=True)):
        return Check.skipped(NAME, CLAIM, "maps are not of the shape of the inputs")
    places = [_places_of(value, one.detach()) for value, one in zip(inputs, maps, strict=True)]
    if any(int(one.live.sum(1).min()) < FEWEST for one in places):
        return Check.skipped(NAME, CLAIM, f"a map has fewer than {FEWEST} places that are not 0")
    try:
        embeddings = _embeddings_of(run, inputs)
    except ExplanationError as error:
        return Check.skipped(NAME, CLAIM, str(error))

    def logits(masks: Sequence[Tensor]) -> Tensor:
        with torch.no_grad(), ExitStack() as lookups:
            changed = []
            for value, found, one, mask in zip(inputs, embeddings, places, masks, strict=True):
                if found is None:
                    changed.append(_replaced(value, one.spread(mask), one.spread(one.live)))
                    continue
                changed.append(value)
                wide = (m.reshape(value.shape)[..., None] for m in (mask, one.live))
                lookups.enter_context(EmbeddingLookup(value, _replaced(found, *wide)))
            return answer(run(tuple(changed)))

    def answer(output: Tensor) -> Tensor:
        if callable(target):
            found: Tensor = target(output)
            return found
        return output if target is None else _select_targets(output, target)

    generator = torch.Generator().manual_seed(0)
    random = torch.stack(
        [logits([one.at_random(generator) for one in places]) for _ in range(DRAWS)]
    )
    without_top = logits([one.top() for one in places])
    without_bottom = logits([one.bottom() for one in places])
    with torch.no_grad():
        whole = run(inputs)
        # One logit is a score, and a function's value has no probability.
        is_class = target is not None and not callable(target) and whole.shape[-1] > 1
        # A model with an opinion gives its target a probability halfway from chance to 1.
        opinion = 0.5 + 0.5 / whole.shape[-1]
        sure = is_class and float(answer(whole.softmax(-1)).mean()) >= opinion
    return _judged(answer(whole), without_top, without_bottom, random, sure)


def _judged(
    whole: Tensor, without_top: Tensor, without_bottom: Tensor, random: Tensor, sure: bool
) -> Check:
    """The difference in standard deviations of random tenths, as one normal number."""
    spread = random.double().std(0).flatten()
    differences = (without_bottom - without_top).double().flatten() / spread
    found = float(differences.sum() / (2 * len(spread)) ** 0.5)  # each is of variance 2 by chance
    reason = (
        f"the logit changes by {float((without_top - whole).mean()):+.2g} without the top tenth, "
        f"{float((without_bottom - whole).mean()):+.2g} without the bottom tenth, "
        f"{float((random.mean(0) - whole).mean()):+.2g} ± {float(spread.mean()):.2g} without a "
        "random one"
    )
    expected = f"≥ {LEAST:g} σ"
    if found >= LEAST:
        return Check(NAME, CLAIM, found, expected, "passed", reason)
    if found <= -LEAST and sure:
        return Check(NAME, CLAIM, found, expected, "failed", reason)
    reason += "; random weights, few examples and unlikely targets decide nothing"
    return Check(NAME, CLAIM, found, expected, "undecided", reason)


def _embeddings_of(
    run: Callable[[tuple[Tensor, ...]], Tensor], inputs: tuple[Tensor, ...]
) -> list[Tensor | None]:
    """What the model looks up for each input of token ids; None for the others."""
    lookups = [None if one.is_floating_point() else EmbeddingLookup(one) for one in inputs]
    with torch.no_grad(), ExitStack() as stack:
        for lookup in lookups:
            if lookup is not None:
                stack.enter_context(lookup)
        run(inputs)
    return [None if lookup is None else lookup.found() for lookup in lookups]


def _replaced(value: Tensor, mask: Tensor, live: Tensor) -> Tensor:
    """The value with the mean over all live places where the mask is."""
    axes = [axis for axis in range(1, value.dim()) if mask.shape[axis] > 1]
    weights = live.to(value.dtype).expand_as(mask)
    mean = (value * weights).sum(axes, keepdim=True) / weights.sum(axes, keepdim=True)
    return torch.where(mask, mean, value)


def _places_of(value: Tensor, found: Tensor) -> _Places:
    """The places of an input: tokens, or cells of images, frames and sound."""
    if not value.is_floating_point():
        return _Places(found.flatten(1), lambda mask: mask.reshape(value.shape))
    if value.dim() == 3:
        # Features of sound come before or behind their time; the map varies along the time.
        axis = 2 if varies(found.sum(2), 1) or not varies(found.sum(1), 1) else 1
        return _Places(found.sum(axis), lambda mask: mask.unsqueeze(axis))
    channels = channels_axis(found)
    summed = found if channels is None else found.sum(channels)
    sizes = {1: (GRID**2,), 2: (GRID, GRID), 3: (4, GRID // 2, GRID // 2)}[summed.dim() - 1]
    grid = [min(size, most) for size, most in zip(summed.shape[1:], sizes, strict=True)]
    pools: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
    cells = pools[len(grid) - 1](summed.unsqueeze(1), grid)

    def spread(mask: Tensor) -> Tensor:
        whole = F.interpolate(
            mask.reshape(cells.shape).to(torch.float32), size=summed.shape[1:], mode="nearest"
        ).squeeze(1)
        whole = whole > 0
        return whole if channels is None else whole.unsqueeze(channels)

    return _Places(cells.flatten(1), spread)


def channels_axis(found: Tensor) -> int | None:
    """The axis of the channels of a map of images, videos or volumes, over which it is spread.

    None if it has none.  Volumes (N, C, D, H, W) differ along their second axis, videos
    (N, T, C, H, W) do not.
    """
    if found.dim() not in (4, 5):
        return None
    return 2 if found.dim() == 5 and not varies(found, 2) else 1


def varies(found: Tensor, axis: int) -> bool:
    """Whether a map does along an axis, by more than rounding."""
    if found.shape[axis] == 1:
        return False
    return bool(found.std(axis).amax() > 1e3 * torch.finfo(found.dtype).eps * found.abs().mean())
