"""One model, spelled in many ways: its relevance and its maps do not depend on the spelling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import captum_transformer_lrp as methods
from captum_transformer_lrp import AttentionRollout, TransformerAttribution
from captum_transformer_lrp.attr.explanation import Explanation
from captum_transformer_lrp.errors import UnsupportedOperationError

# Sums of a few hundred float64 numbers of one size.
EXACT = 1e-9
WIDTH, HEADS, TOKENS = 8, 2, 5

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Join = Callable[[Tensor, Tensor], Tensor]


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1) @ v


def added(x: Tensor, y: Tensor) -> Tensor:
    return x + y


class Net(nn.Module):
    """Two blocks of attention with heads; how they attend and add is given."""

    def __init__(self, attend: Attend = attended, join: Join = added) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attend, self.join = attend, join
        self.qkv = nn.ModuleList([nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2)])
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        for linear in self.qkv:
            q, k, v = linear(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            x = self.join(x, self.attend(q, k, v).transpose(1, 2).flatten(2))
        return self.head(x[:, 0])


def inputs(count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, TOKENS, WIDTH, dtype=torch.float64, generator=generator)


def explained(model: nn.Module, count: int = 2) -> Explanation:
    return TransformerAttribution(model.double().eval()).explain(inputs(count), 1)


def assert_alike(model: nn.Module, plain: nn.Module | None = None) -> None:
    """The same output, A, ∇A, R, map and row of tokens as the plain spelling."""
    plain = Net() if plain is None else plain
    found, expected = explained(model), explained(plain)
    pairs = [(found.output, expected.output), (found.attributions, expected.attributions)]
    pairs += zip(found.relevances, expected.relevances, strict=True)
    assert len(found.attentions) == len(expected.attentions)
    for one, other in zip(found.attentions, expected.attentions, strict=True):
        for name in ("attention", "gradient", "relevance"):
            of_one, of_other = getattr(one, name), getattr(other, name)
            pairs.append((of_one.reshape(of_other.shape), of_other))
    for name in ("AttentionRollout", "RawAttention"):
        for granularity in ("token", "input"):
            pairs.append(
                tuple(
                    getattr(methods, name)(each).attribute(inputs(), 1, granularity=granularity)
                    for each in (model, plain)
                )
            )
    for one, other in pairs:
        assert float(other.abs().max()) > 0
        assert torch.allclose(one, other, rtol=0, atol=EXACT * float(other.abs().max()))


# -- what is added to the tokens ------------------------------------------------------------------

SUMS: dict[str, Join] = {
    "stack": lambda x, y: torch.stack([x, y]).sum(0),
    "stack, last": lambda x, y: torch.stack([x, y], -1).sum(-1),
    "stack, kept": lambda x, y: torch.stack([y, x], 1).sum(1, keepdim=True).squeeze(1),
    "cat": lambda x, y: torch.cat([x[None], y[None]]).sum(0),
    "cat, cut apart": lambda x, y: torch.cat([x, y]).unflatten(0, (2, -1)).sum(0),
    "halves of cat": lambda x, y: sum(torch.cat([x, y], -1).chunk(2, -1)),
    "mean": lambda x, y: 2 * torch.stack([x, y]).mean(0),
    "einsum": lambda x, y: torch.einsum("nsdt->nsd", torch.stack([x, y], -1)),
    "transposed": lambda x, y: (x.mT + y.mT).mT,
    "flattened": lambda x, y: (x.flatten(1) + y.flatten(1)).view(x.shape),
    "token by token": lambda x, y: torch.stack(
        [a + b for a, b in zip(x.unbind(1), y.unbind(1), strict=True)], 1
    ),
    "in two halves": lambda x, y: torch.cat([x[:, :2] + y[:, :2], x[:, 2:] + y[:, 2:]], 1),
    "feature by feature": lambda x, y: torch.cat(
        [a + b for a, b in zip(x.chunk(4, -1), y.chunk(4, -1), strict=True)], -1
    ),
    "less the opposite": lambda x, y: x - (-y),
    "in place": lambda x, y: x.clone().add_(y),
    "index_put": lambda x, y: x.index_put(
        (torch.arange(len(x))[:, None], torch.arange(TOKENS)), y, accumulate=True
    ),
}


@pytest.mark.parametrize("spelling", SUMS)
def test_a_skip_connection_is_a_sum_however_it_is_written(spelling: str) -> None:
    assert_alike(Net(join=SUMS[spelling]))


COPIES: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "clone": (1.0, torch.clone),
    "plus 0": (1.0, lambda x: x + 0),
    "back and forth": (1.0, lambda x: x.mT.contiguous().mT),
    "viewed": (1.0, lambda x: x.flatten().view(x.shape)),
    "cast": (1.0, lambda x: x.to(torch.float64, copy=True)),
    "DeepNorm": (1.5, lambda x: 1.5 * x),
    "divided": (0.5, lambda x: x / 2),
    "scaled by features": (1.5, lambda x: x * torch.full((WIDTH,), 1.5, dtype=x.dtype)),
    "twice": (2.25, lambda x: 1.5 * (1.5 * x).clone()),
}


@pytest.mark.parametrize("copy", COPIES)
def test_what_skips_attention_may_be_a_copy_or_a_multiple(copy: str) -> None:
    _, of = COPIES[copy]
    model = Net(join=lambda x, y: of(x) + y).double().eval()
    for method in (AttentionRollout(model), TransformerAttribution(model)):
        row = method.attribute(inputs(), 1, granularity="token")
        matrix = method.attribute(inputs(), 1, granularity="matrix")
        expected = matrix[:, 0] - F.one_hot(torch.tensor(0), TOKENS)
        assert float(expected.abs().max()) > 0
        assert torch.allclose(row, expected, rtol=0, atol=EXACT * float(expected.abs().max()))
    if COPIES[copy][0] == 1.0:
        assert_alike(model)


# -- softmax and A @ V ----------------------------------------------------------------------------


def by_hand(largest: Callable[[Tensor], Tensor]) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT
        powers = (scores - largest(scores)).exp()
        return (powers / powers.sum(-1, keepdim=True)) @ v

    return attend


def summed(product: Callable[[Tensor, Tensor], Tensor]) -> Attend:
    return lambda q, k, v: product((q @ k.mT).softmax(-1), v)


ATTENTIONS: dict[str, Attend] = {
    "amax": by_hand(lambda z: z.amax(-1, keepdim=True)),
    "max, values": by_hand(lambda z: z.max(-1, keepdim=True).values),
    "max, first": by_hand(lambda z: z.max(-1, True)[0]),
    "max, unsqueezed": by_hand(lambda z: z.max(dim=-1).values.unsqueeze(-1)),
    "topk": by_hand(lambda z: z.topk(1, -1).values),
    "detached": by_hand(lambda z: z.detach().amax(-1, keepdim=True)),
    "element by element": summed(lambda a, v: (a[..., None] * v[..., None, :, :]).sum(-2)),
    "values first": summed(lambda a, v: (v[:, :, None] * a.unsqueeze(-1)).sum(3)),
    "kept": summed(lambda a, v: (a[..., None] * v[:, :, None]).sum(-2, keepdim=True).squeeze(-2)),
    "mean": summed(lambda a, v: TOKENS * (a[..., None] * v[:, :, None]).mean(-2)),
    "keys in front": summed(lambda a, v: (a.mT[..., None] * v[:, :, :, None]).sum(2)),
    "einsum of the product": summed(
        lambda a, v: torch.einsum("nhqkd->nhqd", a[..., None] * v[:, :, None])
    ),
    "scores by element": lambda q, k, v: (q[..., None, :] * k[:, :, None]).sum(-1).softmax(-1) @ v,
    "all by element": lambda q, k, v: (
        (q[..., None, :] * k[:, :, None]).sum(-1).softmax(-1)[..., None] * v[:, :, None]
    ).sum(-2),
}


@pytest.mark.parametrize("spelling", ATTENTIONS)
def test_attention_is_what_a_softmax_over_products_multiplies(spelling: str) -> None:
    assert_alike(Net(ATTENTIONS[spelling]))


@pytest.mark.parametrize(
    "use",
    [
        lambda product: product.cumsum(-2)[..., -1, :],
        lambda product: product.transpose(2, 3).sum(2),
        lambda product: (product @ torch.eye(product.shape[-1]).to(product)).sum(-2),
        lambda product: F.linear(product, torch.eye(product.shape[-1]).to(product)).sum(-2),
        lambda product: product.amax(-2),
    ],
    ids=["cumsum", "moved", "matmul", "linear", "amax"],
)
def test_weighed_values_that_are_used_otherwise_are_refused(
    use: Callable[[Tensor], Tensor],
) -> None:
    model = Net(summed(lambda a, v: use(a[..., None] * v[:, :, None])))
    with pytest.raises(UnsupportedOperationError, match="attention weights"):
        explained(model)


@pytest.mark.parametrize(
    "attend",
    [
        lambda q, k, v: torch.vmap(attended)(q, k, v),
        lambda q, k, v: torch.vmap(attended, in_dims=1, out_dims=1)(q, k, v),
        lambda q, k, v: torch.vmap(torch.vmap(attended))(q, k, v),
        lambda q, k, v: torch.vmap(lambda one: attended(one, k, v))(q[:, None]).sum(1)[:, 0],
        lambda q, k, v: (q @ k.mT).softmax(-1) @ torch.vmap(torch.sin)(v),
        lambda q, k, v: torch.func.vjp(lambda one: attended(q, k, one), v)[0],
    ],
    ids=["examples", "heads", "both", "queries", "beside", "vjp"],
)
def test_activations_inside_transforms_of_functions_are_refused(attend: Attend) -> None:
    with pytest.raises(UnsupportedOperationError, match=r"torch\.vmap"):
        explained(Net(attend))


# -- custom functions around attention ------------------------------------------------------------


class CustomAttention(torch.autograd.Function):
    """Attention whose backward pass computes it again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return attended(q, k, v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        with torch.enable_grad():
            leaves = [one.detach().requires_grad_() for one in ctx.saved_tensors]
            return torch.autograd.grad(attended(*leaves), leaves, grads)


class WithTranspose(CustomAttention):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-1, -2)), -1), v)


