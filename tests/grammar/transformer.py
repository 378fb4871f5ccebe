"""A small Transformer, each part of which is written as a draw from the grammar says."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tests.grammar import productions as the

WIDTH, HEADS, ROWS, COLUMNS, CLASSES, VOCABULARY = 8, 2, 2, 4, 3, 20
TOKENS = ROWS * COLUMNS
BLOCKS, EXAMPLES = 2, 3

PREPARED: dict[str, tuple[dict[str, the.Spelling], tuple[int, int]]] = {
    "normalised": (the.NORMALISED, (8, 16)),
    "flipped": (the.FLIPPED, (8, 16)),
    "cropped": (the.CROPPED, (16, 20)),
    "rolled": (the.ROLLED, (8, 16)),
    "padded": (the.PADDED, (4, 12)),
    "halved": (the.HALVED, (16, 32)),
    "turned": (the.TURNED, (16, 8)),
}
"""What is done to images first, and the size that they must have for it."""

POOLS = {"first": the.FIRST, "last": the.LAST, "mean": the.MEANS, "masked mean": the.MASKED_MEANS,
         "maximum": the.MAXIMA, "attention": the.ATTENTION_POOLS}  # fmt: skip
NORMS = {"layer": the.LAYER_NORMS, "rms": the.RMS_NORMS}
ACTIVATIONS = {"gelu": the.GELUS, "relu": the.RELUS, "silu": the.SILUS}


@dataclass(frozen=True)
class Meaning:
    """What a model computes, however it is written."""

    seed: int = 0
    inputs: str = "embeddings"
    prepared: str = ""
    class_token: bool = False
    positions: bool = True
    norm: str = "layer"
    norm_first: bool = True
    activation: str = "gelu"
    mask: str = ""
    grouped: bool = False
    windows: bool = False
    pool: str = "mean"

    @classmethod
    def drawn(cls, seed: int) -> Meaning:
        """One of all."""
        draw = random.Random(seed)
        inputs = draw.choice(["images", "images", "embeddings", "ids"])
        images = inputs == "images"
        class_token = images and draw.random() < 0.4
        mask = "" if images else draw.choice(["", "padding", "causal"])
        pools = ["mean", "maximum", "attention", "first" if class_token else "last"]
        return cls(
            seed=seed,
            inputs=inputs,
            prepared=draw.choice(["", "", *PREPARED]) if images else "",
            class_token=class_token,
            positions=draw.random() < 0.8,
            norm=draw.choice(list(NORMS)),
            norm_first=draw.random() < 0.7,
            activation=draw.choice(list(ACTIVATIONS)),
            mask=mask,
            grouped=draw.random() < 0.3,
            windows=images and not class_token and draw.random() < 0.3,
            pool="masked mean" if mask == "padding" else draw.choice(pools),
        )

    @property
    def patches(self) -> str:
        """The slot of the patches: those of prepared images are one of their own."""
        return "patches, prepared" if self.prepared else "patches"

    def slots(self) -> dict[str, Mapping[str, Any]]:
        """The parts that a model of this meaning has, and the ways to write each."""
        found: dict[str, Mapping[str, Any]] = {}
        if self.inputs == "images":
            found[self.patches] = the.PATCHES
        if self.inputs == "ids":
            found["looked up"] = the.LOOKED_UP
        if self.prepared:
            found[self.prepared] = PREPARED[self.prepared][0]
        if self.class_token:
            found["class token"] = the.CLASS_TOKEN
        if self.positions:
            found["positions"] = the.POSITIONS
        if self.windows:
            found["windows"] = the.WINDOWS
        if self.grouped:
            found["grouped keys"] = the.GROUPED_KEYS
        if self.mask == "causal":
            found["causal"] = the.CAUSAL
        if self.mask:
            found["mask"] = the.MASKS
        return found | {
            "layout": the.LAYOUTS,
            f"{self.norm} norm": NORMS[self.norm],
            "projection": the.PROJECTIONS,
            "split heads": the.SPLIT_HEADS,
            "attention": {"written out": None} | the.ATTENTIONS,
            "scale": the.SCALED,
            "scores": the.SCORES,
            "softmax": the.SOFTMAXES,
            "values": the.VALUES,
            "join heads": the.JOIN_HEADS,
            "residual": the.RESIDUALS,
            "linear": the.LINEARS,
            self.activation: ACTIVATIONS[self.activation],
            f"pool, {self.pool}": POOLS[self.pool],
        }


@dataclass(frozen=True)
class Draw:
    """A meaning, and of each part that is not written plainly the production.

    ``written`` maps slots to productions; what is missing is written plainly.
    """

    meaning: Meaning
    written: Mapping[str, str]

    @classmethod
    def of(cls, seed: int) -> Draw:
        """The draw of a seed: about a third of the parts are not plain."""
        meaning = Meaning.drawn(seed)
        draw = random.Random(-1 - seed)
        written = {
            slot: draw.choice(list(ways)[1:])
            for slot, ways in meaning.slots().items()
            if draw.random() < 0.35
        }
        return cls(meaning, written)

    @property
    def names(self) -> list[str]:
        """The productions, by their names."""
        return [f"{slot}: {name}" for slot, name in self.written.items()]

    def without(self, slot: str) -> Draw:
        """The same with one part written plainly."""
        return replace(self, written={s: n for s, n in self.written.items() if s != slot})

    def __str__(self) -> str:
        default = Meaning()
        facts = [
            f"{name}={value!r}"
            for name, value in vars(self.meaning).items()
            if value != getattr(default, name)
        ]
        return f"Meaning({', '.join(facts)}) with {', '.join(self.names) or 'nothing'}"


class Transformer(nn.Module):
    """The model of a draw.  Its weights depend on the meaning alone."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.meaning = draw.meaning
        slots = draw.meaning.slots()
        self.written = {
            slot: ways[draw.written.get(slot, next(iter(ways)))] for slot, ways in slots.items()
        }
        generator = torch.Generator().manual_seed(draw.meaning.seed)

        def weights(*shape: int, around: float = 0.0) -> nn.Parameter:
            scale = 1.5 * shape[-1] ** -0.5 if len(shape) > 1 else 0.2
            drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return nn.Parameter(around + scale * drawn)

        self.patches, self.patch_bias = weights(WIDTH, 3, the.PATCH, the.PATCH), weights(WIDTH)
        self.table = weights(VOCABULARY, WIDTH)
        self.cls, self.positions = weights(1, 1, WIDTH), weights(TOKENS, WIDTH)
        self.blocks = nn.ModuleList()
        for _ in range(BLOCKS):
            block = nn.ParameterDict()
            shapes = {"qkv": 3 * WIDTH, "out": WIDTH, "up": 2 * WIDTH, "down": WIDTH}
            for name, size in shapes.items():
                block[name] = weights(size, 2 * WIDTH if name == "down" else WIDTH)
                block[name + "_bias"] = weights(size)
            for name in ("norm1", "norm2"):
                block[name], block[name + "_bias"] = weights(WIDTH, around=1), weights(WIDTH)
            self.blocks.append(block)
        self.pooling = weights(WIDTH)
        self.head, self.head_bias = weights(CLASSES, WIDTH), weights(CLASSES)
        self.eval()

    # -- the parts -------------------------------------------------------------------------------

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        x = self.tokens(x)
        there, back = self.written["layout"]
        x = there(x)
        for block in self.blocks:
            x = self.block(x, block, keep)
        x = back(x, EXAMPLES)
        pooled = self.written[f"pool, {self.meaning.pool}"](x, keep, self.pooling)
        logits: Tensor = self.written["linear"](pooled, self.head, self.head_bias)
        return logits

    def tokens(self, x: Tensor) -> Tensor:
        meaning, written = self.meaning, self.written
        if meaning.prepared:
            x = written[meaning.prepared](x)
        if meaning.inputs == "images":
            x = written[meaning.patches](x, self.patches, self.patch_bias)
        elif meaning.inputs == "ids":
            x = written["looked up"](x, self.table)
        if meaning.positions:
            x = written["positions"](x, self.positions)
        return written["class token"](x, self.cls) if meaning.class_token else x

    def block(self, x: Tensor, block: Any, keep: Tensor | None) -> Tensor:
        meaning, written = self.meaning, self.written
        add, norm, linear = written["residual"], written[f"{meaning.norm} norm"], written["linear"]

        def normed(value: Tensor, name: str) -> Tensor:
            return norm(value, block[name], block[name + "_bias"])

        def feed_forward(value: Tensor) -> Tensor:
            hidden = written[meaning.activation](linear(value, block["up"], block["up_bias"]))
            return linear(hidden, block["down"], block["down_bias"])

        if meaning.norm_first:
            x = add(x, self.attention(normed(x, "norm1"), block, keep))
            return add(x, feed_forward(normed(x, "norm2")))
        x = normed(add(x, self.attention(x, block, keep)), "norm1")
        return normed(add(x, feed_forward(x)), "norm2")

    def attention(self, x: Tensor, block: Any, keep: Tensor | None) -> Tensor:
        meaning, written = self.meaning, self.written
        there, back = written["layout"]
        x = back(x, EXAMPLES)
        if meaning.windows:
            cut, joined = written["windows"]
            x = cut(x, ROWS, COLUMNS)
        q, k, v = written["projection"](x, block["qkv"], block["qkv_bias"])
        q = written["split heads"](q, HEADS)
        if meaning.grouped:  # one head of keys and values for all
            k, v = (one[..., : WIDTH // HEADS] for one in (k, v))
            k, v = (written["split heads"](one, 1) for one in (k, v))
            k, v = (written["grouped keys"](one, HEADS) for one in (k, v))
        else:
            k, v = (written["split heads"](one, HEADS) for one in (k, v))
        mixed = self.mixed(q, k, v, self.kept(keep, x.shape[1]))
        x = written["join heads"](mixed)
        x = written["linear"](x, block["out"], block["out_bias"])
        return there(joined(x, ROWS, COLUMNS) if meaning.windows else x)

    def kept(self, keep: Tensor | None, size: int) -> Tensor | None:
        """Which keys each query may attend to, against (N, heads, queries, keys)."""
        if self.meaning.mask == "causal":
            return self.written["causal"](size)[None, None]
        return None if keep is None else keep[:, None, None]

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
        written, scale = self.written, q.shape[-1] ** -0.5
        if written["attention"] is not None:
            found: Tensor = written["attention"](q, k, v, keep, scale)
            return found
        scores = written["scale"](written["scores"], q, k, scale)
        if keep is not None:
            scores = written["mask"](scores, keep)
        values: Tensor = written["values"](written["softmax"](scores), v)
        return values


def inputs_of(meaning: Meaning) -> tuple[Tensor, Tensor | None]:
    """A batch for a model of this meaning, and which tokens are no padding."""
    generator = torch.Generator().manual_seed(meaning.seed + 1)
    keep = None
    if meaning.mask == "padding":
        keep = torch.arange(TOKENS) < torch.tensor([[TOKENS], [5], [3]])
    if meaning.inputs == "ids":
        # No id twice, as ties of a maximum have several derivatives.
        drawn = [torch.randperm(VOCABULARY - 1, generator=generator) for _ in range(EXAMPLES)]
        return 1 + torch.stack(drawn)[:, :TOKENS], keep
    shape: tuple[int, ...] = (TOKENS, WIDTH)
    if meaning.inputs == "images":
        size = PREPARED[meaning.prepared][1] if meaning.prepared else (8, 16)
        shape = (3, *size)
    return torch.randn(EXAMPLES, *shape, generator=generator, dtype=torch.float64), keep


MOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "flipped": lambda x: x.flip(3),
    "cropped": lambda x: x[:, :, 4:12, 2:18],
    "rolled": lambda x: x.roll(3, 3),
    "turned": lambda x: x.mT,
}
"""Preparations that only move pixels."""


def moved_back(prepared: str, of_moved: Tensor, like: Tensor) -> Tensor:
    """What belongs to pixels, laid where they came from: the derivative of moving them."""
    leaf = torch.zeros_like(like, requires_grad=True)
    with torch.enable_grad():
        (found,) = torch.autograd.grad(MOVED[prepared](leaf), leaf, of_moved)
    return found
