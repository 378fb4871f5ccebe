"""The methods that came after 2021, against slow second implementations and other libraries.

float64 throughout.  What is computed a second time here uses what Hugging Face's eager models
return (attentions, hidden states) and plain autograd; nothing of the engine.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from captum_transformer_lrp import (
    AttCat,
    AttentionRollout,
    BiAttention,
    ExplanationError,
    GenericAttention,
    LeGrad,
    LibraGradient,
    NormRollout,
    TransformerAttribution,
    TransformerLRP,
)

WIDTH, HEADS, DEPTH = 24, 3, 3


def enliven(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
        else:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean().round()), std=0.1)
    return model.double().eval()


def sizes() -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": 2 * WIDTH,
        "attn_implementation": "eager",
    }


@pytest.fixture(scope="module")
def vit() -> Any:
    config = ViTConfig(**sizes(), image_size=32, patch_size=8, num_labels=5)
    return enliven(ViTForImageClassification(config))


@pytest.fixture(scope="module")
def bert() -> Any:
    config = BertConfig(**sizes(), vocab_size=50, max_position_embeddings=16, num_labels=5)
    return enliven(BertForSequenceClassification(config))


@pytest.fixture(scope="module")
def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 32, 32, dtype=torch.float64)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    torch.manual_seed(1)
    return torch.randint(1, 50, (2, 7))


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    """Hugging Face's eager attention takes its softmax in float32, the tape in float64."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max()) < tolerance


def looked_at(model: Any, inputs: Tensor, target: int) -> tuple[Any, list[Tensor], list[Tensor]]:
    """Attentions and hidden states, each with its gradient as ``.grad``."""
    output = model(inputs, output_attentions=True, output_hidden_states=True)
    kept = [*output.attentions, *output.hidden_states]
    for tensor in kept:
        tensor.retain_grad()
    model.zero_grad()
    output.logits[:, target].sum().backward()
    return output.logits, list(output.attentions), list(output.hidden_states)


# -- GenericAttention -----------------------------------------------------------------------------


def test_generic_attention_is_eq_5_and_6(vit: Any, images: Tensor) -> None:
    _, attentions, _ = looked_at(vit, images, 1)
    relevance = torch.eye(17).double()
    for A in attentions:
        relevance = relevance + (A.grad * A).clamp(min=0).mean(1) @ relevance
    found = GenericAttention(vit).attribute(images, 1, granularity="matrix")
    assert close(found, relevance.detach())
    row = GenericAttention(vit).attribute(images, 1, granularity="token")
    assert close(row, (relevance - torch.eye(17).double())[:, 0].detach())


def test_generic_attention_goes_through_cross_attention() -> None:
    """With one encoder and one decoder layer the mass of the source is A_cross (I + A_source)."""
    torch.manual_seed(0)

    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
            self.query = nn.Parameter(torch.randn(1, 1, 4))
            self.maps: list[Tensor] = []

        def attend(self, x: Tensor, y: Tensor) -> Tensor:
            A = (x @ y.transpose(-2, -1)).softmax(-1)
            self.maps.append(A)
            return A @ y

        def forward(self, source: Tensor) -> Tensor:
            self.maps.clear()
            s = self.embed(source)
            s = s + self.attend(s, s)
            # Tied to the source's last token by nothing, so that it descends from the input.
            q = self.embed(self.query + 0 * source[:, -1:])
            return self.head(q + self.attend(q, s))[:, 0]

    model, source = Translator().double().eval(), torch.randn(2, 5, 4, dtype=torch.float64)
    logits = model(source)
    grads = torch.autograd.grad(logits[:, 1].sum(), model.maps)
    of_source, of_cross = ((g * A).clamp(min=0) for g, A in zip(grads, model.maps, strict=True))
    expected = (of_cross @ (torch.eye(5) + of_source))[:, 0].detach()
    found = GenericAttention(model).attribute(source, 1).sum(-1)
    assert close(found[:, :-1], expected[:, :-1])  # the last gets the query's own mass, too


# -- AttCat ---------------------------------------------------------------------------------------


def test_attcat_is_its_formula(vit: Any, bert: Any, images: Tensor, ids: Tensor) -> None:
    for model, inputs in ((vit, images), (bert, ids)):
        _, attentions, hidden = looked_at(model, inputs, 2)
        expected = sum(
            (h.grad * h).sum(-1) * A.mean(1).mean(1)
            for h, A in zip(hidden[:-1], attentions, strict=True)
        )
        found = AttCat(model).attribute(inputs, 2, granularity="token")
        assert close(found, expected.detach())


