"""Models of ten other packages, small and with random weights, pass ``verify``.

None of the packages is needed for anything else: ``pip install`` those that you want to try.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from captum_transformer_lrp import TransformerAttribution, verify
from captum_transformer_lrp.verification.weights import draw_zero_weights

CLASSES = 4


@dataclass(frozen=True)
class Built:
    """A model with inputs; ``forward`` is what is explained, if not the model itself."""

    model: nn.Module
    inputs: Tensor | tuple[Tensor, ...]
    target: Any = 1
    forward: Callable[..., Any] | None = None
    additional: dict[str, Tensor] = field(default_factory=dict)


def images(side: int, count: int = 3) -> Tensor:
    return torch.randn(count, 3, side, side)


def bert_config(**options: Any) -> BertConfig:
    return BertConfig(
        vocab_size=40, hidden_size=24, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, **options,
    )  # fmt: skip


def ultralytics(folder: Path) -> Built:
    """YOLO11's classifier, whose last stage attends (C2PSA)."""
    from ultralytics.nn.tasks import ClassificationModel

    model = ClassificationModel("yolo11n-cls.yaml", nc=CLASSES, verbose=False)
    for module in model.modules():  # as it is drawn by default, nothing of an image is left
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return Built(model, images(160), forward=lambda x: model(x)[1])  # probabilities, logits


def open_clip(folder: Path) -> Built:
    """Images against four texts."""
    import open_clip

    model = open_clip.CLIP(
        16,
        {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
        {"context_length": 8, "vocab_size": 40, "width": 32, "heads": 2, "layers": 2},
    ).eval()
    with torch.no_grad():
        texts = model.encode_text(torch.randint(1, 40, (CLASSES, 8)), normalize=True)
    return Built(
        model, images(32), forward=lambda x: 10 * model.encode_image(x, normalize=True) @ texts.T
    )


def monai(folder: Path) -> Built:
    """A ViT of volumes."""
    from monai.networks.nets import ViT

    model = ViT(
        in_channels=1, img_size=(16, 16, 16), patch_size=(8, 8, 8), hidden_size=24, mlp_dim=48,
        num_layers=2, num_heads=2, classification=True, num_classes=CLASSES,
        post_activation="none",
    )  # fmt: skip
    return Built(model, torch.randn(3, 1, 16, 16, 16))


def vit_pytorch(folder: Path) -> Built:
    from vit_pytorch import ViT

    model = ViT(
        image_size=32, patch_size=8, num_classes=CLASSES, dim=24, depth=2, heads=2, dim_head=12,
        mlp_dim=48,
    )  # fmt: skip
    return Built(model, images(32))


def sentence_transformers(folder: Path) -> Built:
    """A dimension of the embedding of a sentence."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(97, 123))]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertModel(bert_config()).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    model = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(24)], device="cpu")
    mask = (torch.arange(8) < torch.tensor([[8], [6], [5]])).long()

    def embedded(ids: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = model({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
        return found

    return Built(model, torch.randint(5, 30, (3, 8)), forward=embedded, additional={"mask": mask})


def peft(folder: Path) -> Built:
    """BERT with LoRA on queries and values."""
    from peft import LoraConfig, get_peft_model

    model = BertForSequenceClassification(bert_config(num_labels=CLASSES))
    config = LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    ids, mask = torch.randint(5, 40, (3, 8)), torch.ones(3, 8).long()
    return Built(get_peft_model(model, config), ids, additional={"attention_mask": mask})


def rtdl_revisiting_models(folder: Path) -> Built:
    """A Transformer of tables: numbers and categories are its tokens."""
    from rtdl_revisiting_models import FTTransformer

    model = FTTransformer(
        n_cont_features=6, cat_cardinalities=[3, 4, 5], d_out=CLASSES, n_blocks=2, d_block=24,
        attention_n_heads=2, attention_dropout=0.1, ffn_d_hidden_multiplier=4 / 3, ffn_dropout=0.1,
        residual_dropout=0.0,
    )  # fmt: skip
    categories = torch.tensor([[0, 1, 2], [2, 3, 4], [1, 0, 3]])
    return Built(model, torch.randn(3, 6), additional={"x_cat": categories})


def fastervit(folder: Path) -> Built:
    """Windows with carrier tokens."""
    from fastervit.models.faster_vit import FasterViT

    model = FasterViT(
        dim=16, in_dim=16, depths=[1, 1, 2, 2], window_size=[7, 7, 7, 7], ct_size=2, mlp_ratio=2,
        num_heads=[2, 2, 2, 2], resolution=224, num_classes=CLASSES,
        hat=[False, False, True, False],
    )  # fmt: skip
    return Built(model, images(224, 2))


def segmentation_models_pytorch(folder: Path) -> Built:
    """SegFormer, explained at one pixel."""
    import segmentation_models_pytorch

    model = segmentation_models_pytorch.Segformer("mit_b0", encoder_weights=None, classes=CLASSES)
    return Built(model, images(64, 2), target=(1, 20, 30))


def esm(folder: Path) -> Built:
    """A language model of proteins, at one place."""
    from esm.model.esm2 import ESM2

    model = ESM2(num_layers=2, embed_dim=24, attention_heads=2, token_dropout=False)
    return Built(
        model, torch.randint(4, 24, (3, 10)), target=(3, 7), forward=lambda x: model(x)["logits"]
    )


BUILDERS = [
    ultralytics, open_clip, monai, vit_pytorch, sentence_transformers, peft,
    rtdl_revisiting_models, fastervit, segmentation_models_pytorch, esm,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_a_model_of_another_package_is_verified(
    build: Callable[[Path], Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    pytest.importorskip(build.__name__, reason=f"needs the package {build.__name__}")
    torch.manual_seed(0)
    built = build(tmp_path)
    model = built.model.eval()
    draw_zero_weights(model)
    found = verify(
        model,
        built.inputs,
        built.target,
        additional_forward_args=built.additional or None,
        attribution=TransformerAttribution(built.forward or model, dtype=torch.float64),
    )
    print(f"\n{build.__name__}: {found}")
    assert found.passed, str(found)
