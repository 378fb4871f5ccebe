"""Small, seeded models of every supported kind, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionVisionTransformer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from captum_transformer_lrp import Explanation, TransformerAttribution, examples

IMAGE, PATCH, WIDTH, HEADS, DEPTH, CLASSES = 32, 8, 24, 3, 3, 5
GRID = IMAGE // PATCH


@dataclass
class Case:
    """A model with inputs for it.

    Args:
        name: what the model is.
        model: in float64 and eval mode.
        inputs: three examples.
        kwargs: keyword arguments of the model.
        readout: the weight of each token in what the model reads its answer from, summing to 1.
        absorbing: parameters that must be found to absorb relevance.
    """

    name: str
    model: nn.Module
    inputs: Tensor
    kwargs: dict[str, Tensor]
    readout: Tensor
    absorbing: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def attribution(self) -> TransformerAttribution:
        return TransformerAttribution(self.model)

    @property
    def is_image(self) -> bool:
        return self.inputs.dim() == 4

    def logits(self) -> Tensor:
        """What the plain model says."""
        with torch.no_grad():
            output = self.model(self.inputs, **self.kwargs)
        return output if isinstance(output, Tensor) else output.logits

    def attribute(self, target: Any = 1, **options: Any) -> Tensor:
        found = self.attribution.attribute(self.inputs, target, self.kwargs, **options)
        assert isinstance(found, Tensor)
        return found

    def explain(self, target: Any = 1, **options: Any) -> Explanation:
        return self.attribution.explain(self.inputs, target, self.kwargs, **options)

    def example(self, index: int) -> Case:
        """The case of one example alone."""
        rows = slice(index, index + 1)
        kwargs = {name: value[rows] for name, value in self.kwargs.items()}
        return Case(self.name, self.model, self.inputs[rows], kwargs, self.readout, self.absorbing)


class HandWrittenBlock(nn.Module):
    """Residuals that no module announces, one of them in place."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, s, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, s, 3, HEADS, WIDTH // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, s, WIDTH)
        x = x + self.proj(mixed)
        x += self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
        return x


class HandWrittenViT(nn.Module):
    """A Vision Transformer of one's own; patches by a convolution or by a linear layer."""

    def __init__(self, patchify: str) -> None:
        super().__init__()
        self.patchify = patchify
        self.patches: nn.Module = (
            nn.Conv2d(3, WIDTH, PATCH, PATCH)
            if patchify == "convolution"
            else nn.Linear(3 * PATCH * PATCH, WIDTH)
        )
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(torch.randn(1, GRID * GRID + 1, WIDTH))
        self.blocks = nn.ModuleList(HandWrittenBlock() for _ in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def tokens(self, images: Tensor) -> Tensor:
        if self.patchify == "convolution":
            return self.patches(images).flatten(2).transpose(1, 2)
        n, channels, _, _ = images.shape
        cut = images.reshape(n, channels, GRID, PATCH, GRID, PATCH).permute(0, 2, 4, 1, 3, 5)
        return self.patches(cut.reshape(n, GRID * GRID, -1))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.tokens(images)
        x = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


def timm_vit(**options: Any) -> nn.Module:
    return VisionTransformer(
        img_size=IMAGE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        num_classes=CLASSES,
        **options,
    )


def hugging_face_vit() -> nn.Module:
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=WIDTH,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            intermediate_size=2 * WIDTH,
            image_size=IMAGE,
            patch_size=PATCH,
            num_labels=CLASSES,
        )
    )


def torchvision_vit() -> nn.Module:
    return TorchvisionVisionTransformer(
        IMAGE, PATCH, DEPTH, HEADS, WIDTH, 2 * WIDTH, num_classes=CLASSES
    )


def bert() -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=WIDTH,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            intermediate_size=2 * WIDTH,
            max_position_embeddings=16,
            num_labels=CLASSES,
        )
    )


def cls_row(tokens: int) -> Tensor:
    row = torch.zeros(tokens, dtype=torch.float64)
    row[0] = 1
    return row


def mean_row(tokens: int) -> Tensor:
    """The mean of the patch tokens; [CLS] is there, but not read."""
    row = torch.full((tokens,), 1 / (tokens - 1), dtype=torch.float64)
    row[0] = 0
    return row


BUILDERS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "timm ViT": (timm_vit, ("cls_token", "pos_embed")),
    "timm ViT, mean-pooled": (lambda: timm_vit(global_pool="avg"), ("cls_token", "pos_embed")),
    "Hugging Face ViT": (
        hugging_face_vit,
        ("vit.embeddings.cls_token", "vit.embeddings.position_embeddings"),
    ),
    "torchvision ViT": (torchvision_vit, ("class_token", "encoder.pos_embedding")),
    "hand-written ViT, convolution": (lambda: HandWrittenViT("convolution"), ("cls", "position")),
    "hand-written ViT, linear": (lambda: HandWrittenViT("linear"), ("cls", "position")),
    "BERT": (
        bert,
        (
            "bert.embeddings.position_embeddings.weight",
            "bert.embeddings.token_type_embeddings.weight",
        ),
    ),
}


def enlivened(model: nn.Module) -> nn.Module:
    """Random weights of trained models' size.

    Libraries start from weights so small that (∇A ⊙ R)⁺ is 1e-10 and drowns in the rounding errors
    of the identity beside it, or from a head that is zero.
    """
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
        else:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean().round()), std=0.1)
    return model


def build(name: str) -> Case:
    torch.manual_seed(0)
    builder, absorbing = BUILDERS[name]
    model = enlivened(builder()).double().eval()
    if name == "BERT":
        lengths = torch.tensor([[12], [9], [5]])
        kwargs = {"attention_mask": (torch.arange(12)[None] < lengths).long()}
        return Case(name, model, torch.randint(1, 50, (3, 12)), kwargs, cls_row(12), absorbing)
    images = torch.randn(3, 3, IMAGE, IMAGE, dtype=torch.float64)
    row = mean_row if "mean" in name else cls_row
    return Case(name, model, images, {}, row(GRID * GRID + 1), absorbing)


@pytest.fixture(scope="module", params=list(BUILDERS))
def case(request: pytest.FixtureRequest) -> Case:
    return build(request.param)


@pytest.fixture(scope="module", params=[name for name in BUILDERS if "ViT" in name])
def image_case(request: pytest.FixtureRequest) -> Case:
    return build(request.param)


@pytest.fixture(scope="module")
def vit_case() -> Case:
    return build("timm ViT")


@pytest.fixture(scope="module")
def bert_case() -> Case:
    return build("BERT")


@pytest.fixture(scope="session")
def classifier() -> tuple[Any, Any]:
    """The bundled classifier of sentences, and its tokenizer."""
    return examples.sentiment_classifier()


@pytest.fixture(scope="session")
def deit(shared: Path) -> nn.Module:
    """DeiT-tiny, trained on ImageNet."""
    model = timm.create_model("deit_tiny_patch16_224")
    model.load_state_dict(load_file(shared / "models/deit_tiny_imagenet/model.safetensors"))
    return model.eval()


@pytest.fixture(scope="session")
def imagenet_photos(shared: Path, deit: nn.Module) -> Tensor:
    """Twenty photos as DeiT sees them, every 25th by name: (20, 3, 224, 224)."""
    paths = sorted((shared / "data/imagenet_samples").rglob("*.[jJ]*"))[::25]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    mean, std = (torch.tensor(deit.default_cfg[name])[:, None, None] for name in ("mean", "std"))
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