# -- LeGrad ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [None, [-1], [0, 2]])
def test_legrad_is_torch_cam_s(layers: Any) -> None:
    methods = pytest.importorskip("torchcam.methods")
    from torchvision.models import VisionTransformer

    model = enliven(VisionTransformer(32, 8, DEPTH, HEADS, WIDTH, 2 * WIDTH, num_classes=5))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    chosen = range(DEPTH) if layers is None else layers
    blocks = [list(model.encoder.layers)[index] for index in chosen]
    with methods.LeGrad(model, blocks) as extractor:
        scores = model(images)
        (expected,) = extractor(1, scores, normalized=False)
    found = LeGrad(model, layers=layers).attribute(images, 1, granularity="token")
    assert close(found[:, 1:].reshape(2, 4, 4), expected.double(), 1e-6)  # it sums in float32


def test_legrad_of_a_padded_text_is_that_of_the_text(bert: Any, ids: Tensor) -> None:
    padded = torch.cat([ids, torch.zeros(2, 3, dtype=torch.long)], 1)
    mask = (torch.arange(10) < 7).long().expand(2, -1)
    for method in (LeGrad(bert), AttCat(bert)):
        found = method.attribute(padded, 1, {"attention_mask": mask})
        assert close(found[:, :7], method.attribute(ids, 1), 1e-6)
        assert not found[:, 7:].any()


# -- NormRollout ----------------------------------------------------------------------------------


