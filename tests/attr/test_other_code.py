"""Transformers that neither timm nor transformers has: torchvision, PyTorch, einsum by hand.

Random weights, tiny configurations, float64.  All columns of the sweep: output unchanged, gradients
equal to autograd's, Σ R = 1, finite maps of the right shape, and each example as by itself.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    SwinTransformer,
    SwinTransformerBlockV2,
)
from torchvision.models.vision_transformer import VisionTransformer

from captum_transformer_lrp import TransformerAttribution
from tests.attr.places import peaks_where_read, shares
from tests.sweep.cases import Case
from tests.sweep.columns import examine
from tests.sweep.results import Result

WIDTH, HEADS, PATCH, CLASSES = 24, 3, 8, 5
HEIGHT, BREADTH = 24, 40
GRID = HEIGHT // PATCH, BREADTH // PATCH


# -- as in vit-pytorch: everything is a rearrangement or an einsum -------------------------------


class EinsumAttention(nn.Module):
    """Q, K and V from one layer, taken apart by ``chunk``; products as einsums of named axes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.to_qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (  # b n (h d) -> b h n d
            part.reshape(b, n, HEADS, -1).permute(0, 2, 1, 3)
            for part in self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        )
        dots = torch.einsum("bhid,bhjd->bhij", q, k) * (WIDTH // HEADS) ** -0.5
        out = torch.einsum("b h i j, b h j d -> b h i d", dots.softmax(dim=-1), v)
        mixed: Tensor = self.to_out(out.permute(0, 2, 1, 3).reshape(b, n, -1))
        return mixed


class EinsumViT(nn.Module):
    """Patches are cut out of the image by a rearrangement and embedded by a linear layer.

    Args:
        pool: ``"cls"`` or ``"mean"``.
    """

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.to_tokens = nn.Sequential(
            nn.LayerNorm(3 * PATCH**2), nn.Linear(3 * PATCH**2, WIDTH), nn.LayerNorm(WIDTH)
        )
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embedding = nn.Parameter(torch.randn(1, GRID[0] * GRID[1] + 1, WIDTH))
        feed_forward = (
            nn.Sequential(
                nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(),
                nn.Linear(2 * WIDTH, WIDTH),
            )
            for _ in range(2)
        )  # fmt: skip
        self.layers = nn.ModuleList(nn.ModuleList([EinsumAttention(), one]) for one in feed_forward)
        self.head = nn.Linear(WIDTH, CLASSES)

    def tokens(self, images: Tensor) -> Tensor:
        b, c, rows, columns = images.shape
        # b c (h p) (w q) -> b (h w) (p q c)
        cut = images.reshape(b, c, rows // PATCH, PATCH, columns // PATCH, PATCH)
        patches = cut.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, PATCH * PATCH * c)
        x = self.to_tokens(patches)
        x = torch.cat((self.cls_token.expand(b, -1, -1), x), dim=1)
        x += self.pos_embedding[:, : x.shape[1]]
        for attention, feed_forward in self.layers:
            x = attention(x) + x
            x = feed_forward(x) + x
        return x

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(images)
        logits: Tensor = self.head(x.mean(dim=1) if self.pool == "mean" else x[:, 0])
        return logits


# -- torchvision and PyTorch ---------------------------------------------------------------------


def torchvision_swin(version: int) -> SwinTransformer:
    newer = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    return SwinTransformer(
        patch_size=[2, 2], embed_dim=WIDTH, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4],
        num_classes=CLASSES, stochastic_depth_prob=0.0, **(newer if version == 2 else {}),
    )  # fmt: skip


def torchvision_vit() -> VisionTransformer:
    return VisionTransformer(
        image_size=4 * PATCH, patch_size=PATCH, num_layers=2, num_heads=HEADS, hidden_dim=WIDTH,
        mlp_dim=2 * WIDTH, num_classes=CLASSES,
    )  # fmt: skip


