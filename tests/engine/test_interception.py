"""Watching changes nothing: outputs are the plain model's, ∇A is plain autograd's.

Every model here stores its attention maps itself, so that ∇A can be had without the engine, by
``retain_grad``.  Float64; 1e-9 leaves room for rounding only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer_lrp import ExplanationError, TransformerAttribution

WIDTH, HEADS, TOKENS = 12, 2, 6


class Attention(nn.Module):
    """Attention by hand, in one of many ways to write it; keeps its map in ``kept``."""

    def __init__(self, way: Callable[[Attention, Tensor], Tensor]) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.way = way
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.way(self, x))

    def keep(self, attention: Tensor) -> Tensor:
        if attention.requires_grad and not torch._C._len_torch_function_stack():
            attention.retain_grad()
            self.kept = attention
        return attention


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def by_chunk(self: Attention, x: Tensor) -> Tensor:
    q, k, v = map(heads, self.qkv(x).chunk(3, -1))
    return joined(self.keep((q @ k.mT * 0.4).softmax(-1)) @ v)


def by_unbind(self: Attention, x: Tensor) -> Tensor:
    qkv = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    q = q * 0.4
    return joined(self.keep(F.softmax(q @ k.transpose(-2, -1), dim=-1)) @ v)


def by_split_and_einsum(self: Attention, x: Tensor) -> Tensor:
    q, k, v = (one.unflatten(-1, (HEADS, -1)) for one in self.qkv(x).split(WIDTH, -1))
    scores = torch.einsum("nihd,njhd->nhij", q, k) / 2.5
    return torch.einsum("nhij,njhd->nihd", self.keep(scores.softmax(-1)), v).flatten(2)


def by_bmm(self: Attention, x: Tensor) -> Tensor:
    """Heads folded into the batch, scores scaled in place."""
    n = len(x)
    q, k, v = (heads(one).flatten(0, 1) for one in self.qkv(x).chunk(3, -1))
    scores = torch.bmm(q, k.transpose(1, 2))
    scores *= 0.4
    attention = self.keep(torch.softmax(scores, -1))
    return joined(torch.bmm(attention, v).unflatten(0, (n, HEADS)))


def by_set_item(self: Attention, x: Tensor) -> Tensor:
    """Each head on its own, written into a buffer made for the result."""
    q, k, v = map(heads, self.qkv(x).chunk(3, -1))
    attention = self.keep((q @ k.mT * 0.4).softmax(-1))
    result = torch.zeros_like(v)
    for head in range(HEADS):
        result[:, head] = attention[:, head] @ v[:, head]
    return joined(result)


def by_masking_in_place(self: Attention, x: Tensor) -> Tensor:
    q, k, v = map(heads, self.qkv(x).chunk(3, -1))
    scores = q @ k.mT * 0.4
    hidden = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
    scores.masked_fill_(hidden, -torch.inf)
    return joined(self.keep(scores.softmax(-1)) @ v)


def by_adding_a_mask(self: Attention, x: Tensor) -> Tensor:
    q, k, v = map(heads, self.qkv(x).chunk(3, -1))
    mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1).double()
    return joined(self.keep((q @ k.mT * 0.4 + mask).softmax(-1)) @ v)


WAYS = [
    by_chunk,
    by_unbind,
    by_split_and_einsum,
    by_bmm,
    by_set_item,
    by_masking_in_place,
    by_adding_a_mask,
]


class Block(nn.Module):
    def __init__(self, way: Callable[[Attention, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention(way)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        branch = self.mlp(self.norm2(x))
        branch += x  # a residual in place
        return branch


class Model(nn.Module):
    """Two blocks, or one block used twice."""

    def __init__(self, way: Callable[[Attention, Tensor], Tensor], *, shared: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(5, WIDTH)
        first = Block(way)
        self.blocks = nn.ModuleList([first, first if shared else Block(way)])
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().double().eval()


def tokens(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, TOKENS, 5, generator=generator).double()


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> bool:
    assert found.shape == expected.shape
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def check_contract(model: nn.Module | Callable[..., Tensor], x: Tensor, **options: Any) -> Any:
    """Outputs as they are, relevance conserved, a batch its examples."""
    attribution = TransformerAttribution(model)
    targets = [i % 3 for i in range(len(x))]
    explanation = attribution.explain(x, targets, **options)
    with torch.no_grad():
        assert close(explanation.output, model(x))
    assert float((explanation.total - 1).abs().max()) < 1e-9
    assert bool(explanation.attributions.isfinite().all())
    for i, target in enumerate(targets):
        single = attribution.attribute(x[i : i + 1], target, **options)
        assert close(explanation.attributions[i : i + 1], single)
    return explanation


# -- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_gradient_and_attention_are_those_of_plain_autograd(way: Any) -> None:
    model, x = made(lambda: Model(way)), tokens()
    explanation = check_contract(model, x)
    logits = model(x)
    logits[torch.arange(3), torch.tensor([0, 1, 2])].sum().backward()
    # Each product of a softmax map with values is an attention: two here, or one for each head.
    products = HEADS if way is by_set_item else 1
    assert len(explanation.attentions) == 2 * products
    for number, block in enumerate(model.blocks):
        of_block = explanation.attentions[number * products : (number + 1) * products]
        kept = block.attention.kept
        for name, expected in (("attention", kept.detach()), ("gradient", kept.grad)):
            found = [getattr(maps, name) for maps in of_block]
            whole = found[0] if products == 1 else torch.cat(found, 1)
            assert close(whole.reshape(kept.shape), expected)


@pytest.mark.parametrize("way", WAYS[1:5], ids=lambda way: way.__name__)
def test_however_attention_is_written_the_explanation_is_the_same(way: Any) -> None:
    """All of these are the same function, with the scale at different places."""
    expected = TransformerAttribution(made(lambda: Model(by_chunk))).attribute(tokens(), 1)
    found = TransformerAttribution(made(lambda: Model(way))).attribute(tokens(), 1)
    assert close(found, expected)


def test_a_mask_in_place_is_a_mask_added() -> None:
    expected = TransformerAttribution(made(lambda: Model(by_adding_a_mask))).explain(tokens(), 1)
    found = TransformerAttribution(made(lambda: Model(by_masking_in_place))).explain(tokens(), 1)
    assert close(found.attributions, expected.attributions)
    for one, other in zip(found.attentions, expected.attentions, strict=True):
        assert close(one.relevance, other.relevance)


# -- weight sharing -----------------------------------------------------------------------------


def test_a_block_used_twice_is_two_blocks_with_the_same_weights() -> None:
    """As in ALBERT; state kept on the module would mix the two uses up."""
    shared = made(lambda: Model(by_chunk, shared=True))
    separate = made(lambda: Model(by_chunk))
    separate.embed.load_state_dict(shared.embed.state_dict())
    separate.head.load_state_dict(shared.head.state_dict())
    for block in separate.blocks:
        block.load_state_dict(shared.blocks[0].state_dict())
    found = check_contract(shared, tokens())
    expected = TransformerAttribution(separate).explain(tokens(), [0, 1, 2])
    assert close(found.attributions, expected.attributions)
    assert len(found.attentions) == 2
    for one, other in zip(found.attentions, expected.attentions, strict=True):
        assert close(one.gradient, other.gradient)
        assert close(one.relevance, other.relevance)


# -- in-place updates ---------------------------------------------------------------------------


class Changed(nn.Module):
    """A model whose tokens are changed by ``change`` before the first block."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = Model(by_chunk), change

    def forward(self, x: Tensor) -> Tensor:
        x = self.change(self.model.embed(x))
        for block in self.model.blocks:
            x = block(x)
        return self.model.head(x[:, 0])