class ReadsOut(nn.Module):
    """Two blocks of attention, whose mean token is changed before the head reads it."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(8, 24) for _ in range(2))
        self.head = nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.randn(8))
        self.change = change

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            q, k, v = block(tokens).chunk(3, -1)
            tokens = tokens + (q @ k.mT / 8**0.5).softmax(-1) @ v
        logits: Tensor = self.head(self.change(tokens.mean(1), self.bias).tanh())
        return logits


def adds_in_place(x: Tensor, bias: Tensor) -> Tensor:
    x += bias
    return x


def writes_into_zeros(x: Tensor, bias: Tensor) -> Tensor:
    found = torch.zeros_like(x)
    found[:] = x
    found += bias
    return found


@pytest.mark.parametrize(
    "change",
    [
        adds_in_place,
        writes_into_zeros,
        lambda x, bias: x.add_(bias).clone(),
        lambda x, bias: torch.zeros_like(x).index_add_(0, torch.arange(2), x) + bias,
        lambda x, bias: bias.expand(2, 8).clone().index_add_(0, torch.arange(2), x),
    ],
)
def test_legrad_reads_out_what_a_model_writes_in_place(change: Any) -> None:
    """The last tokens are read once for each layer: each time from what stood there at first."""
    torch.manual_seed(1)
    tokens = torch.randn(2, 4, 8, dtype=torch.float64)
    models = [ReadsOut(one).double().eval() for one in (lambda x, bias: x + bias, change)]
    plain, written = (LeGrad(model).attribute(tokens, 1) for model in models)
    assert plain.abs().max() > 0
    torch.testing.assert_close(written, plain, rtol=0, atol=1e-14)


def added_vectors(layer: Any, hidden: Tensor, A: Tensor) -> Tensor:
    """T of a BERT layer, (N, S, S, D)."""
    n, s, width = hidden.shape
    V = layer.attention.self.value(hidden).reshape(n, s, HEADS, -1)
    W = layer.attention.output.dense.weight.reshape(width, HEADS, -1)
    of_heads = torch.einsum("njhd,fhd->nhjf", V, W)
    vectors = torch.einsum("nhij,nhjf->nijf", A, of_heads)
    return vectors + torch.einsum("ij,nif->nijf", torch.eye(s).double(), hidden)


def through_norm(norm: nn.LayerNorm, vectors: Tensor, at: Tensor) -> Tensor:
    scale = norm.weight / (at.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    return (vectors - vectors.mean(-1, keepdim=True)) * scale.unsqueeze(2)


@pytest.mark.parametrize("contribution", ["residual", "residual_norm", "globenc", "alti"])
def test_norm_rollout_is_its_formula(bert: Any, ids: Tensor, contribution: str) -> None:
    with torch.no_grad():
        output = bert(ids, output_attentions=True, output_hidden_states=True)
        expected = torch.eye(7).double().expand(2, -1, -1)
        for layer, hidden, A in zip(
            bert.bert.encoder.layer, output.hidden_states, output.attentions, strict=False
        ):
            dense, norm = layer.attention.output.dense, layer.attention.output.LayerNorm
            vectors = added_vectors(layer, hidden, A)
            summed = vectors.sum(2) + dense.bias
            y = norm(summed)
            if contribution != "residual":
                vectors = through_norm(norm, vectors, summed)
            if contribution == "globenc":
                second = layer.output.dense(layer.intermediate(y)) + y
                vectors = through_norm(layer.output.LayerNorm, vectors, second)
            sizes = vectors.norm(dim=-1)
            if contribution == "alti":
                near = y.abs().sum(-1)[..., None] - (y.unsqueeze(2) - vectors).abs().sum(-1)
                sizes = near.clamp(min=0) / near.clamp(min=0).sum(-1, keepdim=True)
            expected = sizes @ expected
    found = NormRollout(bert, contribution=contribution).attribute(ids, 1, granularity="token")
    assert close(found, expected[:, 0])


def test_norms_do_not_count_where_the_stream_goes_around_them(vit: Any, images: Tensor) -> None:
    methods = [NormRollout(vit, contribution=name) for name in ("residual", "globenc")]
    one, other = (method.attribute(images, 1) for method in methods)
    assert torch.equal(one, other)


def test_a_branch_that_is_not_affine_is_refused() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.norm(self.attention(x, x, x, need_weights=False)[0])
            return self.head(x.mean(1))

    model, x = Normed().double().eval(), torch.randn(2, 5, 8, dtype=torch.float64)
    for method in (NormRollout(model), BiAttention(model, n_steps=2)):
        with pytest.raises(ExplanationError, match="not one affine map"):
            method.attribute(x, 1)


# -- BiAttention ----------------------------------------------------------------------------------


@pytest.mark.parametrize("perception", ["token", "head"])
def test_bi_attention_is_its_formula(vit: Any, images: Tensor, perception: str) -> None:
    steps = 4
    _, attentions, hidden = looked_at(vit, images, 3)
    total = torch.zeros_like(attentions[-1])
    for k in range(steps):
        total = total + looked_at(vit, images * (k / (steps - 1)), 3)[1][-1].grad
    feedback = (total / steps).clamp(min=0).mean(1)
    perceived = torch.eye(17).double().expand(2, -1, -1)
    blocks = [one for one in vit.modules() if type(one).__name__ == "ViTLayer"]
    for layer, x, A in zip(blocks, hidden, attentions, strict=False):
        if perception == "head":
            importance = (A.transpose(-1, -2) @ A.grad).abs().mean((-2, -1))
            importance = importance / importance.sum(1, keepdim=True)
            matrix = (importance[..., None, None] * A).sum(1)
        else:
            normed = layer.layernorm_before(x)
            linears = [one for one in layer.attention.modules() if isinstance(one, nn.Linear)]
            _, _, of_values, to_output = linears  # transformers 5.0 has other names for them
            transformed = of_values(normed) @ to_output.weight.T
            matrix = A.mean(1) * (transformed.norm(dim=-1) / x.norm(dim=-1)).unsqueeze(1)
        perceived = perceived + matrix @ perceived
    expected = (feedback * (perceived - torch.eye(17).double()))[:, 0].detach()
    method = BiAttention(vit, perception=perception, n_steps=steps)
    assert close(method.attribute(images, 3, granularity="token"), expected)


# -- LibraGradient --------------------------------------------------------------------------------


class PrunedViT(nn.Module):
    """A pre-norm Transformer with a gated MLP whose backward pass can be pruned by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, WIDTH)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(WIDTH),
                    "qkv": nn.Linear(WIDTH, 3 * WIDTH),
                    "proj": nn.Linear(WIDTH, WIDTH),
                    "norm2": nn.LayerNorm(WIDTH),
                    "gate": nn.Linear(WIDTH, 2 * WIDTH),
                    "up": nn.Linear(WIDTH, 2 * WIDTH),
                    "down": nn.Linear(2 * WIDTH, WIDTH),
                    "mlp": nn.Linear(WIDTH, WIDTH),
                }
            )
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor, pruned: bool = False, kept: Any = None) -> Tensor:
        def constant(value: Tensor) -> Tensor:
            return value.detach() if pruned else value

        def normed(norm: nn.LayerNorm, value: Tensor) -> Tensor:
            if not pruned:
                return norm(value)
            sigma = (value.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
            centred = value - value.mean(-1, keepdim=True)
            return centred / sigma.detach() * norm.weight + norm.bias

        x = self.embed(x)
        for block in self.blocks:
            if kept is not None:
                x.retain_grad()
                kept.append(x)
            n, s, _ = x.shape
            qkv = block["qkv"](normed(block["norm1"], x)).reshape(n, s, 3, HEADS, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            A = constant((q @ k.transpose(-2, -1) * 0.3).softmax(-1))
            x = x + block["proj"]((A @ v).transpose(1, 2).reshape(n, s, -1))
            y = normed(block["norm2"], x)
            gate, up = block["gate"](y), block["up"](y)
            silu = gate * constant(torch.sigmoid(gate)) if pruned else nn.functional.silu(gate)
            product = silu * up
            if pruned:
                product = product.detach() + (product - product.detach()) / 2
            z = block["mlp"](block["down"](product))
            gelu = z * (nn.functional.gelu(z) / z).detach() if pruned else nn.functional.gelu(z)
            x = x + gelu
        return self.head(normed(self.norm, x[:, 0]))


@pytest.fixture(scope="module")
def pruned() -> tuple[PrunedViT, Tensor]:
    return enliven(PrunedViT()), torch.randn(2, 5, 6, dtype=torch.float64)


def test_libra_gradient_is_input_times_the_gradient_pruned_by_hand(pruned: Any) -> None:
    model, x = pruned
    x = x.clone().requires_grad_()
    kept: list[Tensor] = []
    logits = model(x, pruned=True, kept=kept)
    logits[:, 2].sum().backward()
    expected = (x * x.grad).detach()
    found, delta = LibraGradient(model).attribute(x, 2, return_convergence_delta=True)
    assert close(found, expected, 1e-9)
    of_layers = torch.stack([(h * h.grad).sum(-1) for h in kept]).mean(0).detach()
    method = LibraGradient(model, aggregation="layers")
    assert close(method.attribute(x, 2, granularity="token"), of_layers)
    # Corollary 3: what the input lacks of the logit is Σ b · ∂f/∂b, over all biases.
    biases = sum(
        float((p * p.grad).sum()) for n, p in model.named_parameters() if n.endswith("bias")
    )
    assert abs(float(delta.sum()) - biases) < 1e-9 * float(logits.abs().max())
    assert torch.allclose(found.sum((1, 2)) + delta, logits[:, 2].detach())


# -- the next token -------------------------------------------------------------------------------


def causal(name: str) -> Any:
    if name == "gpt2":
        config: Any = GPT2Config(vocab_size=30, n_positions=12, n_embd=24, n_layer=2, n_head=3)
        return enliven(GPT2LMHeadModel(config))
    config = LlamaConfig(
        vocab_size=30,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=12,
    )
    return enliven(LlamaForCausalLM(config))


NEXT_TOKEN: dict[str, Any] = {
    "TransformerAttribution": TransformerAttribution,
    "AttentionRollout": AttentionRollout,
    "GenericAttention": GenericAttention,
    "AttnLRP": lambda model: TransformerLRP(model, preset="attnlrp"),
    "CP-LRP": lambda model: TransformerLRP(model, preset="cp_lrp"),
    "LibraGradient": LibraGradient,
    "FullGrad+": lambda model: LibraGradient(model, aggregation="layers"),
    "AttCat": AttCat,
    "NormRollout": NormRollout,
    "ALTI": lambda model: NormRollout(model, contribution="alti"),
    "BiAttention": lambda model: BiAttention(model, n_steps=2),
}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_choice_of_the_next_token_is_made_by_the_tokens_before_it(name: str) -> None:
    model = causal(name)
    ids = torch.randint(0, 30, (2, 8))
    for method in NEXT_TOKEN.values():
        found = method(model).attribute(ids, (4, 7))
        assert found.shape == ids.shape
        assert bool(found[:, :5].any(1).all())
        assert not found[:, 5:].any()
        # Later tokens change nothing: the choice at position 4 is that of the text so far.
        assert close(method(model).attribute(ids[:, :5], (4, 7)), found[:, :5], 1e-6) or isinstance(
            method(model), AttCat
        )
    with pytest.raises(ExplanationError, match="LeGrad reads one answer"):
        LeGrad(model).attribute(ids, (4, 7))


# -- what they are not for ------------------------------------------------------------------------


@pytest.mark.parametrize("method", [LeGrad, AttCat, NormRollout, BiAttention])
def test_windows_are_refused_with_what_to_use_instead(method: Any) -> None:
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=32, patch_size=4, embed_dim=12, depths=(1, 1), num_heads=(2, 2), window_size=4,
        num_classes=3,
    ).eval()  # fmt: skip
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(ExplanationError, match="use TransformerAttribution or GenericAttention"):
        method(model).attribute(images, 1)
    found = GenericAttention(model).attribute(images, 1)
    assert bool(found.any())
    assert bool((found >= 0).all())
