"""PyTorch reads a gradient that lies in memory in another order wrongly in batch norm; not here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer_lrp import TransformerAttribution
from captum_transformer_lrp.rules.normalization import with_gradient_laid_out

CHANNELS, SIDE = 6, 4


def laid_out(values: Tensor, order: str) -> Tensor:
    """The same values (N, C, H, W) in another order in memory."""
    if order == "tokens":  # as (N, tokens, channels), seen as channels and rows and columns
        return values.flatten(2).mT.contiguous().mT.view(values.shape)
    formats = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    return values.contiguous(memory_format=formats[order])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("of_gradient", ["contiguous", "channels last", "tokens"])
@pytest.mark.parametrize("of_input", ["contiguous", "channels last", "tokens"])
def test_batch_norm_in_eval_mode_scales_the_gradient_however_it_lies(
    of_input: str, of_gradient: str, count: int
) -> None:
    torch.manual_seed(0)
    values, gradient = torch.randn(2, count, CHANNELS, SIDE, SIDE, dtype=torch.float64)
    mean, weight = torch.randn(2, CHANNELS, dtype=torch.float64)
    variance = torch.rand(CHANNELS, dtype=torch.float64) + 0.5
    x = laid_out(values, of_input).requires_grad_()
    y = with_gradient_laid_out(F.batch_norm)(x, mean, variance, weight, eps=0.0)
    (found,) = torch.autograd.grad(y, x, laid_out(gradient, of_gradient))
    expected = gradient * (weight / variance.sqrt())[:, None, None]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


class ConvolvedKeys(nn.Module):
    """Attention whose queries and keys come from a convolution and a batch norm, as CvT's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 2, 2)
        self.project = nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=False),
            nn.BatchNorm2d(CHANNELS),
        )
        self.query, self.key = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.value, self.head = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).mT
        for _ in range(2):
            projected = self.project(x.mT.unflatten(2, (SIDE, SIDE))).flatten(2).mT
            scores = self.query(projected) @ self.key(projected).mT
            x = x + scores.softmax(-1) @ self.value(projected)
        return self.head(x.mean(1))


def test_attention_behind_a_batch_norm_has_the_maps_of_a_batch_for_a_batch_of_one() -> None:
    torch.manual_seed(0)
    model = ConvolvedKeys().double().eval()
    images = torch.randn(2, 3, 2 * SIDE, 2 * SIDE, dtype=torch.float64)
    method = TransformerAttribution(model)
    both, first = method.explain(images, 1), method.explain(images[:1], 1)
    for of_both, of_first in zip(both.attentions, first.attentions, strict=True):
        torch.testing.assert_close(of_both.gradient[:1], of_first.gradient, rtol=1e-9, atol=1e-15)
