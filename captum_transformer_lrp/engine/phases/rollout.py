"""The rollout phase: how token mass passes one operation, from its output back to its inputs.

Eq. 13–14 multiply matrices Ā = I + E_h(∇A ⊙ R)⁺, one for each block.  A row of that product is
what arrives when a unit of mass, put on that row's token, is carried backward through the model by
these flows: attention passes it on by its weighted map, the skip connection around attention
passes it whole (the I), and everything else keeps it on its token.  Mass is spread evenly over a
token's features, which takes the mean over heads by itself: each head of the attention below gets
an equal part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final, TypeAlias

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.grids import Patches
from captum_transformer_lrp.engine.graph.op import NATIVE, Keeps, Op, Phase, Saved
from captum_transformer_lrp.engine.graph.role import Flow, Product, Role, Scattered, Sum
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.rules import Call
from captum_transformer_lrp.rules.kernels import MatmulKernel, sum_to_shape


class Rollout(Phase):
    """Token mass.

    Args:
        maps: the map that each attention carries mass by, (∇A ⊙ R)⁺ for the paper's method, by its
            place in the order of the forward pass.  Attentions without one take no part.
        through: bits of attentions that mass must go through, not around.
        only_moved: whether to leave out mass that no attention moves (``carried`` in ``walk.py``).
        reaches_pixels: whether mass of tokens that convolutions make goes to the pixels that they
            are made from, as on its way to the inputs.

    Attributes:
        holds_back: whether attentions keep the mass that arrives, rather than move it.
        held_back: what they have kept; it goes on with what arrives when they move it.
    """

    carries_mass: ClassVar[bool] = True

    def __init__(
        self,
        maps: Mapping[int, Tensor] | None = None,
        *,
        through: int = 0,
        only_moved: bool = False,
        reaches_pixels: bool = True,
    ) -> None:
        self.maps = maps or {}
        self.through = through
        self.only_moved = only_moved
        self.reaches_pixels = reaches_pixels
        self.holds_back = False
        self.held_back: dict[Op, Tensor] = {}

    @classmethod
    def needs(cls, op: Op) -> Keeps:
        """See :class:`Phase`."""
        return Keeps.VALUES if _kind(op.role) in _READS_VALUES else Keeps.SHAPES

    def pull(self, op: Op, saved: Saved, arrived: Tensor) -> Sequence[Tensor | None]:
        """See :class:`Phase`."""
        return _MASS[_kind(op.role)](self, op, op.call(saved), arrived)


class Arrivals(Rollout):
    """Token mass on its way to one attention, where it ends.

    Args:
        place: of the attention in the order of the forward pass; no other takes part.

    Attributes:
        found: what has come to each query of each head, at every key of A; None for nothing.
    """

    def __init__(self, place: int) -> None:
        super().__init__()
        self._place = place
        self.found: Tensor | None = None

    def pull(self, op: Op, saved: Saved, arrived: Tensor) -> Sequence[Tensor | None]:
        """See :class:`Phase`."""
        role = op.role
        if not isinstance(role, AttentionStep) or role.index != self._place:
            return super().pull(op, saved, arrived)
        call, position = op.call(saved), role.gate
        shapes = list(call.inputs)
        shapes[1 - position] = torch.ones_like(shapes[1 - position])
        self.found = call.vjp(arrived, inputs=shapes)[position]
        return (None, None)


_Kind: TypeAlias = Flow | type
_Masses: TypeAlias = Sequence[Tensor | None]
_Mass: TypeAlias = Callable[[Rollout, Op, Call, Tensor], _Masses]

_MASS: Final[dict[_Kind, _Mass]] = {}
"""For each role the mass of each input, None for none, then that of the pixels; or ``NATIVE``."""

_READS_VALUES: Final[set[_Kind]] = set()
"""What looks at the values of an operation's inputs and output, not only at their shapes."""


def _kind(role: Role) -> _Kind:
    return role if isinstance(role, Flow) else type(role)


def _passes(*kinds: _Kind, reads_values: bool = False) -> Callable[[_Mass], _Mass]:
    """Register how token mass passes an operation of these roles."""

    def register(mass: _Mass) -> _Mass:
        _MASS.update(dict.fromkeys(kinds, mass))
        _READS_VALUES.update(kinds if reads_values else ())
        return mass

    return register


@_passes(Flow.KEEP)
def _keep(rollout: Rollout, op: Op, call: Call, mass: Tensor) -> _Masses:
    """Element by element: every element keeps its mass."""
    return (sum_to_shape(mass, call.inputs[0].shape),)


@_passes(Flow.NATIVE)
def _native(rollout: Rollout, op: Op, call: Call, mass: Tensor) -> _Masses:
    """Pooling: what the derivative does."""
    return NATIVE