class Encoded(nn.Module):
    """PyTorch's own encoder on embeddings (N, S, D), with a classifier of its mean token."""

    def __init__(self, *, norm_first: bool, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 2 * WIDTH, activation="gelu", norm_first=norm_first,
            batch_first=batch_first,
        )  # fmt: skip
        self.encoder = nn.TransformerEncoder(
            layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False
        )
        self.batch_first = batch_first
        self.head = nn.Linear(WIDTH, CLASSES)

    def tokens(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        if not self.batch_first:
            x = x.transpose(0, 1)
        x = self.encoder(x, src_key_padding_mask=padding)
        return x if self.batch_first else x.transpose(0, 1)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        x = self.tokens(x, padding)
        if padding is None:
            pooled = x.mean(1)
        else:
            kept = (~padding).unsqueeze(-1).to(x.dtype)
            pooled = (x * kept).sum(1) / kept.sum(1)
        logits: Tensor = self.head(pooled)
        return logits


def drawn(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with nothing left at 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.double().eval()


IMAGE_MODELS = {
    "einsum, class token": (lambda: EinsumViT("cls"), (HEIGHT, BREADTH)),
    "einsum, mean token": (lambda: EinsumViT("mean"), (HEIGHT, BREADTH)),
    "torchvision ViT": (torchvision_vit, (4 * PATCH, 4 * PATCH)),
    "torchvision Swin": (lambda: torchvision_swin(1), (16, 32)),
    "torchvision Swin v2": (lambda: torchvision_swin(2), (16, 32)),
    "torchvision Swin, padded windows": (lambda: torchvision_swin(1), (12, 20)),
}


def passes(case: Case) -> None:
    result = Result("", "", "", smallest=True)
    examine(case, result)
    assert result.verdict == "passed", result.reason
    assert result.softmax_attention


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_an_image_model_passes_every_column_of_the_sweep(name: str) -> None:
    build, size = IMAGE_MODELS[name]
    torch.manual_seed(0)
    passes(Case(drawn(build()), torch.randn(3, 3, *size, dtype=torch.float64), target=2))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_pytorchs_encoder_passes_every_column_of_the_sweep(
    norm_first: bool, batch_first: bool
) -> None:
    torch.manual_seed(0)
    model = drawn(Encoded(norm_first=norm_first, batch_first=batch_first))
    x = torch.randn(3, 7, WIDTH, dtype=torch.float64)
    passes(Case(model, x, target=2))
    padding = torch.arange(7) >= torch.tensor([[7], [4], [2]])
    passes(Case(model, x, target=2, additional_forward_args={"padding": padding}))
    row = TransformerAttribution(model).attribute(x, 2, {"padding": padding}, granularity="token")
    assert isinstance(row, Tensor)
    assert torch.equal(row > 0, ~padding)


class Tokens(nn.Module):
    """The tokens of a model before they are pooled."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.model, SwinTransformer):
            found: Tensor = self.model.norm(self.model.features(x))
        elif isinstance(self.model, VisionTransformer):
            x = self.model._process_input(x)
            x = torch.cat([self.model.class_token.expand(len(x), -1, -1), x], dim=1)
            found = self.model.encoder(x)
        else:
            assert isinstance(self.model, (EinsumViT, Encoded))
            found = self.model.tokens(x)
        return found


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("einsum, class token", GRID),
        ("torchvision ViT", (4, 4)),
        ("torchvision Swin", (4, 8)),
        ("torchvision Swin v2", (4, 8)),
        ("torchvision Swin, padded windows", (3, 5)),
    ],
)
def test_what_is_read_at_a_place_comes_from_that_part_of_the_image(
    name: str, grid: tuple[int, int]
) -> None:
    build, size = IMAGE_MODELS[name]
    torch.manual_seed(0)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    assert peaks_where_read(shares(Tokens(drawn(build())), images, *grid))


@pytest.mark.parametrize("batch_first", [True, False])
def test_what_is_read_at_a_token_of_pytorchs_encoder_comes_from_it(batch_first: bool) -> None:
    torch.manual_seed(0)
    model = Tokens(drawn(Encoded(norm_first=True, batch_first=batch_first)))
    x = torch.randn(2, 6, WIDTH, dtype=torch.float64)
    for token in range(6):
        found = TransformerAttribution(model).attribute(x, (token, 3), keep_identity=True)
        assert isinstance(found, Tensor)
        assert (found.sum(2).argmax(1) == token).all()