def add_in_place(x: Tensor) -> Tensor:
    x += 0.5
    return x


def set_rows(x: Tensor) -> Tensor:
    x[:, 1:3] = x[:, 1:3] * 2
    return x


def set_constant(x: Tensor) -> Tensor:
    x[:, 2] = 0.5
    return x


def relu_in_place(x: Tensor) -> Tensor:
    F.relu(x, inplace=True)
    return x


def leaky_relu_in_place(x: Tensor) -> Tensor:
    F.leaky_relu(x, 0.2, True)
    return x


IN_PLACE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "+=": (add_in_place, lambda x: x + 0.5),
    "mul_": (lambda x: x.mul_(2), lambda x: x * 2),
    "relu_": (lambda x: x.relu_(), lambda x: x.relu()),
    "relu(inplace=True)": (relu_in_place, lambda x: x.relu()),
    "leaky_relu(x, 0.2, True)": (leaky_relu_in_place, lambda x: F.leaky_relu(x, 0.2)),
    "setitem": (
        set_rows,
        lambda x: torch.cat([x[:, :1], x[:, 1:3] * 2, x[:, 3:]], 1),
    ),
    "setitem of a constant": (
        set_constant,
        lambda x: torch.cat([x[:, :2], torch.full_like(x[:, :1], 0.5), x[:, 3:]], 1),
    ),
    "clamp_": (lambda x: x.clamp_(-1, 1), lambda x: x.clamp(-1, 1)),
    "add_ of itself": (lambda x: x.add_(x.tanh()), lambda x: x + x.tanh()),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_an_update_in_place_is_the_update(name: str) -> None:
    in_place, plain = IN_PLACE[name]
    found = check_contract(made(lambda: Changed(in_place)), tokens())
    expected = TransformerAttribution(made(lambda: Changed(plain))).explain(tokens(), [0, 1, 2])
    assert close(found.attributions, expected.attributions)
    assert close(found.relevances[0], expected.relevances[0])