@_passes(Flow.SUMMANDS, reads_values=True)
def _summands(rollout: Rollout, op: Op, call: Call, mass: Tensor) -> _Masses:
    """A sum: each output's mass goes in equal parts to the summands that are not exactly 0.

    So a sum over heads is E_h of eq. 13, a dot product keeps its token's mass, and under a mean
    spelled out as a masked sum padding gets none and changes nothing.
    """
    (x,) = call.inputs
    present = (x != 0).to(mass.dtype)
    (part,) = call.vjp(mass / call.forward(present).clamp(min=1))
    return (part * present,)


@_passes(Flow.BLOCKED)
def _blocked(rollout: Rollout, op: Op, call: Call, mass: Tensor) -> _Masses:
    """Attention weights send no mass to the scores that they come from."""
    return (None,)


@_passes(Flow.MASKED)
def _masked(rollout: Rollout, op: Op, call: Call, mass: Tensor) -> _Masses:
    """Scaling by a constant keeps mass, but for what is multiplied by zero."""
    assert call.constant is not None
    kept = mass * (call.constant != 0)
    return (sum_to_shape(kept, call.inputs[0].shape),)


@_passes(Flow.SPREAD_EVENLY)
def _spread_evenly(rollout: Rollout, op: Op, call: Call, mass: Tensor) -> _Masses:
    """A linear layer: each output's mass goes in equal parts to the inputs that it is made from."""
    assert call.weight is not None
    (x,) = call.inputs
    ones, all_weights = torch.ones_like(x), torch.ones_like(call.weight)
    count = call.forward(ones, weight=all_weights)
    return call.vjp(mass / count.clamp(min=1), inputs=(ones,), weight=all_weights)


@_passes(Flow.AVERAGED)
def _averaged(rollout: Rollout, op: Op, call: Call, mass: Tensor) -> _Masses:
    """A mean or a sum by a product with constants: each output's mass goes where they are."""
    assert call.weight is not None
    ones = torch.ones_like(call.inputs[0])
    share = mass / call.forward(ones).clamp(min=torch.finfo(mass.dtype).tiny)
    return call.vjp(share, inputs=(ones,))


@_passes(Flow.SPREAD_OVER_FEATURES)
def _spread_over_features(rollout: Rollout, op: Op, call: Call, mass: Tensor) -> _Masses:
    """``F.linear``: each token's mass, spread evenly over its input features."""
    (x,) = call.inputs
    return ((mass.sum(-1, keepdim=True) / x.shape[-1]).expand_as(x),)


@_passes(Flow.TO_PIXELS)
def _to_pixels(rollout: Rollout, op: Op, call: Call, mass: Tensor) -> _Masses:
    """A convolution that makes tokens: their mass goes to the pixels that they are made from.

    Bilinearly upsampled, as the paper does, and past the convolutions in between: further down no
    attention follows that could move it.
    """
    if not rollout.reaches_pixels:
        return _spread_evenly(rollout, op, call, mass)
    grid = op.mark.pixels.grid
    assert grid is not None
    return None, grid.at_pixels(mass.sum(-1 - len(grid.axes), keepdim=True))


@_passes(Patches, Scattered)
def _patches_to_pixels(rollout: Rollout, op: Op, call: Call, mass: Tensor) -> _Masses:
    """``F.linear`` of patches that were cut out of an image, as the convolution that it is.

    Where they are no regular grid, each patch's mass is the same at all of its pixels.
    """
    if not rollout.reaches_pixels:
        return _spread_over_features(rollout, op, call, mass)
    if isinstance(op.role, Scattered):
        return ((mass.sum(-1, keepdim=True) / op.role.channels).expand_as(call.inputs[0]),)
    assert isinstance(op.role, Patches)
    of_tokens = mass.sum(-1).flatten()[op.role.tokens]
    return None, op.role.grid.at_pixels(of_tokens.unsqueeze(1))


@_passes(Sum)
def _skip_add(rollout: Rollout, op: Op, call: Call, mass: Tensor) -> _Masses:
    """``A + B``: around an attention that all mass is to go through nothing is skipped."""
    assert isinstance(op.role, Sum)
    through = [bool(rollout.through & bits) for bits in op.role.attentions]
    shares = through if any(through) else op.role.shares
    return tuple(
        sum_to_shape(mass if share == 1 else mass * share, value.shape) if share else None
        for share, value in zip(shares, call.inputs, strict=True)
    )