class Fused(CustomAttention):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)


class ByHand(CustomAttention):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return ATTENTIONS["max, values"](q, k, v)


class WithMap(torch.autograd.Function):
    """Returns its map, too."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Any:
        ctx.save_for_backward(q, k, v)
        map = (q @ k.mT).softmax(-1)
        return map @ v, map

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        with torch.enable_grad():
            leaves = [one.detach().requires_grad_() for one in ctx.saved_tensors]
            return torch.autograd.grad(attended(*leaves), leaves, grads[0])


class OtherDerivative(CustomAttention):
    """Lets no gradient through to the scores."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, _ = ctx.saved_tensors
        return torch.zeros_like(q), torch.zeros_like(k), (q @ k.mT).softmax(-1).mT @ grads[0]


@pytest.mark.parametrize("function", [CustomAttention, WithTranspose, Fused, ByHand])
def test_attention_in_a_custom_function_has_the_gradient_of_plain_attention(function: Any) -> None:
    assert_alike(Net(lambda q, k, v: function.apply(q, k, v)))


def test_attention_in_a_custom_function_with_two_results() -> None:
    assert_alike(Net(lambda q, k, v: WithMap.apply(q, k, v)[0]))


def test_attention_in_a_custom_function_with_a_derivative_of_its_own_is_refused() -> None:
    with pytest.raises(UnsupportedOperationError, match="backward is not the derivative"):
        explained(Net(lambda q, k, v: OtherDerivative.apply(q, k, v)))