def update_seen_by_an_old_view(x: Tensor) -> Tensor:
    x = x.clone()
    old = x[:, :3]
    x.mul_(2)
    return torch.cat([old, x[:, 3:]], 1)


def update_through_a_view(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :3].mul_(2)
    x[:, 3:].transpose(1, 2).mul_(2)
    return x


def fill_a_fresh_tensor_through_views(x: Tensor) -> Tensor:
    filled = x.new_empty(x.shape)
    last = filled[..., 4:]
    filled[..., :4].copy_(2 * x[..., :4])
    last.copy_(2 * x[..., 4:])
    return filled


@pytest.mark.parametrize(
    "written",
    [
        update_seen_by_an_old_view,
        update_through_a_view,
        fill_a_fresh_tensor_through_views,
    ],
)
def test_views_of_one_memory_see_each_other_s_updates(written: Callable[..., Tensor]) -> None:
    found = check_contract(made(lambda: Changed(written)), tokens())
    expected = TransformerAttribution(made(lambda: Changed(lambda x: 2 * x))).explain(
        tokens(), [0, 1, 2]
    )
    assert close(found.attributions, expected.attributions)
    assert close(found.relevances[0], expected.relevances[0])


def test_reading_an_old_view_of_a_transposed_tensor_after_an_update_is_an_error() -> None:
    """Its memory is not in the order of its elements, so places in it are not followed."""

    def change(x: Tensor) -> Tensor:
        x = x.mT.contiguous().mT.exp()  # laid out as its operand
        old = x[:, :3]
        x.mul_(2)
        return torch.cat([old, x[:, 3:]], 1)

    with pytest.raises(ExplanationError, match=r"view of a tensor that was changed in place"):
        TransformerAttribution(made(lambda: Changed(change))).attribute(tokens(), 1)


def test_a_view_taken_after_the_update_is_fine() -> None:
    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x.mul_(2)
        return torch.cat([x[:, :3], x[:, 3:]], 1)

    check_contract(made(lambda: Changed(change)), tokens())


def test_the_inputs_are_not_changed_in_place() -> None:
    model = made(lambda: Model(by_chunk))

    def forward(x: Tensor) -> Tensor:
        x *= 2
        return model(x)

    x = tokens()
    before = x.clone()
    found = TransformerAttribution(forward).attribute(x, 1)
    assert torch.equal(x, before)
    expected = TransformerAttribution(lambda x: model(2 * x)).attribute(x, 1)
    assert close(found, expected)


# -- fused attention ----------------------------------------------------------------------------


class Fused(nn.Module):
    """A block around ``F.scaled_dot_product_attention``, or what it stands for."""

    def __init__(self, attend: Callable[..., Tensor], key_heads: int = 2) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.q = nn.Linear(WIDTH, 2 * 6)
        self.k, self.v = nn.Linear(WIDTH, key_heads * 6), nn.Linear(WIDTH, key_heads * 6)
        self.out, self.attend = nn.Linear(WIDTH, WIDTH), attend

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(2):
            q, k, v = (
                f(x).unflatten(-1, (-1, 6)).transpose(1, 2) for f in (self.q, self.k, self.v)
            )
            x = x + self.out(joined(self.attend(q, k, v)))
        return self.head(x[:, -1])


