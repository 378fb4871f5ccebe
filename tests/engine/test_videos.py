"""Videos, whose frames models fold into the batch or move behind the channels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LRP
from torch import Tensor, nn

from captum_transformer_lrp import (
    AttentionRollout,
    ExplanationError,
    TransformerAttribution,
    TransformerLRP,
    transformer_rules,
)

FRAMES, CHANNELS, SIDE, PATCH, WIDTH = 3, 2, 8, 4, 6


class Frames(nn.Module):
    """Attention within each frame, then a class token that attends to all of them.

    Each frame gets the class token before it is cut out again for each video, as in TimeSformer:
    of the first rows, whichever example they belong to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH)
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(torch.randn(1, 1 + (SIDE // PATCH) ** 2, WIDTH))
        self.within, self.across = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, videos: Tensor) -> Tensor:
        count = len(videos)
        x = self.patches(videos.flatten(0, 1)).flatten(2).mT
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.position
        class_tokens, x = x[:count, :1], x[:, 1:]
        x = x + F.scaled_dot_product_attention(*self.within(x).chunk(3, -1))
        x = x.reshape(count, -1, WIDTH)
        x = torch.cat([class_tokens, x], 1)
        x = x + F.scaled_dot_product_attention(*self.across(x).chunk(3, -1))
        return self.head(x[:, 0])


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Frames().double().eval()


@pytest.fixture
def videos() -> Tensor:
    return torch.randn(2, FRAMES, CHANNELS, SIDE, SIDE, dtype=torch.float64)


def test_frames_that_are_folded_into_the_batch_are_followed_to_their_videos(
    model: nn.Module, videos: Tensor
) -> None:
    method = TransformerAttribution(model)
    explanation = method.explain(videos, 1)
    torch.testing.assert_close(explanation.total, torch.ones(2).double(), rtol=0, atol=1e-9)
    singly = torch.cat([method.attribute(video[None], 1) for video in videos])
    torch.testing.assert_close(explanation.attributions, singly, rtol=1e-9, atol=1e-12)


def test_a_class_token_cut_from_the_first_rows_belongs_to_no_example(
    model: nn.Module, videos: Tensor
) -> None:
    explanation = TransformerAttribution(model).explain(videos, 1)
    shares = explanation.absorbed["Frames (constant)"]
    assert bool((shares.abs() > 1e-3).all())


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_captum_s_own_lrp_reports_what_that_class_token_absorbs(
    model: nn.Module, videos: Tensor
) -> None:
    """To find out that it depends on no input takes a backward pass in the forward pass."""
    with transformer_rules() as propagation:
        LRP(model).attribute(videos, 1)
    expected = TransformerAttribution(model).explain(videos, 1).absorbed
    assert "Frames (constant)" in propagation.absorbed
    for name, share in propagation.absorbed.items():
        torch.testing.assert_close(share, expected[name], rtol=1e-9, atol=1e-12)


def test_rollout_follows_the_frames_too(model: nn.Module, videos: Tensor) -> None:
    method = AttentionRollout(model)
    singly = torch.cat([method.attribute(video[None], 1) for video in videos])
    torch.testing.assert_close(method.attribute(videos, 1), singly, rtol=1e-9, atol=1e-12)


def test_the_first_rows_of_a_frame_that_do_hold_an_example_are_no_constants(
    model: nn.Module, videos: Tensor
) -> None:
    class Mixes(Frames):
        def forward(self, videos: Tensor) -> Tensor:
            x = self.patches(videos.flatten(0, 1)).flatten(2).mT
            mixed = torch.cat([x[: len(videos), :1], x.reshape(len(videos), -1, WIDTH)], 1)
            mixed = mixed + F.scaled_dot_product_attention(*self.across(mixed).chunk(3, -1))
            return self.head(mixed[:, 0])

    mixes = Mixes().double().eval()
    with pytest.raises(ExplanationError, match="examples of the batch cannot be told apart"):
        TransformerLRP(mixes).attribute(videos, 1)
    with pytest.raises(ExplanationError, match="examples of the batch cannot be told apart"):
        AttentionRollout(mixes).attribute(videos, 1)


@pytest.mark.parametrize("target", [0, 1, 2])
def test_a_video_of_one_frame_has_the_map_of_the_picture(model: nn.Module, target: int) -> None:
    class Picture(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            x = model.patches(images).flatten(2).mT
            x = torch.cat([model.class_token, x], 1) + model.position
            class_token, x = x[:, :1], x[:, 1:]
            x = x + F.scaled_dot_product_attention(*model.within(x).chunk(3, -1))
            x = torch.cat([class_token, x], 1)
            x = x + F.scaled_dot_product_attention(*model.across(x).chunk(3, -1))
            return model.head(x.mean(1))

    class Video(Picture):
        def forward(self, videos: Tensor) -> Tensor:
            return super().forward(videos.flatten(0, 1))

    video = torch.randn(1, 1, CHANNELS, SIDE, SIDE, dtype=torch.float64)
    of_picture = TransformerAttribution(Picture()).attribute(video[0], target)
    of_video = TransformerAttribution(Video()).attribute(video, target)
    assert of_picture.std() > 0
    torch.testing.assert_close(of_video[0], of_picture, rtol=1e-12, atol=0)
