"""The paper's relevance propagation, written a second time: slowly, for one example, by recursion.

Nothing of ``captum_transformer_lrp`` is imported here.  A test writes a model's forward pass out by
hand with the functions below, for one example (no batch dimension).  Each returns a :class:`Value`:
the numbers, what they were made from, and how relevance divides among that.  :func:`propagate`
recurses from the logits.

Every division is the formula as printed, over all single products: no matrix identities, no
stabiliser, and 0/0 is 0.  Within :func:`epsilon` the denominators of eq. 2 keep away from zero.
Elements that only move are followed by their numbers, not by autograd.  Gradients
are ``torch.autograd``'s on the same forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Divide = Callable[[Tensor], Sequence[Tensor]]


@dataclass(eq=False, repr=False)
class Value:
    """An activation of one example.

    Args:
        data: its numbers, float64, on the autograd graph of the forward pass.
        sources: what it was made from.
        divide: from its relevance to that of each source.
        relevance: R, filled in by :func:`propagate`.
    """

    data: Tensor
    sources: tuple[Value, ...] = ()
    divide: Divide = lambda R: ()
    relevance: Tensor | None = None


def leaf(data: Tensor) -> Value:
    """An input of the model."""
    return Value(data.detach().clone().requires_grad_())


def propagate(output: Value, target: int) -> None:
    """R⁽⁰⁾ = 1_t, then every operation divides what all of its consumers have sent to it (eq. 3).

    The recursion visits an operation after everything that is made from it.
    """
    start = torch.zeros_like(output.data)
    start[target] = 1
    propagate_from(output, start)


def propagate_from(output: Value, start: Tensor) -> None:
    """The same from any R of ``output``."""
    order: list[Value] = []
    seen: set[int] = set()

    def visit(value: Value) -> None:
        if id(value) not in seen:
            seen.add(id(value))
            for source in value.sources:
                visit(source)
            order.append(value)

    visit(output)
    for value in order:
        value.relevance = torch.zeros_like(value.data)
    output.relevance = start
    for value in reversed(order):
        assert value.relevance is not None
        with torch.no_grad():
            parts = value.divide(value.relevance)
        for source, part in zip(value.sources, parts, strict=True):
            assert source.relevance is not None
            assert source.data.shape == part.shape
            source.relevance = source.relevance + part


_epsilon = [0.0]


@contextlib.contextmanager
def epsilon(value: float) -> Iterator[None]:
    """ε of eq. 2 for what is propagated inside."""
    _epsilon.append(value)
    try:
        yield
    finally:
        _epsilon.pop()


def away_from_zero(total: Tensor, size: Tensor) -> Tensor:
    """y + sign(y) ε s."""
    return total + torch.where(total < 0, -size, size) * _epsilon[-1]


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Division with 0/0 = 0."""
    return torch.where(denominator == 0, 0.0, numerator / denominator)


# -- rules ----------------------------------------------------------------------------------------


def linear_relevance(x: Tensor, weight: Tensor, R: Tensor) -> Tensor:
    """Eq. 5 for x of shape (…, in), weight (…, out, in), R (…, out): the products x_j·w_ji ≥ 0."""
    weight = weight.unsqueeze(-3) if weight.dim() > 2 else weight  # one for each head
    products = (x.unsqueeze(-2) * weight).clamp(min=0)
    shares = ratio(products, products.sum(-1, keepdim=True))
    return (R.unsqueeze(-1) * shares).sum(-2)