def written_out(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float = 6**-0.5
) -> Tensor:
    scores = q @ k.mT * scale
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(-1) @ v


ALLOWED = torch.ones(TOKENS, TOKENS).tril().bool()
ADDED = torch.zeros(TOKENS, TOKENS).double().masked_fill(~ALLOWED, -torch.inf)
BIAS = torch.linspace(-1, 1, TOKENS * TOKENS).reshape(TOKENS, TOKENS).double()

FUSED: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "plain": (F.scaled_dot_product_attention, written_out),
    "boolean mask": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=ALLOWED),
        lambda q, k, v: written_out(q, k, v, ALLOWED),
    ),
    "additive mask": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, ADDED),
        lambda q, k, v: written_out(q, k, v, ADDED),
    ),
    "position bias": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, BIAS),
        lambda q, k, v: written_out(q, k, v, BIAS),
    ),
    "causal": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        lambda q, k, v: written_out(q, k, v, ALLOWED),
    ),
    "scale": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.7),
        lambda q, k, v: written_out(q, k, v, scale=0.7),
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_attention_is_explained_as_if_it_were_written_out(name: str) -> None:
    fused, plain = FUSED[name]
    found = check_contract(made(lambda: Fused(fused)), tokens())
    expected = TransformerAttribution(made(lambda: Fused(plain))).explain(tokens(), [0, 1, 2])
    assert close(found.attributions, expected.attributions)
    for one, other in zip(found.attentions, expected.attentions, strict=True):
        assert close(one.attention, other.attention)
        assert close(one.gradient, other.gradient)
        assert close(one.relevance, other.relevance)


def test_grouped_queries_share_their_keys_and_values() -> None:
    def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return written_out(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))

    found = check_contract(made(lambda: Fused(grouped, key_heads=1)), tokens())
    expected = TransformerAttribution(made(lambda: Fused(repeated, key_heads=1)))
    assert close(found.attributions, expected.attribute(tokens(), [0, 1, 2]))
    assert found.attentions[0].attention.shape == (3, 2, TOKENS, TOKENS)


def test_a_fully_masked_row_takes_part_in_nothing() -> None:
    mask = ALLOWED.clone()
    mask[0] = False

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    explanation = check_contract(made(lambda: Fused(attend)), tokens())
    for maps in explanation.attentions:
        assert bool(maps.attention.isfinite().all())
        assert bool(maps.relevance.isfinite().all())
        assert not maps.attention[:, :, 0].any()
        assert not maps.weighted[:, :, 0].any()


# -- PyTorch's own modules ----------------------------------------------------------------------


class OfPyTorch(nn.Module):
    """``nn.MultiheadAttention`` in all its ways of being called."""

    def __init__(self, *, batch_first: bool, **options: Any) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)
        self.batch_first, self.options = batch_first, options

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x if self.batch_first else x.transpose(0, 1)
        for _ in range(2):
            x = x + self.attention(x, x, x, **self.options)[0]
        return self.head(x[:, 0] if self.batch_first else x[0])


@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "sequence first"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"attn_mask": ~ALLOWED},
        {"attn_mask": ~ALLOWED, "need_weights": False},
        {"attn_mask": ~ALLOWED, "is_causal": True, "need_weights": False},
        {"attn_mask": ADDED},
    ],
    ids=lambda options: ", ".join(options) or "default",
)
def test_multihead_attention(batch_first: bool, options: dict[str, Any]) -> None:
    model = made(lambda: OfPyTorch(batch_first=batch_first, **options))
    explanation = check_contract(model, tokens(), granularity="token")
    assert len(explanation.attentions) == 2
    for maps in explanation.attentions:
        assert maps.name == "attention"
        assert maps.attention.shape == (3, HEADS, TOKENS, TOKENS)
    masked = {name: value for name, value in options.items() if name == "attn_mask"}
    same = made(lambda: OfPyTorch(batch_first=True, **masked))
    expected = TransformerAttribution(same).attribute(tokens(), [0, 1, 2], granularity="token")
    assert close(explanation.attributions, expected)