# -- queries times the features of pixels ---------------------------------------------------------


class Masks(nn.Module):
    """Logits of pixels as SAM and MaskFormer make them, of queries (N, Q, C) and (N, C, H, W)."""

    def __init__(self, multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cross = nn.MultiheadAttention(16, 2, batch_first=True)
        self.patches, self.queries = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.randn(1, 2, 16))
        self.mlp = nn.Linear(16, 16)
        self.multiply = multiply

    def forward(self, x: Tensor) -> Tensor:
        places = self.patches(x)
        tokens = places.flatten(2).mT
        queries = self.queries + self.cross(self.queries.expand(len(x), -1, -1), tokens, tokens)[0]
        return self.multiply(queries + self.mlp(queries), places)


MASKS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda q, f: q @ f.flatten(2),
    "transposed": lambda q, f: (f.flatten(2).mT @ q.mT).mT,
    "einsum": lambda q, f: torch.einsum("bqc,bchw->bqhw", q, f).flatten(2),
    "bmm of stacked queries": lambda q, f: torch.bmm(
        torch.stack([one + 0.0 for one in q.unbind(1)], 1), f.view(len(f), 16, -1)
    ),
    "element by element": lambda q, f: (q[:, :, None] * f.flatten(2).mT[:, None]).sum(-1),
    "one query at a time": lambda q, f: torch.stack(
        [(one[:, None] @ f.flatten(2)).squeeze(1) for one in q.unbind(1)], 1
    ),
}


