"""A grammar of spellings: for each part of a Transformer the ways to write it.

The first way is the plain one, and all others compute the same numbers.  Tokens are (N, S, D), the
projections of an attention (N, heads, S, d).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Spelling: TypeAlias = Callable[..., Any]

LOW = torch.finfo(torch.float64).min
HEADS, EPS = 2, 1e-5


# -- from images to tokens -----------------------------------------------------------------------

PATCH = 4


def _as_grid(images: Tensor, patches: Tensor) -> Tensor:
    return patches.reshape(len(images), images.shape[2] // PATCH * (images.shape[3] // PATCH), -1)


def _cut_by_reshaping(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return _as_grid(torch.empty(n, c, h, w), x.permute(0, 2, 4, 1, 3, 5))


def _cut_by_strides(x: Tensor) -> Tensor:
    """The pixels at each place of a patch, one slice of all patches after another."""
    slices = [x[:, :, i::PATCH, j::PATCH] for i in range(PATCH) for j in range(PATCH)]
    return torch.stack(slices, 2).flatten(1, 2).flatten(2).transpose(1, 2)


def _cut_by_unfold(x: Tensor) -> Tensor:
    cut = x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    return _as_grid(x, cut.permute(0, 2, 3, 1, 4, 5))


def _cut_patch_by_patch(x: Tensor) -> Tensor:
    rows = x.split(PATCH, 2)
    return torch.stack([one.flatten(1) for row in rows for one in row.split(PATCH, 3)], 1)


def _linear(cut: Spelling) -> Spelling:
    return lambda x, w, b: F.linear(cut(x), w.flatten(1), b)


PATCHES: dict[str, Spelling] = {
    "convolution": lambda x, w, b: F.conv2d(x, w, b, stride=PATCH).flatten(2).transpose(1, 2),
    "convolution, permuted": lambda x, w, b: (
        F.conv2d(x, w, b, stride=PATCH).permute(0, 2, 3, 1).flatten(1, 2)
    ),
    "reshaped and linear": _linear(_cut_by_reshaping),
    "F.unfold and linear": _linear(lambda x: F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)),
    "Tensor.unfold and linear": _linear(_cut_by_unfold),
    "strided slices and linear": _linear(_cut_by_strides),
    "patch by patch and linear": _linear(_cut_patch_by_patch),
}

MEAN, DEVIATION = 0.4, 0.25

NORMALISED: dict[str, Spelling] = {
    "(x − m) / s": lambda x: (x - MEAN) / DEVIATION,
    "in place": lambda x: x.clone().sub_(MEAN).div_(DEVIATION),
    "a x + b": lambda x: x * (1 / DEVIATION) + (-MEAN / DEVIATION),
    "by tensors": lambda x: (x - x.new_full((3, 1, 1), MEAN)) / x.new_full((1, 3, 1, 1), DEVIATION),
    "channel by channel": lambda x: torch.stack(
        [(x[:, i] - MEAN) / DEVIATION for i in range(3)], 1
    ),
    "F.batch_norm": lambda x: F.batch_norm(
        x, x.new_full((3,), MEAN), x.new_full((3,), DEVIATION**2), eps=0.0
    ),
}

FLIPPED: dict[str, Spelling] = {
    "flip": lambda x: x.flip(3),
    "torch.fliplr of rows": lambda x: torch.fliplr(x.permute(2, 3, 0, 1)).permute(2, 3, 0, 1),
    "index": lambda x: x[..., torch.arange(x.shape[3] - 1, -1, -1)],
    "index_select": lambda x: x.index_select(3, torch.arange(x.shape[3] - 1, -1, -1)),
    "columns stacked": lambda x: torch.stack(x.unbind(3)[::-1], 3),
}

CROPPED: dict[str, Spelling] = {
    "slices": lambda x: x[:, :, 4:12, 2:18],
    "narrow": lambda x: x.narrow(2, 4, 8).narrow(3, 2, 16),
    "F.pad": lambda x: F.pad(x, (-2, -2, -4, -4)),
    "index": lambda x: x[:, :, torch.arange(4, 12)[:, None], torch.arange(2, 18)],
    "split": lambda x: x.split((4, 8, 4), 2)[1].split((2, 16, 2), 3)[1],
}

ROLLED: dict[str, Spelling] = {
    "roll": lambda x: x.roll(3, 3),
    "cat": lambda x: torch.cat([x[..., -3:], x[..., :-3]], 3),
    "index": lambda x: x[..., (torch.arange(x.shape[3]) - 3) % x.shape[3]],
    "padded and cut": lambda x: F.pad(x, (3, 0, 0, 0), mode="circular")[..., :-3],
}

PADDED: dict[str, Spelling] = {
    "F.pad": lambda x: F.pad(x, (2, 2, 1, 3)),
    "cat": lambda x: torch.cat(
        [x.new_zeros(*x.shape[:2], 1, 16), torch.cat(
            [x.new_zeros(*x.shape[:3], 2), x, x.new_zeros(*x.shape[:3], 2)], 3),
         x.new_zeros(*x.shape[:2], 3, 16)], 2),
    "written": lambda x: _written(x.new_zeros(*x.shape[:2], 8, 16), x, (1, 5), (2, 14)),
    "ZeroPad2d": lambda x: torch.nn.ZeroPad2d((2, 2, 1, 3))(x),
}  # fmt: skip


def _written(zeros: Tensor, x: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    zeros[:, :, slice(*rows), slice(*columns)] = x
    return zeros


HALVED: dict[str, Spelling] = {
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "interpolate": lambda x: F.interpolate(x, scale_factor=0.5, mode="area"),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (8, 16)),
    "reshaped mean": lambda x: x.reshape(*x.shape[:2], 8, 2, 16, 2).mean((3, 5)),
    "strided slices": lambda x: (
        (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    ),
}

TURNED: dict[str, Spelling] = {
    "mT": lambda x: x.mT,
    "permute": lambda x: x.permute(0, 1, 3, 2),
    "swapaxes": lambda x: x.swapaxes(2, 3),
    "rot90 and flip": lambda x: torch.rot90(x, 1, (2, 3)).flip(2),
}


# -- tokens --------------------------------------------------------------------------------------

LOOKED_UP: dict[str, Spelling] = {
    "F.embedding": lambda ids, table: F.embedding(ids, table),
    "of flat ids": lambda ids, table: F.embedding(ids.flatten(), table).reshape(*ids.shape, -1),
    "index": lambda ids, table: table[ids],
}

POSITIONS: dict[str, Spelling] = {
    "x + p": lambda x, p: x + p,
    "p + x": lambda x, p: p + x,
    "in place": lambda x, p: _added_in_place(x.clone(), p),
    "expanded": lambda x, p: torch.add(x, p.expand_as(x)),
    "looked up": lambda x, p: x + F.embedding(torch.arange(p.shape[0]), p),
}

CLASS_TOKEN: dict[str, Spelling] = {
    "cat": lambda x, c: torch.cat([c.expand(len(x), 1, -1), x], 1),
    "padded and added": lambda x, c: F.pad(x, (0, 0, 1, 0)) + F.pad(c, (0, 0, 0, x.shape[1])),
    "written": lambda x, c: _with_first(x.new_zeros(len(x), x.shape[1] + 1, x.shape[2]), x, c),
    "hstack": lambda x, c: torch.hstack([c.repeat(len(x), 1, 1), x]),
}


def _added_in_place(x: Tensor, y: Tensor) -> Tensor:
    x += y
    return x


def _with_first(zeros: Tensor, x: Tensor, c: Tensor) -> Tensor:
    zeros[:, 1:] = x
    zeros[:, :1] = c
    return zeros


RESIDUALS: dict[str, Spelling] = {
    "x + y": lambda x, y: x + y,
    "y + x": lambda x, y: y + x,
    "torch.add with alpha": lambda x, y: torch.add(x, y / 2, alpha=2),
    "x − (−y)": lambda x, y: x - (-y),
    "in place": lambda x, y: _added_in_place(x, y),
    "in place on the branch": lambda x, y: y.add_(x),
    "of a clone": lambda x, y: x.clone() + y,
    "scaled back": lambda x, y: (2 * x + 2 * y) / 2,
    "stack.sum": lambda x, y: torch.stack([x, y]).sum(0),
    "stacked last": lambda x, y: torch.stack([x, y], -1).sum(-1),
    "cat.sum": lambda x, y: torch.cat([x[None], y[None]]).sum(0),
    "einsum": lambda x, y: torch.einsum("k...->...", torch.stack([x, y])),
    "twice the mean": lambda x, y: torch.stack([x, y]).mean(0) * 2,
    "sum of a list": lambda x, y: sum([x, y]),
    "reduce": lambda x, y: reduce(torch.add, [x, y]),
    "addcmul": lambda x, y: torch.addcmul(x, y, torch.ones((), dtype=x.dtype)),
    "lerp": lambda x, y: 2 * torch.lerp(x, y, 0.5),
    "into zeros": lambda x, y: _added_in_place(_added_in_place(torch.zeros_like(x), x), y),
    "token by token": lambda x, y: torch.stack(
        [a + b for a, b in zip(x.unbind(-2), y.unbind(-2), strict=True)], -2
    ),
    "transposed": lambda x, y: (x.mT + y.mT).mT,
    "halves": lambda x, y: torch.cat(
        [a + b for a, b in zip(x.chunk(2, -1), y.chunk(2, -1), strict=True)], -1
    ),
}

LINEARS: dict[str, Spelling] = {
    "F.linear": lambda x, w, b: F.linear(x, w, b),
    "matmul and bias": lambda x, w, b: x @ w.T + b,
    "einsum and bias": lambda x, w, b: torch.einsum("...i,oi->...o", x, w) + b,
    "bias first": lambda x, w, b: b + F.linear(x, w),
    "addmm": lambda x, w, b: torch.addmm(b, x.flatten(0, -2), w.T).unflatten(0, x.shape[:-1]),
    "weights first": lambda x, w, b: (w @ x.mT).mT + b,
    "baddbmm": lambda x, w, b: torch.baddbmm(
        b, x.reshape(-1, *x.shape[-2:]), w.T.expand(x.shape[:-2].numel(), -1, -1)
    ).reshape(*x.shape[:-1], -1),
}

LAYER_NORMS: dict[str, Spelling] = {
    "F.layer_norm": lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b, EPS),
    "mean and var": lambda x, w, b: (
        (x - x.mean(-1, True)) / (x.var(-1, unbiased=False, keepdim=True) + EPS).sqrt() * w + b
    ),
    "powers": lambda x, w, b: _by_powers(x) * w + b,
    "var_mean": lambda x, w, b: _by_var_mean(x) * w + b,
    "without weights": lambda x, w, b: w * F.layer_norm(x, x.shape[-1:], eps=EPS) + b,
    "addcmul": lambda x, w, b: torch.addcmul(b, F.layer_norm(x, x.shape[-1:], eps=EPS), w),
}


def _by_powers(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * centred.pow(2).mean(-1, True).add(EPS).rsqrt()


def _by_var_mean(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) * (variance + EPS).rsqrt()


RMS_NORMS: dict[str, Spelling] = {
    "F.rms_norm": lambda x, w, b: F.rms_norm(x, x.shape[-1:], w, EPS),
    "rsqrt of the mean square": lambda x, w, b: x * (x * x).mean(-1, True).add(EPS).rsqrt() * w,
    "divided by the root": lambda x, w, b: w * (x / (x.pow(2).mean(-1, True) + EPS).sqrt()),
    "by square": lambda x, w, b: x.mul(torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)) * w,
}

GELUS: dict[str, Spelling] = {
    "F.gelu": F.gelu,
    "erf": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "erf, x last": lambda x: (1 + torch.erf(x * 0.5**0.5)) * 0.5 * x,
}

RELUS: dict[str, Spelling] = {
    "F.relu": F.relu,
    "clamp": lambda x: x.clamp(min=0),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "times a comparison": lambda x: x * (x > 0),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "in place": lambda x: x.relu_(),
    "half of x + |x|": lambda x: (x + x.abs()) / 2,
}

SILUS: dict[str, Spelling] = {
    "F.silu": F.silu,
    "x σ(x)": lambda x: x * torch.sigmoid(x),
    "x / (1 + exp(−x))": lambda x: x / (1 + torch.exp(-x)),
    "σ(x) x of a clone": lambda x: torch.sigmoid(x) * x.clone(),
}


# -- attention -----------------------------------------------------------------------------------

PROJECTIONS: dict[str, Spelling] = {
    "three layers": lambda x, w, b: tuple(map(F.linear, [x] * 3, w.chunk(3), b.chunk(3))),
    "one layer, chunk": lambda x, w, b: F.linear(x, w, b).chunk(3, -1),
    "one layer, split": lambda x, w, b: F.linear(x, w, b).split(x.shape[-1], -1),
    "one layer, slices": lambda x, w, b: [
        F.linear(x, w, b)[..., i * x.shape[-1] : (i + 1) * x.shape[-1]] for i in range(3)
    ],
    "one layer, unbind": lambda x, w, b: F.linear(x, w, b).unflatten(-1, (3, -1)).unbind(-2),
    "matmul and bias": lambda x, w, b: (x @ w.T + b).chunk(3, -1),
    "einsum": lambda x, w, b: (
        torch.einsum("nsd,ked->knse", x, w.unflatten(0, (3, -1))) + b.view(3, 1, 1, -1)
    ).unbind(0),
    "1 × 1 convolution": lambda x, w, b: F.conv1d(x.mT, w[..., None], b).mT.chunk(3, -1),
}

SPLIT_HEADS: dict[str, Spelling] = {
    "reshape": lambda x, h: x.reshape(*x.shape[:2], h, -1).transpose(1, 2),
    "unflatten": lambda x, h: x.unflatten(-1, (h, -1)).movedim(2, 1),
    "stack": lambda x, h: torch.stack(x.chunk(h, -1), 1),
    "permute": lambda x, h: x.view(len(x), -1, h, x.shape[-1] // h).permute(0, 2, 1, 3),
}

JOIN_HEADS: dict[str, Spelling] = {
    "reshape": lambda x: x.transpose(1, 2).reshape(len(x), x.shape[2], -1),
    "flatten": lambda x: x.movedim(1, 2).flatten(2),
    "cat": lambda x: torch.cat(x.unbind(1), -1),
    "contiguous view": lambda x: x.permute(0, 2, 1, 3).contiguous().view(len(x), x.shape[2], -1),
}

GROUPED_KEYS: dict[str, Spelling] = {
    "repeat_interleave": lambda x, times: x.repeat_interleave(times, 1),
    "expand": lambda x, times: x[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2),
    "stack": lambda x, times: torch.stack([x] * times, 2).flatten(1, 2),
    "index": lambda x, times: x[:, torch.arange(x.shape[1] * times) // times],
}

SCALED: dict[str, Spelling] = {
    "scores · s": lambda product, q, k, s: product(q, k) * s,
    "queries · s": lambda product, q, k, s: product(q * s, k),
    "keys · s": lambda product, q, k, s: product(q, s * k),
    "queries √s, keys √s": lambda product, q, k, s: product(q * s**0.5, k * s**0.5),
    "scores / √d": lambda product, q, k, s: product(q, k) / (1 / s),
    "in place": lambda product, q, k, s: product(q, k).mul_(s),
    "torch.div": lambda product, q, k, s: torch.div(product(q, k), q.new_tensor(1 / s)),
}

SCORES: dict[str, Spelling] = {
    "matmul": lambda q, k: q @ k.transpose(-2, -1),
    "einsum": lambda q, k: torch.einsum("nhqd,nhkd->nhqk", q, k),
    "einsum of dots": lambda q, k: torch.einsum("...qd,...kd->...qk", q, k),
    "bmm": lambda q, k: torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT).unflatten(0, q.shape[:2]),
    "baddbmm": lambda q, k: torch.baddbmm(
        q.new_zeros(1, 1, 1), q.flatten(0, 1), k.flatten(0, 1).mT, beta=0
    ).unflatten(0, q.shape[:2]),
    "keys first": lambda q, k: (k @ q.mT).mT,
    "head by head": lambda q, k: torch.stack([q[:, i] @ k[:, i].mT for i in range(q.shape[1])], 1),
    "example by example": lambda q, k: torch.stack(
        [a @ b.mT for a, b in zip(q.unbind(0), k.unbind(0), strict=True)]
    ),
    "element by element": lambda q, k: (q[..., :, None, :] * k[..., None, :, :]).sum(-1),
    "query by query": lambda q, k: torch.cat([one @ k.mT for one in q.split(1, 2)], 2),
    "key by key": lambda q, k: torch.cat([q @ one.mT for one in k.split(1, 2)], 3),
}

SOFTMAXES: dict[str, Spelling] = {
    "softmax": lambda z: z.softmax(-1),
    "F.softmax": lambda z: F.softmax(z, dim=-1, dtype=torch.float64),
    "transposed": lambda z: z.mT.softmax(-2).mT,
    "log_softmax, exp": lambda z: z.log_softmax(-1).exp(),
    "logsumexp": lambda z: (z - z.logsumexp(-1, keepdim=True)).exp(),
    "exp / sum": lambda z: _divided(z.exp()),
    "maximum subtracted": lambda z: _divided((z - z.amax(-1, keepdim=True)).exp()),
    "detached maximum": lambda z: _divided((z - z.detach().max(-1, keepdim=True).values).exp()),
    "times the reciprocal": lambda z: z.exp() * z.exp().sum(-1, keepdim=True).reciprocal(),
    "F.normalize": lambda z: F.normalize(z.exp(), p=1.0, dim=-1, eps=0.0),
    "2 ** z": lambda z: _divided(torch.exp2(z / math.log(2))),
    "divided in place": lambda z: z.exp().div_(z.exp().sum(-1, keepdim=True)),
    "row by row": lambda z: torch.cat([row.softmax(-1) for row in z.split(1, -2)], -2),
    "negated softmin": lambda z: F.softmin(-z, dim=-1),
}


def _divided(e: Tensor) -> Tensor:
    return e / e.sum(-1, keepdim=True)


MASKS: dict[str, Spelling] = {
    "masked_fill": lambda z, keep: z.masked_fill(~keep, -torch.inf),
    "masked_fill, float min": lambda z, keep: z.masked_fill(~keep, LOW),
    "masked_fill_": lambda z, keep: z.clone().masked_fill_(~keep, -torch.inf),
    "where": lambda z, keep: torch.where(keep, z, -torch.inf),
    "where, a tensor": lambda z, keep: z.where(keep, torch.full((), LOW, dtype=z.dtype)),
    "additive −∞": lambda z, keep: z + torch.zeros(keep.shape).to(z).masked_fill(~keep, -torch.inf),
    "additive float min": lambda z, keep: z + (1 - keep.to(z)) * LOW,
    "additive −1e9, in place": lambda z, keep: _added_in_place(z.clone(), -1e9 * (~keep).to(z)),
    "subtracted": lambda z, keep: z - 1e9 * (~keep).to(z),
}

CAUSAL: dict[str, Spelling] = {
    "tril": lambda s: torch.ones(s, s).tril().bool(),
    "triu": lambda s: ~torch.ones(s, s).triu(1).bool(),
    "positions": lambda s: torch.arange(s)[:, None] >= torch.arange(s),
}

VALUES: dict[str, Spelling] = {
    "matmul": lambda a, v: a @ v,
    "einsum": lambda a, v: torch.einsum("nhqk,nhkd->nhqd", a, v),
    "bmm": lambda a, v: torch.bmm(a.flatten(0, 1), v.flatten(0, 1)).unflatten(0, a.shape[:2]),
    "baddbmm": lambda a, v: torch.baddbmm(
        v.new_zeros(1, 1, 1), a.flatten(0, 1), v.flatten(0, 1)
    ).unflatten(0, a.shape[:2]),
    "values first": lambda a, v: (v.mT @ a.mT).mT,
    "head by head": lambda a, v: torch.stack([a[:, i] @ v[:, i] for i in range(a.shape[1])], 1),
    "chunks of queries": lambda a, v: torch.cat([one @ v for one in a.split(3, 2)], 2),
    "example by example": lambda a, v: torch.stack([a[i] @ v[i] for i in range(len(a))]),
    "element by element": lambda a, v: (a[..., None] * v[..., None, :, :]).sum(-2),
    "key by key": lambda a, v: sum(
        a[..., i : i + 1] * v[..., i : i + 1, :] for i in range(v.shape[-2])
    ),
}


def _plain(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, s: float) -> Tensor:
    z = q @ k.mT * s
    return (z if keep is None else z.masked_fill(~keep, -torch.inf)).softmax(-1) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, s: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep, scale=s)


def _sdpa_with_floats(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, s: float) -> Tensor:
    bias = None if keep is None else torch.zeros(keep.shape).to(q).masked_fill(~keep, -torch.inf)
    return F.scaled_dot_product_attention(q * (s * q.shape[-1] ** 0.5), k, v, bias)


def _by_heads(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, s: float) -> Tensor:
    mask = None if keep is None else keep[..., 0, :, :]
    return torch.stack([_plain(q[:, i], k[:, i], v[:, i], mask, s) for i in range(q.shape[1])], 1)


def _by_chunks(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, s: float) -> Tensor:
    whole = None if keep is None else keep.expand(*keep.shape[:-2], q.shape[2], -1)
    masks = [None] * 3 if whole is None else whole.split(4, -2)
    chunks = zip(q.split(4, 2), masks, strict=False)
    return torch.cat([_plain(one, k, v, mask, s) for one, mask in chunks], 2)


def _folded(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, s: float) -> Tensor:
    """Heads in the batch, as in ``nn.MultiheadAttention``; the mask is what baddbmm adds to."""
    n, h = q.shape[:2]
    bias = torch.zeros(1, 1, 1, 1).to(q) if keep is None else _plain_bias(keep, q)
    bias = bias.expand(n, h, q.shape[2], k.shape[2]).flatten(0, 1)
    z = torch.baddbmm(bias, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=s)
    return torch.bmm(z.softmax(-1), v.flatten(0, 1)).unflatten(0, (n, h))


def _plain_bias(keep: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(keep.shape).to(like).masked_fill(~keep, -torch.inf)


def _heads_last(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, s: float) -> Tensor:
    """(N, S, heads, d), keys in the second place of the map."""
    q, k, v = (one.transpose(1, 2) for one in (q, k, v))
    z = torch.einsum("nqhd,nkhd->nkqh", q, k) * s
    if keep is not None:
        z = z.masked_fill(~keep.movedim(1, -1).transpose(1, 2), -torch.inf)
    return torch.einsum("nkqh,nkhd->nqhd", z.softmax(1), v).transpose(1, 2)


ATTENTIONS: dict[str, Spelling] = {
    "SDPA": _sdpa,
    "SDPA, a float mask": _sdpa_with_floats,
    "heads in a loop": _by_heads,
    "queries in chunks": _by_chunks,
    "heads in the batch": _folded,
    "heads last, keys in rows": _heads_last,
}
"""Beside the one that is written out, with a spelling for each of its parts."""


def _windows(x: Tensor, rows: int, columns: int) -> Tensor:
    n, _, d = x.shape
    x = x.reshape(n, rows // 2, 2, columns // 2, 2, d)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, d)


def _unwindowed(x: Tensor, rows: int, columns: int) -> Tensor:
    x = x.reshape(-1, rows // 2, columns // 2, 2, 2, x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(len(x), rows * columns, -1)


def _window_places(rows: int, columns: int) -> Tensor:
    return _windows(torch.arange(rows * columns).reshape(1, -1, 1), rows, columns).flatten()


WINDOWS: dict[str, tuple[Spelling, Spelling]] = {
    "reshaped": (_windows, _unwindowed),
    "indexed": (
        lambda x, r, c: x[:, _window_places(r, c)].reshape(-1, 4, x.shape[-1]),
        lambda x, r, c: x.reshape(-1, r * c, x.shape[-1])[:, _window_places(r, c).argsort()],
    ),
    "slices": (
        lambda x, r, c: torch.stack(
            [
                x.unflatten(1, (r, c))[:, i : i + 2, j : j + 2].flatten(1, 2)
                for i in range(0, r, 2)
                for j in range(0, c, 2)
            ],
            1,
        ).flatten(0, 1),
        _unwindowed,
    ),
}

LAYOUTS: dict[str, tuple[Spelling, Spelling]] = {
    "batch first": (lambda x: x, lambda x, n: x),
    "sequence first": (lambda x: x.transpose(0, 1), lambda x, n: x.transpose(0, 1)),
    "flat": (lambda x: x.flatten(0, 1), lambda x, n: x.unflatten(0, (n, -1))),
    "one more axis": (lambda x: x.unsqueeze(1), lambda x, n: x.squeeze(1)),
}
"""How tokens lie between attentions: there from (N, S, D), and back."""


# -- the answer ----------------------------------------------------------------------------------

FIRST: dict[str, Spelling] = {
    "x[:, 0]": lambda x, keep, p: x[:, 0],
    "select": lambda x, keep, p: x.select(1, 0),
    "narrow": lambda x, keep, p: x.narrow(1, 0, 1).squeeze(1),
    "unbind": lambda x, keep, p: x.unbind(1)[0],
    "split": lambda x, keep, p: x.split((1, x.shape[1] - 1), 1)[0].flatten(1),
    "einsum": lambda x, keep, p: torch.einsum("nsd,s->nd", x, _one_hot(x, 0)),
}

LAST: dict[str, Spelling] = {
    "x[:, −1]": lambda x, keep, p: x[:, -1],
    "indexed": lambda x, keep, p: x[torch.arange(len(x)), torch.full((len(x),), x.shape[1] - 1)],
    "gather": lambda x, keep, p: x.gather(
        1, torch.full((len(x), 1, x.shape[2]), x.shape[1] - 1)
    ).squeeze(1),
    "flip": lambda x, keep, p: x.flip(1)[:, 0],
    "take_along_dim": lambda x, keep, p: torch.take_along_dim(
        x, torch.full((1, 1, 1), x.shape[1] - 1), 1
    ).squeeze(1),
}

MEANS: dict[str, Spelling] = {
    "mean": lambda x, keep, p: x.mean(1),
    "sum / S": lambda x, keep, p: x.sum(1) / x.shape[1],
    "einsum": lambda x, keep, p: torch.einsum("nsd->nd", x) / x.shape[1],
    "einsum of weights": lambda x, keep, p: torch.einsum(
        "nsd,s->nd", x, x.new_full((x.shape[1],), 1 / x.shape[1])
    ),
    "adaptive_avg_pool1d": lambda x, keep, p: F.adaptive_avg_pool1d(x.mT, 1).squeeze(-1),
    "weights first": lambda x, keep, p: (
        x.new_full((len(x), 1, x.shape[1]), 1 / x.shape[1]) @ x
    ).squeeze(1),
    "token by token": lambda x, keep, p: sum(x.unbind(1)) / x.shape[1],
    "sums of halves": lambda x, keep, p: (
        torch.stack([half.sum(1) for half in x.chunk(2, 1)]).sum(0) / x.shape[1]
    ),
    "sums of thirds, added": lambda x, keep, p: (
        sum(third.sum(1) for third in x.chunk(3, 1)) / x.shape[1]
    ),
    "divided token by token": lambda x, keep, p: sum(one / x.shape[1] for one in x.unbind(1)),
    "two by two": lambda x, keep, p: _two_by_two(list(x.unbind(1))) / x.shape[1],
    "token by token into zeros": lambda x, keep, p: (
        reduce(lambda total, i: total + x[:, i], range(x.shape[1]), torch.zeros_like(x[:, 0]))
        / x.shape[1]
    ),
    "token by token in place": lambda x, keep, p: (
        reduce(lambda total, i: total.add_(x[:, i]), range(1, x.shape[1]), x[:, 0].clone())
        / x.shape[1]
    ),
}


def _two_by_two(parts: list[Tensor]) -> Tensor:
    while len(parts) > 1:
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        parts = [one[0] + one[1] if len(one) == 2 else one[0] for one in pairs]
    return parts[0]


MASKED_MEANS: dict[str, Spelling] = {
    "times the mask": lambda x, keep, p: (x * keep[..., None]).sum(1) / keep.sum(1, keepdim=True),
    "where": lambda x, keep, p: torch.where(keep[..., None], x, 0.0).sum(1) / keep.sum(1)[:, None],
    "masked_fill": lambda x, keep, p: (
        x.masked_fill(~keep[..., None], 0.0).sum(1) / keep.sum(1)[:, None].clamp(min=1)
    ),
    "einsum": lambda x, keep, p: torch.einsum(
        "nsd,ns->nd", x, keep.to(x) / keep.sum(1, keepdim=True)
    ),
    "weights first": lambda x, keep, p: (
        (keep.to(x) / keep.sum(1, keepdim=True))[:, None] @ x
    ).squeeze(1),
    "example by example": lambda x, keep, p: torch.stack(
        [one[kept].mean(0) for one, kept in zip(x, keep, strict=True)]
    ),
}

MAXIMA: dict[str, Spelling] = {
    "amax": lambda x, keep, p: x.amax(1),
    "max": lambda x, keep, p: x.max(1).values,
    "adaptive_max_pool1d": lambda x, keep, p: F.adaptive_max_pool1d(x.mT, 1).squeeze(-1),
    "topk": lambda x, keep, p: x.topk(1, 1).values.squeeze(1),
    "max_pool1d": lambda x, keep, p: F.max_pool1d(x.mT, x.shape[1]).squeeze(-1),
}

ATTENTION_POOLS: dict[str, Spelling] = {
    "matmul": lambda x, keep, p: ((x @ p).softmax(1)[:, None] @ x).squeeze(1),
    "einsum": lambda x, keep, p: torch.einsum("ns,nsd->nd", (x @ p).softmax(-1), x),
    "element by element": lambda x, keep, p: ((x @ p[:, None]).softmax(1) * x).sum(1),
    "linear": lambda x, keep, p: (F.linear(x, p[None]).softmax(1).mT @ x)[:, 0],
}


def _one_hot(x: Tensor, place: int) -> Tensor:
    return F.one_hot(torch.tensor(place), x.shape[1]).to(x)
