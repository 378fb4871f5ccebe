"""The rollout phase: how token mass passes one operation, from its output back to its inputs.

Eq. 13–14 multiply matrices Ā = I + E_h(∇A ⊙ R)⁺, one for each block.  A row of that product is
what arrives when a unit of mass, put on that row's token, is carried backward through the model by
these flows: attention passes it on by its weighted map, the skip connection around attention
passes it whole (the I), and everything else keeps it on its token.  Mass is spread evenly over a
token's features, which takes the mean over heads by itself: each head of the attention below gets
an equal part.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.tape import NATIVE, Flow, Step
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.rules import Call
from captum_transformer_lrp.rules.kernels import MatmulKernel, sum_to_shape

by_shape = partial(Flow, reads_values=False)
"""A flow that looks at the shapes of an operation's inputs and output, not at their values."""

place_by_place = partial(Flow, reads_values=False, keeps_places=True)
"""Such a flow of an operation whose output has the places and features of its inputs."""


@place_by_place
def keep(step: Step, call: Call, mass: Tensor) -> Sequence[Tensor | None]:
    """Element by element: every element keeps its mass."""
    return (sum_to_shape(mass, call.inputs[0].shape),)


@by_shape
def native(step: Step, call: Call, mass: Tensor) -> Sequence[Tensor | None]:
    """Pooling: what the derivative does."""
    return NATIVE


@Flow
def summands(step: Step, call: Call, mass: Tensor) -> Sequence[Tensor | None]:
    """A sum: each output's mass goes in equal parts to the summands that are not exactly 0.

    So a sum over heads is E_h of eq. 13, a dot product keeps its token's mass, and under a mean
    spelled out as a masked sum padding gets none and changes nothing.
    """
    (x,) = call.inputs
    present = (x != 0).to(mass.dtype)
    (part,) = call.vjp(mass / call.forward(present).clamp(min=1))
    return (part * present,)


@by_shape
def blocked(step: Step, call: Call, mass: Tensor) -> Sequence[Tensor | None]:
    """Attention weights send no mass to the scores that they come from."""
    return (None,)


@place_by_place
def masked(step: Step, call: Call, mass: Tensor) -> Sequence[Tensor | None]:
    """Scaling by a constant keeps mass, but for what is multiplied by zero."""
    assert call.constant is not None
    kept = mass * (call.constant != 0)
    return (sum_to_shape(kept, call.inputs[0].shape),)


@by_shape
def spread_evenly(step: Step, call: Call, mass: Tensor) -> Sequence[Tensor | None]:
    """A linear layer: each output's mass goes in equal parts to the inputs that it is made from."""
    assert call.weight is not None
    (x,) = call.inputs
    ones, all_weights = torch.ones_like(x), torch.ones_like(call.weight)
    count = call.forward(ones, weight=all_weights)
    return call.vjp(mass / count.clamp(min=1), inputs=(ones,), weight=all_weights)


@by_shape
def averaged(step: Step, call: Call, mass: Tensor) -> Sequence[Tensor | None]:
    """A mean or a sum by a product with constants: each output's mass goes where they are."""
    assert call.weight is not None
    ones = torch.ones_like(call.inputs[0])
    share = mass / call.forward(ones).clamp(min=torch.finfo(mass.dtype).tiny)
    return call.vjp(share, inputs=(ones,))


@by_shape
def spread_over_features(step: Step, call: Call, mass: Tensor) -> Sequence[Tensor | None]:
    """``F.linear``: each token's mass, spread evenly over its input features."""
    (x,) = call.inputs
    return ((mass.sum(-1, keepdim=True) / x.shape[-1]).expand_as(x),)


@by_shape
def to_pixels(step: Step, call: Call, mass: Tensor) -> Sequence[Tensor | None]:
    """A convolution that makes tokens: their mass goes to the pixels that they are made from.

    Bilinearly upsampled, as the paper does, and past the convolutions in between: further down no
    attention follows that could move it.
    """
    if not step.tape.reaches_pixels:
        return spread_evenly(step, call, mass)
    grid = step.mark.grid
    assert grid is not None
    return None, grid.at_pixels(mass.sum(-1 - len(grid.axes), keepdim=True))


