"""Mass lies on the pixels that a token was made from, however they were moved before.

A model that moves its pixels and then calls a second model has that one's map, moved back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import captum_transformer_lrp as methods
from captum_transformer_lrp import TransformerAttribution
from captum_transformer_lrp.engine.graph.grids import Axis

# Sums of a few hundred float64 numbers of one size.
EXACT = 1e-12
WIDTH = 8


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


Move = Callable[[Tensor], Tensor]


class Encoder(nn.Module):
    """Whatever makes tokens, (N, D, ...), one attention with a skip connection, one token read."""

    def __init__(self, make: nn.Module, read: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.make, self.read = make, read
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.make(x).flatten(2).mT
        q, k, v = self.qkv(tokens).chunk(3, -1)
        mixed = (q @ k.mT / WIDTH**0.5).softmax(-1) @ v
        return self.head((tokens + mixed)[:, self.read])


def convolution(
    dims: int, kernel: int, stride: int, padding: int = 0, inputs: int = 2
) -> nn.Module:
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    torch.manual_seed(1)
    found: nn.Module = kind(inputs, WIDTH, kernel, stride, padding)
    return found.double()


class PatchesByLinear(nn.Module):
    """Patches of 4 x 4 pixels, cut out with reshape and read by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.linear = nn.Linear(32, WIDTH).double()

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).permute(0, 2, 4, 1, 3, 5)
        return self.linear(patches.flatten(3)).permute(0, 3, 1, 2)


def explained(forward: Any, x: Tensor, **options: Any) -> Tensor:
    found: Tensor = TransformerAttribution(forward).attribute(x, target=1, **options)
    return found


def moved_back(move: Move, map: Tensor, shape: Sequence[int]) -> Tensor:
    """The map of moved pixels on the pixels that they were: the derivative of moving them."""
    pixels = torch.zeros(*shape, dtype=map.dtype, requires_grad=True)
    (found,) = torch.autograd.grad(move(pixels), pixels, map)
    return found


MOVES: dict[str, tuple[int, Move]] = {
    "flip": (2, lambda x: x.flip(3)),
    "crop": (2, lambda x: x[:, :, 3:15, 2:14]),
    "roll": (2, lambda x: x.roll((3, 5), (2, 3))),
    "tile": (2, lambda x: x.repeat(1, 1, 2, 1)),
    "every other": (2, lambda x: x[:, :, ::2, 1::2]),
    "turn": (2, lambda x: x.rot90(1, (2, 3))),
    "rows as columns": (2, lambda x: x.transpose(2, 3)),
    "pad": (2, lambda x: F.pad(x, (4, 0, 0, 4))),
    "quarters": (2, lambda x: torch.cat([x[:, :, 8:], x[:, :, :8]], 2)),
    "channels last": (2, lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)),
    "by index": (2, lambda x: x[:, :, torch.arange(15, -1, -1)]),
    "backwards": (1, lambda x: x.flip(2)),
    "frames of sound": (1, lambda x: x[:, :, 4:]),
    "every other frame": (3, lambda x: x[:, :, ::2]),
    "half of a video": (3, lambda x: x[:, :, 4:, :8]),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("tokens", ["patches", "overlapping", "stem", "linear", "normalised"])
def test_pixels_that_are_moved_take_their_mass_along(move: str, tokens: str) -> None:
    dims, moves = MOVES[move]
    if tokens == "linear" and (dims != 2 or move in {"crop"}):
        pytest.skip("patches of two dimensions, cut at multiples of four pixels")
    make = {
        "patches": lambda: convolution(dims, 4, 4),
        "overlapping": lambda: convolution(dims, 4, 3),
        "stem": lambda: nn.Sequential(
            convolution(dims, 3, 2, 1), nn.GELU(), convolution(dims, 2, 2, inputs=WIDTH)
        ),
        "linear": PatchesByLinear,
        "normalised": lambda: nn.Sequential(Normalised(), convolution(dims, 4, 4)),
    }[tokens]
    model = Encoder(make()).double().eval()
    torch.manual_seed(3)
    x = torch.randn(2, 2, *(16,) * dims, dtype=torch.float64)
    found = explained(lambda pixels: model(moves(pixels)), x)
    expected = moved_back(moves, explained(model, moves(x).detach()), x.shape)
    assert float(expected.abs().max()) > 0
    # Patches that a linear layer reads are smoothed where they lie on the input's own grid.
    if tokens == "linear" and move not in {"flip", "turn", "rows as columns", "channels last"}:
        read = moved_back(moves, torch.ones_like(moves(x)), x.shape) != 0
        assert not bool(found[~read].any())
        return
    assert relative_error(found, expected) < EXACT