@pytest.mark.parametrize("multiply", MASKS)
def test_a_pixel_that_is_asked_for_takes_part_in_its_mask(multiply: str) -> None:
    model = Masks(MASKS[multiply]).double().eval()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64, generator=generator)
    for method in (AttentionRollout, methods.GenericAttention, TransformerAttribution):
        found = method(model).attribute(x, target=(0, 15)).sum(1)  # the last of 4 x 4 patches
        elsewhere = method(model).attribute(x, target=(0, 0)).sum(1)
        own, other = (float(map[:, 24:, 24:].sum() / map.sum()) for map in (found, elsewhere))
        assert own > 0.25 > other


# -- buffers --------------------------------------------------------------------------------------


class FreshBuffers(nn.Module):
    """Replaces its buffers, whose memory Python then uses for other tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        for number in range(8):
            self.register_buffer(f"bias{number}", torch.zeros(TOKENS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for number in range(8):
            fresh = torch.arange(float(TOKENS))
            fresh -= 2
            setattr(self, f"bias{number}", fresh[:, None].expand(-1, WIDTH).clone())
            x = x + getattr(self, f"bias{number}")
        return (x + attended(*self.qkv(x).chunk(3, -1))).mean(1)


def test_a_tensor_is_no_buffer_because_one_was_there_before() -> None:
    for _ in range(20):
        found = TransformerAttribution(FreshBuffers().eval()).attribute(torch.randn(1, 5, 4), 1)
        assert found.shape == (1, 5, 4)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: sum(x.unbind(1)) / TOKENS,
        lambda x: x[:, 0] / 5 + (x[:, 1] / 5 + (x[:, 2] / 5 + (x[:, 3] / 5 + x[:, 4] / 5))),
        lambda x: sum(one / TOKENS for one in x.unbind(1)),
        lambda x: ((x[:, 0] + x[:, 1]) + (x[:, 2] + x[:, 3]) + x[:, 4]) / TOKENS,
    ],
    ids=["one by one", "the last first", "divided first", "in pairs"],
)
def test_every_term_of_a_sum_gets_the_same_mass(pool: Callable[[Tensor], Tensor]) -> None:
    class Pooled(Net):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv[0](x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            return self.head(self.pool(x + attended(q, k, v).transpose(1, 2).flatten(2)))

    found = []
    for model in (Pooled(), Pooled()):
        model.pool = (lambda x: x.mean(1)) if not found else pool
        found.append(AttentionRollout(model.double().eval()).attribute(inputs(), 1))
    assert float((found[1] - found[0]).abs().max()) < EXACT * float(found[0].abs().max())


CLASS_TOKEN = torch.randn(1, 1, WIDTH, generator=torch.Generator().manual_seed(4)).double()


@pytest.mark.parametrize(
    "join",
    [
        lambda x, c: F.pad(x, (0, 0, 1, 0)) + F.pad(c, (0, 0, 0, TOKENS)),
        lambda x, c: F.pad(c, (0, 0, 0, TOKENS)) + F.pad(x, (0, 0, 1, 0)),
        lambda x, c: torch.add(F.pad(x, (0, 0, 1, 0)), F.pad(c, (0, 0, 0, TOKENS))),
        lambda x, c: F.pad(x, (0, 0, 1, 0)).add_(F.pad(c, (0, 0, 0, TOKENS))),
        lambda x, c: torch.constant_pad_nd(x, (0, 0, 1, 0)) + F.pad(c, (0, 0, 0, TOKENS)),
        lambda x, c: F.pad(x[:, :2], (0, 0, 1, 3)) + torch.cat([c.expand(len(x), -1, -1),
            torch.zeros(len(x), 2, WIDTH).to(x), x[:, 2:]], 1),
    ],
    ids=["x first", "token first", "add", "in place", "constant_pad_nd", "of two activations"],
)  # fmt: skip
def test_tensors_that_are_padded_and_added_are_concatenated(join: Join) -> None:
    def concatenated(x: Tensor, c: Tensor) -> Tensor:
        return torch.cat([c.expand(len(x), -1, -1), x], 1)

    net, found = Net().double().eval(), []
    for one in (concatenated, join):
        method = TransformerAttribution(lambda x, one=one: net(one(x, CLASS_TOKEN)))
        found.append(method.explain(inputs(), 1).relevances[0])
    assert float((found[1] - found[0]).abs().max()) < EXACT * float(found[0].abs().max())
