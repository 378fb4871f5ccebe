"""A model read at each place of its features, for tests of where in the image maps lie."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from packaging.version import Version
from torch import Tensor, nn

from captum_transformer_lrp import TransformerAttribution


def built(name: str, **options: Any) -> nn.Module:
    """A model of timm, in evaluation mode."""
    if not timm.is_model(name) and Version(timm.__version__) < Version("1.0.30"):
        pytest.skip(f"timm {timm.__version__} has no {name} yet")
    return timm.create_model(name, **options).eval()


class ReadAtEachPlace(nn.Module):
    """One output for every place of a model's last features: a fixed linear function of them.

    Args:
        features: a model, of timm or one that returns (N, H, W, C), (N, C, H, W), or (N, S, C)
            with prefix tokens first.
        rows: of the features.
        columns: of the features.
    """

    def __init__(self, features: nn.Module, rows: int, columns: int) -> None:
        super().__init__()
        self.features, self.grid = features, (rows, columns)
        self.weights = torch.randn(2048)

    def forward(self, images: Tensor) -> Tensor:
        of_timm = getattr(self.features, "forward_features", self.features)
        found: Any = of_timm(images)
        features: Tensor = found["patches"] if isinstance(found, dict) else found
        rows, columns = self.grid
        if features.dim() == 3:  # prefix tokens come first, then places row by row
            features = features[:, features.shape[1] - rows * columns :].transpose(1, 2)
        elif tuple(features.shape[2:]) == self.grid:
            features = features.flatten(2)
        else:
            assert tuple(features.shape[1:3]) == self.grid
            features = features.flatten(1, 2).transpose(1, 2)
        weights = self.weights[: features.shape[1]].to(features.dtype)
        return torch.einsum("ncs,c->ns", features, weights)


def shares(features: nn.Module, images: Tensor, rows: int, columns: int) -> Tensor:
    """For each place that is read, and each image, the share of the map in each place's part.

    Returns:
        (rows · columns, N, rows, columns), each summing to 1 over the last two.
    """
    maps = TransformerAttribution(ReadAtEachPlace(features, rows, columns)).attribute_targets(
        images, list(range(rows * columns)), keep_identity=True
    )
    found = []
    for one in maps:
        assert isinstance(one, Tensor)
        assert one.shape == images.shape
        parts = F.adaptive_avg_pool2d(one.sum(1), (rows, columns))
        found.append(parts / parts.sum((1, 2), keepdim=True))
    return torch.stack(found)


def peaks_where_read(found: Tensor) -> bool:
    """Whether what is read at a place comes mostly from its own part of the image."""
    places = torch.arange(len(found)).unsqueeze(1)
    return bool((found.flatten(2).argmax(2) == places).all())