class Normalised(nn.Module):
    """Pixels less a mean, by a deviation, as models do that take them as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.25) / 0.5


@pytest.mark.parametrize(
    "layers",
    [
        [(16, 10, 0)],  # as audio spectrograms are read
        [(7, 4, 3)],
        [(3, 2, 1), (3, 2, 1)],
        [(3, 1, 1), (4, 4, 0)],
        [(5, 5, 0)],
        [(2, 3, 0)],  # pixels between windows are read by nobody
        [(7, 2, 3), (3, 2, 1), (2, 2, 0)],
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [41, 48])
def test_a_place_is_the_window_that_the_derivative_shows(
    layers: list[tuple[int, int, int]], size: int
) -> None:
    axis, stack = Axis(), []
    for kernel, stride, padding in layers:
        axis = axis.behind(kernel, stride, padding)
        layer = nn.Conv1d(1, 1, kernel, stride, padding, bias=False).double()
        nn.init.ones_(layer.weight)
        stack.append(layer)
    x = torch.zeros(1, 1, size, dtype=torch.float64, requires_grad=True)
    out = nn.Sequential(*stack)(x)
    read = torch.zeros(size, dtype=torch.bool)
    for place in range(out.shape[-1]):
        (window,) = torch.autograd.grad(out[0, 0, place], x, retain_graph=True)
        pixels = window[0, 0].nonzero().flatten().tolist()
        first = axis.stride * place + axis.first
        last = axis.stride * place + axis.last
        assert (pixels[0], pixels[-1]) == (max(first, 0), min(last, size - 1))
        read[pixels] = True
    spread = axis.spread(torch.ones(1, out.shape[-1], dtype=torch.float64), 1, size)
    assert torch.equal(spread[0] != 0, read)


@pytest.mark.parametrize("size", [8, 12, 32, 40])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_the_map_of_a_resized_image_is_that_of_the_image(size: int, mode: str) -> None:
    model = Encoder(convolution(2, 4, 4)).double().eval()
    torch.manual_seed(3)
    x = torch.randn(1, 2, 16, 16, dtype=torch.float64)
    found = explained(lambda image: model(F.interpolate(image, size, mode=mode)), x)
    tokens = explained(
        lambda image: model(F.interpolate(image, size, mode=mode)), x, granularity="token"
    )
    grid = tokens.reshape(1, 1, size // 4, size // 4)
    expected = F.interpolate(grid, 16, mode="bilinear") / 2  # evenly over the two channels
    assert relative_error(found, expected.expand_as(found)) < EXACT


ALL = [
    "TransformerAttribution", "AttentionRollout", "GenericAttention", "RawAttention", "PartialLRP",
    "AttentionGradCam", "AttentionFlow", "LeGrad", "AttCat", "NormRollout", "BiAttention",
]  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_no_method_says_anything_of_pixels_that_nobody_reads(name: str) -> None:
    model = Encoder(convolution(2, 4, 4)).double().eval()
    torch.manual_seed(3)
    x = torch.randn(1, 2, 19, 23, dtype=torch.float64)
    method = getattr(methods, name)(lambda image: model(image[:, :, 1:].flip(2)))
    found = method.attribute(x, target=1)
    # Of the 18 rows that are left the upper 16 are read, which lay below; of 23 columns 20.
    assert float(found[:, :, 3:, :20].abs().max()) > 0
    assert float(found[:, :, :3].abs().max()) == 0
    assert float(found[..., 20:].abs().max()) == 0


def test_two_images_in_one_convolution_have_each_its_own_place() -> None:
    model = Encoder(convolution(2, 4, 4, inputs=4)).double().eval()
    torch.manual_seed(3)
    a, b = torch.randn(2, 1, 2, 16, 16, dtype=torch.float64)
    of_a, of_b = TransformerAttribution(lambda a, b: model(torch.cat([a, b.flip(3)], 1))).attribute(
        (a, b), target=1
    )
    together = explained(model, torch.cat([a, b.flip(3)], 1))
    assert relative_error(torch.cat([of_a, of_b.flip(3)], 1), together) < EXACT
