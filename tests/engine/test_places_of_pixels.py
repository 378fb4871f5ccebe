"""Mass lies on the pixels that a token was made from, however they were moved before.

A model that moves its pixels and then calls a second model has that one's map, moved back.
"""

from __future__ import annotations

import gc
import weakref
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


@pytest.mark.parametrize(
    ("tokens", "move"),
    [
        (tokens, move)
        for tokens in ("patches", "overlapping", "stem", "linear", "normalised")
        for move, (dims, _) in MOVES.items()
        if tokens != "linear" or dims == 2  # its patches have two dimensions
    ],
)
def test_pixels_that_are_moved_take_their_mass_along(tokens: str, move: str) -> None:
    dims, moves = MOVES[move]
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
    assert relative_error(found, expected) < EXACT


class Normalised(nn.Module):
    """Pixels less a mean, by a deviation, as models do that take them as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.25) / 0.5


def by_blocks(x: Tensor) -> Tensor:
    blocks = x.unflatten(3, (-1, 4)).unflatten(2, (-1, 4))
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def by_strides(x: Tensor) -> Tensor:
    pixels = [x[:, :, i::4, j::4] for i in range(4) for j in range(4)]
    return torch.stack(pixels, 2).flatten(1, 2).flatten(2).mT


def by_pieces(x: Tensor) -> Tensor:
    return torch.stack([p.flatten(1) for row in x.split(4, 2) for p in row.split(4, 3)], 1)


CUTS: dict[str, Move] = {
    "blocks": by_blocks,
    "strides": by_strides,
    "pieces": by_pieces,
    "F.unfold": lambda x: F.unfold(x, 4, stride=4).mT,
    "Tensor.unfold": lambda x: (
        x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    ),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 4).flatten(2).mT,
    "in another order": lambda x: by_blocks(x).flip(1),
}

PREPARATIONS: dict[str, Move] = {
    "as they are": lambda x: x,
    "normalised": lambda x: (x - 0.25) / 0.5,
    "channel by channel": lambda x: torch.stack([(one - 0.25) / 0.5 for one in x.unbind(1)], 1),
    "cropped": lambda x: x[:, :, 3:15, 2:14],
    "cropped and turned": lambda x: x[:, :, 3:15, 2:14].mT,
    "rolled, normalised": lambda x: (x.roll(3, 3) - 0.25) / 0.5,
}


class Tokens(nn.Module):
    """Patches read by a linear layer, an attention, their mean."""

    def __init__(self, read: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.read, self.weight = read, nn.Parameter(torch.randn(WIDTH, 2, 4, 4) / 4)
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.read(x, self.weight)
        q, k, v = self.qkv(tokens).chunk(3, -1)
        return self.head((tokens + (q @ k.mT).softmax(-1) @ v).mean(1))


@pytest.mark.parametrize("prepare", PREPARATIONS)
@pytest.mark.parametrize("cut", CUTS)
def test_patches_that_a_linear_layer_reads_are_those_of_a_convolution(
    cut: str, prepare: str
) -> None:
    def linear(x: Tensor, weight: Tensor) -> Tensor:
        patches = CUTS[cut](PREPARATIONS[prepare](x))
        return F.linear(patches, weight.flatten(1))

    def convolved(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(PREPARATIONS[prepare](x), weight, stride=4).flatten(2).mT

    torch.manual_seed(3)
    x = torch.randn(2, 2, 16, 16, dtype=torch.float64)
    expected = explained(Tokens(convolved).double().eval(), x)
    assert relative_error(explained(Tokens(linear).double().eval(), x), expected) < EXACT


def test_overlapping_patches_of_a_linear_layer_lie_on_the_pixels_that_they_hold() -> None:
    def read(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(F.unfold(x[:, :, 2:], 4, stride=3).mT, weight.flatten(1))

    torch.manual_seed(3)
    x = torch.randn(2, 2, 15, 13, dtype=torch.float64)
    found = methods.AttentionRollout(Tokens(read).double().eval()).attribute(x, target=1)
    assert float(found[:, :, 2:].abs().amax((0, 1)).min()) > 0
    assert float(found[:, :, :2].abs().max()) == 0


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


@pytest.mark.parametrize("make", [convolution, PatchesByLinear], ids=["convolution", "linear"])
def test_pixels_are_let_go_of_behind_an_explanation(make: Any) -> None:
    made: list[weakref.ref[Tensor]] = []

    def forward(x: Tensor) -> Tensor:
        pixels = (x.flip(3) - 0.25) / 0.5
        made.append(weakref.ref(pixels))
        return model(pixels)

    model = Encoder(convolution(2, 4, 4) if make is convolution else make()).double().eval()
    explained(forward, torch.randn(1, 2, 16, 16, dtype=torch.float64))
    gc.collect()
    assert [one() for one in made] == [None] * len(made)


def test_two_images_in_one_convolution_have_each_its_own_place() -> None:
    model = Encoder(convolution(2, 4, 4, inputs=4)).double().eval()
    torch.manual_seed(3)
    a, b = torch.randn(2, 1, 2, 16, 16, dtype=torch.float64)
    of_a, of_b = TransformerAttribution(lambda a, b: model(torch.cat([a, b.flip(3)], 1))).attribute(
        (a, b), target=1
    )
    together = explained(model, torch.cat([a, b.flip(3)], 1))
    assert relative_error(torch.cat([of_a, of_b.flip(3)], 1), together) < EXACT
