"""Where in the image a map lies: non-square images, sizes chosen at build time and at run time.

A model is read at one place of its last features, and rows and columns of that place are known
from the architecture.  Skip connections keep the place, so what is read there must come mostly from
the part of the image that the place stands for.  Rows and columns exchanged, another number of
prefix tokens, a wrong stride or a window put back elsewhere would all move it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.attr.places import built, peaks_where_read, shares

Size = tuple[int, int]
SHALLOW = {"depth": 2, "embed_dim": 48, "num_heads": 2}
SHALLOW_WINDOWS = {"depths": (2, 2), "num_heads": (2, 4), "embed_dim": 24}

SHARP: dict[str, tuple[str, dict[str, Any], Size, Size]] = {
    "sized": ("test_vit", {"img_size": (48, 80)}, (48, 80), (3, 5)),
    "dynamic": ("test_vit", {"dynamic_img_size": True}, (80, 48), (5, 3)),
    "padded": (
        "test_vit",
        {"dynamic_img_size": True, "dynamic_img_pad": True},
        (44, 72),
        (3, 5),
    ),
    "relative positions": ("test_vit_relpos", {"img_size": (48, 80)}, (48, 80), (3, 5)),
    "rotary positions": ("vit_small_patch16_dinov3", SHALLOW, (48, 80), (3, 5)),
    "naflexvit": ("naflexvit_base_patch16_gap", SHALLOW, (48, 80), (3, 5)),
    "beit": ("beit_base_patch16_224", {**SHALLOW, "img_size": (48, 80)}, (48, 80), (3, 5)),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {**SHALLOW_WINDOWS, "img_size": (32, 64), "window_size": 4},
        (32, 64),
        (4, 8),
    ),
    "swin, resized": (
        "swin_tiny_patch4_window7_224",
        {**SHALLOW_WINDOWS, "img_size": 64, "window_size": 4, "resized": (64, 32)},
        (64, 32),
        (8, 4),
    ),
    "swin, padded windows": (
        "swin_tiny_patch4_window7_224",
        {**SHALLOW_WINDOWS, "img_size": (40, 72), "window_size": 4},
        (40, 72),
        (5, 9),
    ),
    "swinv2": (
        "swinv2_tiny_window8_256",
        {**SHALLOW_WINDOWS, "img_size": (32, 64), "window_size": 4},
        (32, 64),
        (4, 8),
    ),
    "coatnet": ("test_coatnet", {"img_size": (128, 192)}, (128, 192), (4, 6)),
    "xcit": ("xcit_nano_12_p16_224", {"depth": 2, "cls_attn_layers": 1}, (48, 80), (3, 5)),
}
"""Model, options, size of the image, and rows and columns of the last features.

``resized`` is a size that the model is set to after it has been built.
"""

SLOW: dict[str, tuple[str, dict[str, Any], Size, Size]] = {
    "maxvit": ("test_maxvit", {"img_size": (64, 96)}, (64, 96), (2, 3)),
    "cait": ("cait_xxs24_224", {"img_size": (48, 80), "depth": 2}, (48, 80), (3, 5)),
    "pvt_v2": ("pvt_v2_b0", {}, (64, 96), (2, 3)),
    "hiera": ("hiera_tiny_224", {"img_size": (64, 96)}, (64, 96), (2, 3)),
    "davit": ("davit_tiny", {}, (64, 96), (2, 3)),
    "edgenext": ("edgenext_xx_small", {}, (64, 96), (2, 3)),
    "nextvit": ("nextvit_small", {}, (64, 96), (2, 3)),
    "twins": ("twins_svt_small", {}, (64, 96), (2, 3)),
    "metaformer": ("caformer_s18", {}, (64, 96), (2, 3)),
    "iformer": ("iformer_t", {}, (64, 96), (2, 3)),
    "volo": ("volo_d1_224", {"img_size": (64, 96)}, (64, 96), (4, 6)),
    "vitamin": ("vitamin_small_224", {"img_size": (64, 96)}, (64, 96), (4, 6)),
}

BLURRED: dict[str, tuple[str, dict[str, Any], Size, Size]] = {
    "efficientformer_v2": (
        "efficientformerv2_s0",
        {"img_size": (192, 256)},
        (192, 256),
        (6, 8),
    ),
    "mobilevit": ("mobilevit_xxs", {}, (192, 256), (6, 8)),
    "tiny_vit": ("tiny_vit_5m_224", {}, (192, 256), (6, 8)),
}
"""Convolutions that no skip connection leads around spread a place over its neighbours."""


def of_case(case: tuple[str, dict[str, Any], Size, Size]) -> Tensor:
    """The shares of a model of timm."""
    name, options, size, (rows, columns) = case
    torch.manual_seed(0)
    options = dict(options)
    resized = options.pop("resized", None)
    model = built(name, num_classes=0, **options)
    if resized:
        model.set_input_size(resized)
    return shares(model, torch.randn(2, 3, *size), rows, columns)


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=name) for name, case in SHARP.items()),
        *(pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in SLOW.items()),
    ],
)
def test_what_is_read_at_a_place_comes_from_that_part_of_the_image(
    case: tuple[str, dict[str, Any], Size, Size],
) -> None:
    assert peaks_where_read(of_case(case))


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in BLURRED.items()])
def test_what_is_read_further_down_or_right_comes_from_further_down_or_right(
    case: tuple[str, dict[str, Any], Size, Size],
) -> None:
    found = of_case(case)
    rows, columns = case[-1]
    down = (found.sum(3) * torch.arange(rows)).sum(2).view(rows, columns, 2)
    right = (found.sum(2) * torch.arange(columns)).sum(2).view(rows, columns, 2)
    assert (down.diff(dim=0) > 0).all()
    assert (right.diff(dim=1) > 0).all()