class Encoder(nn.Module):
    def __init__(self, *, batch_first: bool, norm_first: bool, nested: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 24, activation="gelu", batch_first=batch_first, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.batch_first:
            return self.head(self.encoder(x).mean(1))
        return self.head(self.encoder(x.transpose(0, 1)).mean(0))


@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "sequence first"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-norm", "post-norm"])
def test_transformer_encoder(batch_first: bool, norm_first: bool) -> None:
    """In eval mode PyTorch has a fast path of its own, which hides everything."""
    nested = batch_first and not norm_first
    model = made(lambda: Encoder(batch_first=batch_first, norm_first=norm_first, nested=nested))
    explanation = check_contract(model, tokens(), granularity="token")
    assert [maps.name for maps in explanation.attentions] == [
        "encoder.layers.0.self_attn",
        "encoder.layers.1.self_attn",
    ]


# -- where the examples lie ---------------------------------------------------------------------


class Windowed(nn.Module):
    """Attention within windows, which are folded into the batch dimension; shifted in between."""

    def __init__(self, fold: str) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList(Block(by_chunk) for _ in range(2))
        self.fold = fold

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n = len(x)
        for shift, block in enumerate(self.blocks):
            x = x.roll(-shift, 1)
            if self.fold == "window in example":
                windows = x.reshape(n * 2, TOKENS // 2, WIDTH)
                x = block(windows).reshape(n, TOKENS, WIDTH)
            else:
                windows = x.reshape(n, 2, TOKENS // 2, WIDTH).transpose(0, 1).flatten(0, 1)
                x = block(windows).unflatten(0, (2, n)).transpose(0, 1).flatten(1, 2)
            x = x.roll(shift, 1)
        return self.head(x.mean(1))


@pytest.mark.parametrize("fold", ["window in example", "example in window"])
def test_examples_may_be_folded_into_windows(fold: str) -> None:
    check_contract(made(lambda: Windowed(fold)), tokens())


def test_a_map_of_windows_is_not_a_matrix_over_all_tokens() -> None:
    model = made(lambda: Windowed("window in example"))
    with pytest.raises(ExplanationError, match=r"within windows.*granularity"):
        TransformerAttribution(model).attribute(tokens(), 1, granularity="matrix")


class SequenceFirst(nn.Module):
    """Tokens along dimension 0, examples along dimension 1."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.position = nn.Parameter(torch.randn(TOKENS, 1, WIDTH))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.transpose(0, 1)) + self.position
        s, n, _ = x.shape
        q, k, v = (
            one.reshape(s, n * HEADS, -1).transpose(0, 1) for one in self.qkv(x).chunk(3, -1)
        )
        mixed = torch.bmm(torch.bmm(q, k.transpose(1, 2)).div(2.5).softmax(-1), v)
        x = x + self.out(mixed.transpose(0, 1).reshape(s, n, WIDTH))
        return self.head(x[0])


def test_examples_may_lie_along_dimension_1() -> None:
    explanation = check_contract(made(SequenceFirst), tokens(), granularity="token")
    assert explanation.attributions.shape == (3, TOKENS)
    assert explanation.attentions[0].attention.shape == (3, HEADS, TOKENS, TOKENS)


def test_as_many_examples_as_tokens_are_not_mistaken_for_tokens() -> None:
    """Nothing may be guessed from shapes: 6 examples of 6 tokens."""
    check_contract(made(SequenceFirst), tokens(TOKENS), granularity="token")
    check_contract(made(lambda: Windowed("example in window")), tokens(TOKENS))
    check_contract(made(lambda: OfPyTorch(batch_first=False)), tokens(TOKENS))


class KeepsItsBias(nn.Module):
    """Attention whose bias is looked up once and kept, as LeViT keeps it in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.biases = nn.Parameter(torch.randn(TOKENS))
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.kept is None:
            places = torch.arange(TOKENS)
            self.kept = self.biases[(places[:, None] - places).abs()]
        x = x + (x @ x.mT + self.kept).softmax(-1) @ x
        return self.head(x.mean(1))


def test_what_a_model_kept_from_an_earlier_call_is_a_constant() -> None:
    """With the graph of that call, if it was not under no_grad."""
    fresh, used = made(KeepsItsBias), made(KeepsItsBias)
    used(tokens())
    assert isinstance(used.kept, Tensor)
    assert used.kept.requires_grad
    found = check_contract(used, tokens())
    expected = TransformerAttribution(fresh).explain(tokens(), [0, 1, 2])
    assert close(found.attributions, expected.attributions)