@by_shape
def patches_to_pixels(step: Step, call: Call, mass: Tensor) -> Sequence[Tensor | None]:
    """``F.linear`` of patches that were cut out of an image, as the convolution that it is.

    Where they are no regular grid, each patch's mass is the same at all of its pixels.
    """
    if not step.tape.reaches_pixels:
        return spread_over_features(step, call, mass)
    patches = step.facts["patches"]
    if patches is None:
        (x,) = call.inputs
        return ((mass.sum(-1, keepdim=True) / step.facts["channels"]).expand_as(x),)
    of_tokens = mass.sum(-1).flatten()[patches.tokens]
    return None, patches.grid.at_pixels(of_tokens.unsqueeze(1))


@place_by_place
def skip_add(step: Step, call: Call, mass: Tensor) -> Sequence[Tensor | None]:
    """``A + B``: by ``step.facts["mass"]``, for each operand the factor of the mass it is given.

    Around an attention that all mass is to go through (``tape.through``) nothing is skipped.
    """
    factors = step.facts["mass"]
    if step.tape.through & step.facts["branch"]:
        factors = step.facts["mass_through_branch"]
    return tuple(
        sum_to_shape(mass * factor, value.shape) if factor else None
        for factor, value in zip(factors, call.inputs, strict=True)
    )


@by_shape
def attention(step: Step, call: Call, mass: Tensor) -> Sequence[Tensor | None]:
    """``A @ V``: mass goes to the values by the weighted map.

    While the tape holds mass back, it is kept here; it goes on with what arrives the next time.
    """
    record = step.facts["attention"]
    position: int = step.facts["position"]
    if record.is_probed:
        shapes = list(call.inputs)
        shapes[1 - position] = torch.ones_like(shapes[1 - position])
        record.arrived = call.vjp(mass, inputs=shapes)[position]
        return (None, None)
    if record.weighted is None:
        return (None, None)
    if step.tape.holds_back:
        record.held_back = mass
        return (None, None)
    operands = list(call.inputs)
    operands[position] = record.weighted.to(mass.dtype)
    arrived = [mass] if record.held_back is None else [mass, record.held_back]
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


@Flow
def product(step: Step, call: Call, mass: Tensor) -> Sequence[Tensor | None]:
    """A product of two activations that is no attention: by the size of what is multiplied.

    Where queries are compared with places, what goes to the places is held back as by an attention.
    """
    sizes = [value.abs() for value in call.inputs]
    total = call.forward(*sizes).clamp(min=torch.finfo(mass.dtype).tiny)
    parts = call.vjp(mass / total, inputs=sizes)
    factors: Sequence[float] = step.facts.get("mass", (0.5, 0.5))
    found = [
        size * part * factor if factor else None
        for size, part, factor in zip(sizes, parts, factors, strict=True)
    ]
    places = step.facts.get("places")
    if places is not None:
        held: list[Tensor] = step.facts["held"]
        of_places = found[places]
        assert of_places is not None
        if step.tape.holds_back:
            held.append(of_places)
            found[places] = None
        elif held:
            found[places] = of_places + held[0]
    return found


@Flow
def accumulation(step: Step, call: Call, mass: Tensor) -> Sequence[Tensor | None]:
    """A sum of several tensors' elements: by the size of what is added."""
    sizes = [value.abs() for value in call.inputs]
    total = call.forward(*sizes)
    share = mass / total.clamp(min=torch.finfo(total.dtype).tiny)
    return [size * part for size, part in zip(sizes, call.vjp(share, inputs=sizes), strict=True)]


@Flow
def unknown(step: Step, call: Call, mass: Tensor) -> Sequence[Tensor | None]:
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
            f"{step.name} mixes or folds the examples of the batch by an operation without a rule: "
            "explain one example at a time"
        )
    rows = [size.reshape(count, -1).sum(1) for size in sizes]
    factor = call.divide(mass.reshape(count, -1).sum(1), torch.stack(rows).sum(0))
    return tuple(size * factor.reshape(-1, *[1] * (size.dim() - 1)) for size in sizes)


@Flow
def unit(step: Step, call: Call, mass: Tensor) -> Sequence[Tensor | None]:
    """A module explained as a whole: tokens keep their mass if the shape says that they can."""
    first, *others = call.inputs
    if first.shape == mass.shape:
        kept: Tensor = mass
    elif first.shape[:-1] == mass.shape[:-1]:
        kept = (mass.sum(-1, keepdim=True) / first.shape[-1]).expand_as(first)
    else:
        raise ExplanationError(
            f"{step.name} turns {tuple(first.shape)} into {tuple(mass.shape)}, so its rule alone "
            "does not say which token is which: explain it without a rule of its own"
        )
    return (kept, *(None for _ in others))