def normalized(R_u: Tensor, R_v: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 9 and 10.  They give back what ε has taken, up to four times what is left."""
    size = torch.maximum(R_u.sum().abs() + R_v.sum().abs(), R.sum().abs() / 4)
    return (
        R_u * ratio(R_u.sum().abs(), size) * ratio(R.sum(), R_u.sum()),
        R_v * ratio(R_v.sum().abs(), size) * ratio(R.sum(), R_v.sum()),
    )


def skip_add_relevance(u: Tensor, v: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 2 for each operand of u + v, then eq. 9 and 10 over the whole tensor."""
    share = ratio(R, away_from_zero(u + v, u.abs() + v.abs()))
    return normalized(u * share, v * share, R)


def matmul_relevance(u: Tensor, v: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 2 for each operand of (…, i, j) @ (…, j, k), then eq. 9 and 10 over the whole tensor.

    What ε takes is not given back.
    """
    products = u.unsqueeze(-1) * v.unsqueeze(-3)  # (…, i, j, k), whose sum over j is the output
    total = away_from_zero(products.sum(-2), products.abs().sum(-2))
    shares = products * ratio(R, total).unsqueeze(-2)
    return normalized(shares.sum(-1), shares.sum(-3), shares)


# -- operations with a weight ---------------------------------------------------------------------


def linear(x: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
    """Eq. 5; the bias takes nothing."""
    weight = weight.detach()
    data = x.data @ weight.mT
    data = data if bias is None else data + bias.detach()
    return Value(data, (x,), lambda R: (linear_relevance(x.data, weight, R),))


# -- operations with two activations --------------------------------------------------------------


def add(u: Value, v: Value) -> Value:
    """A skip connection."""
    return Value(u.data + v.data, (u, v), lambda R: skip_add_relevance(u.data, v.data, R))


def matmul(u: Value, v: Value) -> Value:
    """A product of two activations; leading axes (heads, windows) are the same."""
    return Value(u.data @ v.data, (u, v), lambda R: matmul_relevance(u.data, v.data, R))


def times(u: Value, v: Value) -> Value:
    """A gate: element by element, so eq. 2 gives each operand R, and eq. 9 and 10 half of it."""
    return Value(u.data * v.data, (u, v), lambda R: normalized(*_both(u.data * v.data, R), R))


def _both(product: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    share = product * ratio(R, product)
    return share, share


# -- operations with one activation ---------------------------------------------------------------


def add_parameter(x: Value, parameter: Tensor) -> Value:
    """As a skip connection; what the parameter gets goes no further."""
    constant = parameter.detach().expand_as(x.data)
    return Value(x.data + constant, (x,), lambda R: (skip_add_relevance(x.data, constant, R)[0],))


def elementwise(x: Value, function: Callable[[Tensor], Tensor]) -> Value:
    """An activation, scaling, a normalisation or softmax: relevance passes unchanged."""
    return Value(function(x.data), (x,), lambda R: (R,))


def hide(x: Value, allowed: Tensor) -> Value:
    """Scores that are switched off before softmax; nothing comes from there.

    By a number, not by -inf: a row that is switched off altogether, of padding, is uniform.
    """
    data = x.data.masked_fill(~allowed, torch.finfo(x.data.dtype).min)
    return Value(data, (x,), lambda R: (R * allowed,))


def mean(x: Value, dim: int) -> Value:
    """Eq. 2 for the mean over one axis."""

    def divide(R: Tensor) -> tuple[Tensor]:
        summed = x.data.sum(dim)
        cancelled = x.data.abs().sum(dim) - summed.abs()
        return (x.data * ratio(R, away_from_zero(summed, cancelled)).unsqueeze(dim),)

    return Value(x.data.mean(dim), (x,), divide)


def total(x: Value, dim: int) -> Value:
    """Eq. 2 for the sum over one axis."""
    return Value(x.data.sum(dim), (x,), mean(x, dim).divide)


# -- operations that move elements ----------------------------------------------------------------


def move(x: Value, function: Callable[[Tensor], Tensor]) -> Value:
    """Reshaping, slicing, rolling, repeating …; the elements' numbers tell where each came from."""
    return join([x], lambda values: function(values[0]))


def join(values: Sequence[Value], function: Callable[[list[Tensor]], Tensor]) -> Value:
    """The same for elements of several activations, e.g. concatenation."""
    sizes = [value.data.numel() for value in values]
    numbers = torch.arange(1.0, sum(sizes) + 1, dtype=torch.float64)  # from 1, as padding is 0
    shaped = [
        part.reshape(value.data.shape)
        for part, value in zip(numbers.split(sizes), values, strict=True)
    ]
    origin = function(shaped).long().flatten()

    def divide(R: Tensor) -> tuple[Tensor, ...]:
        found = R.new_zeros(sum(sizes) + 1).index_add(0, origin, R.flatten())
        parts = found[1:].split(sizes)
        return tuple(
            part.reshape(value.data.shape) for part, value in zip(parts, values, strict=True)
        )

    return Value(function([value.data for value in values]), tuple(values), divide)


# -- what the models share ------------------------------------------------------------------------


def scale(x: Value, by: float | Tensor) -> Value:
    """Scaling by a constant or a parameter."""
    return elementwise(x, lambda value: value * (by.detach() if isinstance(by, Tensor) else by))


def softmax(x: Value) -> Value:
    """Over the last axis."""
    return elementwise(x, lambda value: value.softmax(-1))


def layer_norm(x: Value, module: Any) -> Value:
    """Over the last axis, with the module's weight, bias and ε."""
    epsilon = getattr(module, "eps", None) or module.variance_epsilon

    def normalize(value: Tensor) -> Tensor:
        centered = value - value.mean(-1, keepdim=True)
        deviation = (centered.square().mean(-1, keepdim=True) + epsilon).sqrt()
        return centered / deviation * module.weight.detach() + module.bias.detach()

    return elementwise(x, normalize)


def dense(x: Value, module: Any) -> Value:
    """``nn.Linear``."""
    return linear(x, module.weight, module.bias)


def split_heads(x: Value, heads: int) -> Value:
    """(S, heads · d) → (heads, S, d)."""
    return move(x, lambda value: value.unflatten(-1, (heads, -1)).transpose(-3, -2))


def merge_heads(x: Value) -> Value:
    """(heads, S, d) → (S, heads · d)."""
    return move(x, lambda value: value.transpose(-3, -2).flatten(-2))


def transposed(x: Value) -> Value:
    """The last two axes."""
    return move(x, lambda value: value.mT)


def rows(x: Value, index: Any) -> Value:
    """Some of the tokens."""
    return move(x, lambda value: value[index])


def patches(image: Value, convolution: Any) -> Value:
    """A convolution whose stride is its kernel, (C, H, W) → (H/p, W/p, D): linear on patches."""
    p, q = convolution.kernel_size
    cut = move(
        image,
        lambda value: (
            value.unflatten(2, (-1, q)).unflatten(1, (-1, p)).permute(1, 3, 0, 2, 4).flatten(2)
        ),
    )
    return linear(cut, convolution.weight.flatten(1), convolution.bias)


def rms_norm(x: Value, module: Any) -> Value:
    """As layer norm, without mean and bias."""

    def normalize(value: Tensor) -> Tensor:
        size = (value.square().mean(-1, keepdim=True) + module.variance_epsilon).sqrt()
        return value / size * module.weight.detach()

    return elementwise(x, normalize)


def rotated(x: Value, base: float = 10000.0) -> Value:
    """Rotary positions, x·cos + half-turned x·sin: two activations added (eq. 2, 9 and 10).

    The angles are float32, as the models have them.
    """
    _, tokens, width = x.data.shape
    frequencies = 1 / base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = (torch.arange(tokens)[:, None].float() * frequencies).repeat(1, 2)
    swapped = move(
        x, lambda value: torch.cat([value[..., width // 2 :], value[..., : width // 2]], -1)
    )
    signs = torch.ones(width).index_fill(0, torch.arange(width // 2), -1)
    return add(scale(x, angles.cos().double()), scale(swapped, (signs * angles.sin()).double()))


def resampled(image: Value, function: Callable[[Tensor], Tensor]) -> Value:
    """Eq. 2 for interpolation, (C, H, W) → (C, H', W'): as the dense matrix that it is."""
    _, height, width = image.data.shape
    basis = torch.eye(height * width, dtype=torch.float64).unflatten(-1, (height, width))
    matrix = function(basis).flatten(1).T
    data = (image.data.flatten(1) @ matrix.T).reshape(function(image.data).shape)

    def divide(R: Tensor) -> tuple[Tensor]:
        products = image.data.flatten(1).unsqueeze(-2) * matrix
        summed = products.sum(-1, keepdim=True)
        of_sizes = image.data.flatten(1).abs() @ matrix.T
        cancelled = (of_sizes.unsqueeze(-1) - summed.abs()).clamp(min=0)
        shares = ratio(products, away_from_zero(summed, cancelled))
        return ((R.flatten(1).unsqueeze(-1) * shares).sum(-2).reshape(image.data.shape),)

    return Value(data, (image,), divide)