@_passes(AttentionStep)
def _attention(rollout: Rollout, op: Op, call: Call, mass: Tensor) -> _Masses:
    """``A @ V``: mass goes to the values by the weighted map.

    While mass is held back, it is kept here; it goes on with what arrives the next time.
    """
    assert isinstance(op.role, AttentionStep)
    position = op.role.gate
    weighted = rollout.maps.get(op.role.index)
    if weighted is None:
        return (None, None)
    if rollout.holds_back:
        rollout.held_back[op] = mass
        return (None, None)
    operands = list(call.inputs)
    operands[position] = weighted.to(mass.dtype)
    arrived = [mass, rollout.held_back[op]] if op in rollout.held_back else [mass]
    if isinstance(call.kernel, MatmulKernel):
        values = operands[1 - position]
        features = -1 if position == 0 else -2
        alike = all(one.dim() >= 2 and one.stride(features) == 0 for one in arrived)
        if alike and values.dim() >= 2:
            # A token's features have the same mass: it is moved once, and spread again.
            operands[1 - position] = values.narrow(features, 0, 1)
            arrived = [one.narrow(features, 0, 1) for one in arrived]
    mass = arrived[0] if len(arrived) == 1 else arrived[0] + arrived[1]
    if isinstance(call.kernel, MatmulKernel):
        to_values = call.kernel.vjp_of(1 - position, mass, operands).expand_as(values)
    else:
        to_values = call.vjp(mass, inputs=operands)[1 - position]
    return (None, to_values) if position == 0 else (to_values, None)


@_passes(Product, reads_values=True)
def _product(rollout: Rollout, op: Op, call: Call, mass: Tensor) -> _Masses:
    """A product of two activations that is no attention: by the size of what is multiplied.

    Where queries are compared with places, what goes to the places is held back as by an attention.
    """
    sizes = [value.abs() for value in call.inputs]
    total = call.forward(*sizes).clamp(min=torch.finfo(mass.dtype).tiny)
    parts = call.vjp(mass / total, inputs=sizes)
    assert isinstance(op.role, Product)
    found = [
        size * part * share if share else None
        for size, part, share in zip(sizes, parts, op.role.shares, strict=True)
    ]
    places = op.role.places
    if places is not None:
        of_places = found[places]
        assert of_places is not None
        if rollout.holds_back:
            rollout.held_back[op] = of_places
            found[places] = None
        elif op in rollout.held_back:
            found[places] = of_places + rollout.held_back[op]
    return found


@_passes(Flow.ACCUMULATION, reads_values=True)
def _accumulation(rollout: Rollout, op: Op, call: Call, mass: Tensor) -> _Masses:
    """A sum of several tensors' elements: by the size of what is added."""
    sizes = [value.abs() for value in call.inputs]
    total = call.forward(*sizes)
    share = mass / total.clamp(min=torch.finfo(total.dtype).tiny)
    return [size * part for size, part in zip(sizes, call.vjp(share, inputs=sizes), strict=True)]


@_passes(Flow.UNKNOWN, reads_values=True)
def _unknown(rollout: Rollout, op: Op, call: Call, mass: Tensor) -> _Masses:
    """Nothing is known of it: mass goes to inputs of its shape, else by the magnitudes of eq. 2."""
    alike = [value.shape == mass.shape for value in call.inputs]
    if any(alike):
        part = mass / sum(alike)
        return tuple(part if same else None for same in alike)
    share = call.divide(mass, call.output)
    sizes = [(value * part).abs() for value, part in zip(call.inputs, call.vjp(share), strict=True)]
    count = call.examples.count
    if count > 1 and any(size.shape[0] != count for size in (*sizes, mass)):
        raise ExplanationError(
            f"{op.name} mixes or folds the examples of the batch by an operation without a rule: "
            "explain one example at a time"
        )
    rows = [size.reshape(count, -1).sum(1) for size in sizes]
    factor = call.divide(mass.reshape(count, -1).sum(1), torch.stack(rows).sum(0))
    return tuple(size * factor.reshape(-1, *[1] * (size.dim() - 1)) for size in sizes)


@_passes(Flow.REFUSED, reads_values=True)
def _refused(rollout: Rollout, op: Op, call: Call, mass: Tensor) -> _Masses:
    """A call without a rule raises where mass comes to it, as where relevance does."""
    return tuple(op.rule.relevance(call, mass))


@_passes(Flow.UNIT, reads_values=True)
def _unit(rollout: Rollout, op: Op, call: Call, mass: Tensor) -> _Masses:
    """A module explained as a whole: tokens keep their mass if the shape says that they can."""
    first, *others = call.inputs
    if first.shape == mass.shape:
        kept: Tensor = mass
    elif first.shape[:-1] == mass.shape[:-1]:
        kept = (mass.sum(-1, keepdim=True) / first.shape[-1]).expand_as(first)
    else:
        raise ExplanationError(
            f"{op.name} turns {tuple(first.shape)} into {tuple(mass.shape)}, so its rule alone "
            "does not say which token is which: explain it without a rule of its own"
        )
    return (kept, *(None for _ in others))
