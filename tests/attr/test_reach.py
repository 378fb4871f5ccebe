"""A constant that looks like an attribution is an error; a zero that is right is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import YosoConfig, YosoForSequenceClassification

from captum_transformer_lrp import (
    AttentionGradCam,
    AttentionRollout,
    ExplanationError,
    GenericAttention,
    PartialLRP,
    TransformerAttribution,
    TransformerLRP,
)
from tests.attr.methods import METHODS, OF_RELEVANCE, OF_TOKENS, each_once

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
TABLE = torch.randn(2, 6, generator=torch.Generator().manual_seed(1)).double()


class Model(nn.Module):
    """A small ViT with a table beside the image, which ``table`` says the use of."""

    def __init__(self, table: str = "", end: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.use, self.end = table, end
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.blocks = nn.ModuleList(nn.MultiheadAttention(12, 2, batch_first=True) for _ in "ab")
        self.of_table = nn.Linear(6, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, images: Tensor, table: Tensor | None = None) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        given = None if table is None else self.of_table(table).unsqueeze(1)
        if self.use == "token":
            x = torch.cat([x, given], 1)
        elif self.use == "added to tokens":
            x = x + given
        elif self.use == "gate of tokens":
            x = x * given.sigmoid()
        elif self.use == "token of each column":
            x = torch.cat([x, table.unsqueeze(-1) * self.of_table.weight.T], 1)
        for block in self.blocks:
            x = x + block(x, x, x)[0]
            if self.use == "branch of an MLP":
                x = x + self.of_table(torch.cat([x[..., :6].mean(1), table], 1)[:, :6]).unsqueeze(1)
        x = x.mean(1)
        if self.use == "beside what is pooled":
            x = torch.cat([x[:, :6], given[:, 0, 6:]], 1)
        elif self.use == "added to what is pooled":
            x = x + given.squeeze(1)
        elif self.use == "gate of what is pooled":
            x = x * given.squeeze(1).sigmoid()
        logits = self.head(x)
        if self.use == "added to logits":
            logits = logits + given[:, 0, :4]
        elif self.use == "logits of its own":
            logits = torch.cat([logits, given[:, 0, :2]], 1)
        return self.end(logits)


def model(table: str = "", end: Callable[[Tensor], Tensor] = lambda x: x) -> nn.Module:
    torch.manual_seed(0)
    return Model(table, end).double().eval()


# -- inputs without tokens ------------------------------------------------------------------------

BESIDE = [
    "beside what is pooled", "added to what is pooled", "gate of what is pooled",
    "added to logits",
]  # fmt: skip
WITH_TOKENS = ["token", "token of each column", "added to tokens", "gate of tokens"]


@pytest.mark.parametrize(("method", "use"), each_once(BESIDE, OF_TOKENS))
def test_an_input_without_tokens_is_named(method: str, use: str) -> None:
    message = r"input 1 makes no tokens.*additional_forward_args.*TransformerLRP"
    for table in (TABLE, torch.zeros_like(TABLE)):
        with pytest.raises(ExplanationError, match=message):
            METHODS[method](model(use)).attribute((IMAGES, table), 1)


@pytest.mark.parametrize("options", [{"keep_identity": True}, {"row_normalize": True}], ids=str)
@pytest.mark.parametrize("method", [TransformerAttribution, AttentionRollout, GenericAttention])
def test_so_it_is_with_the_identity(method: Any, options: dict[str, bool]) -> None:
    """The mass that no attention has moved would be 1/n for each of n columns."""
    with pytest.raises(ExplanationError, match=r"input 1 makes no tokens"):
        method(model("beside what is pooled")).attribute((IMAGES, TABLE), 1, **options)


@pytest.mark.parametrize("use", BESIDE)
@pytest.mark.parametrize("method", ["transformer_attribution", "flow", "partial", "legrad"])
def test_as_an_additional_argument_it_is_fine(method: str, use: str) -> None:
    found = METHODS[method](model(use)).attribute(IMAGES, 1, TABLE)
    assert float(found.std()) > 0


@pytest.mark.parametrize("use", ["beside what is pooled", "added to logits"])
@pytest.mark.parametrize("method", OF_RELEVANCE)
def test_relevance_is_found_for_it(method: str, use: str) -> None:
    found = METHODS[method](model(use)).attribute((IMAGES, TABLE), 1)[1]
    assert float(found.std()) > 0


@pytest.mark.parametrize("use", WITH_TOKENS)
@pytest.mark.parametrize("method", [TransformerAttribution, AttentionRollout, GenericAttention])
def test_an_input_whose_tokens_are_attended_to_has_values(method: Any, use: str) -> None:
    of_image, of_table = method(model(use)).attribute((IMAGES, TABLE), 1)
    assert float(of_image.abs().amax()) > 0
    assert float(of_table.abs().amax()) > 0


@pytest.mark.parametrize("method", ["transformer_attribution", "rollout", "raw", "lrp", "libra"])
def test_an_input_that_the_target_does_not_depend_on_gets_zero(method: str) -> None:
    """Logits beside those of the image: for each, zero is right for the other input."""
    attribution = METHODS[method](model("logits of its own"))
    of_image, of_table = attribution.attribute((IMAGES, TABLE), 1)
    assert float(of_image.abs().max()) > 0
    assert not bool(of_table.any())


@pytest.mark.parametrize("method", ["transformer_attribution", "rollout", "generic"])
def test_a_target_of_the_table_alone_is_refused(method: str) -> None:
    with pytest.raises(ExplanationError, match=r"input 1 makes no tokens.*target 5"):
        METHODS[method](model("logits of its own")).attribute((IMAGES, TABLE), 5)
    with pytest.raises(ExplanationError, match=r"input 1 makes no tokens.*target 4"):
        METHODS[method](model("logits of its own")).attribute((IMAGES, TABLE), [1, 4])


def test_a_target_of_the_table_has_relevance() -> None:
    found = TransformerLRP(model("logits of its own")).attribute((IMAGES, TABLE), 5)
    assert not bool(found[0].any())
    assert float(found[1].std()) > 0


# -- targets without inputs -----------------------------------------------------------------------

BEHIND: dict[str, Callable[[Tensor], Tensor]] = {
    "index of the best": lambda x: torch.cat([x, x.argmax(1, keepdim=True).double()], 1),
    "constant": lambda x: torch.cat([x, torch.ones(len(x), 1).double()], 1),
    "detached": lambda x: torch.cat([x, x.detach()[:, :1]], 1),
    "comparison": lambda x: torch.cat([x, (x[:, :1] > 0).double()], 1),
    "sign": lambda x: torch.cat([x, x[:, :1].sign()], 1),
    "zeros that are scaled": lambda x: 1.0 * torch.cat([x, torch.zeros(len(x), 1).double()], 1),
    "stacked": lambda x: torch.stack([*x.unbind(1), x.argmax(1).double()], 1),
    "padded": lambda x: torch.nn.functional.pad(x, (0, 1)),
    "written": lambda x: torch.zeros(len(x), 5).double().index_copy(1, torch.arange(4), x),
}


@pytest.mark.parametrize(
    ("method", "end"),
    [(method, "index of the best") for method in METHODS]
    + [(method, end) for method in ("transformer_attribution", "rollout", "lrp") for end in BEHIND],
)
def test_a_target_that_depends_on_no_input_is_an_error(method: str, end: str) -> None:
    attribution = METHODS[method](model(end=BEHIND[end]))
    with pytest.raises(ExplanationError, match=r"target 4 of example 0 depends on no input"):
        attribution.attribute(IMAGES, 4)


@pytest.mark.parametrize("method", METHODS)
def test_so_is_that_of_one_example(method: str) -> None:
    attribution = METHODS[method](model(end=BEHIND["index of the best"]))
    with pytest.raises(ExplanationError, match=r"target 4 of example 1 depends on no input"):
        attribution.attribute(IMAGES, [0, 4])


@pytest.mark.parametrize("method", METHODS)
def test_so_is_one_of_several_targets(method: str) -> None:
    attribution = METHODS[method](model(end=BEHIND["constant"]))
    with pytest.raises(ExplanationError, match=r"target 4 of example 0 depends on no input"):
        attribution.attribute_targets(IMAGES, [1, 4])


@pytest.mark.parametrize(
    ("method", "granularity"),
    [("transformer_attribution", "token"), ("raw", "token"), ("partial", "token"),
     ("lrp", "token"), ("attcat", "token"), ("partial", "matrix")],
)  # fmt: skip
def test_so_it_is_for_tokens(method: str, granularity: str) -> None:
    attribution = METHODS[method](model(end=BEHIND["constant"]))
    with pytest.raises(ExplanationError, match=r"depends on no input"):
        attribution.attribute(IMAGES, 4, granularity=granularity)


def test_so_it_is_in_an_explanation_and_in_pieces_and_for_heads() -> None:
    with pytest.raises(ExplanationError, match=r"depends on no input"):
        TransformerAttribution(model(end=BEHIND["constant"])).explain(IMAGES, 4)
    with pytest.raises(ExplanationError, match=r"depends on no input"):
        AttentionRollout(model(end=BEHIND["constant"])).attribute(IMAGES, 4, internal_batch_size=1)
    with pytest.raises(ExplanationError, match=r"depends on no input"):
        PartialLRP(model(end=BEHIND["constant"])).relevance_per_head(IMAGES, 4)


@pytest.mark.parametrize("end", BEHIND)
@pytest.mark.parametrize("method", ["transformer_attribution", "rollout", "lrp"])
def test_the_targets_beside_it_are_explained_as_ever(method: str, end: str) -> None:
    found = METHODS[method](model(end=BEHIND[end])).attribute(IMAGES, 1)
    expected = METHODS[method](model()).attribute(IMAGES, 1)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


# -- zeros that are right -------------------------------------------------------------------------


def test_a_grad_cam_that_is_cut_off_is_zero() -> None:
    """Entries are not negative: where all of them would be, the method says zero."""
    found = [AttentionGradCam(model()).attribute(IMAGES, target) for target in range(4)]
    assert [one.flatten(1).any(1).tolist() for one in found] == [
        [False, True], [False, True], [True, True], [True, True]
    ]  # fmt: skip


def test_all_zero_maps_together_take_two_more_forward_passes() -> None:
    network = model(end=lambda x: (x - 100).relu())
    calls = []
    network.register_forward_pre_hook(lambda *_: calls.append(1))
    GenericAttention(network).attribute_targets(IMAGES, [0, 1, 2, 3])
    assert len(calls) == 3
    calls.clear()
    network = model()
    network.register_forward_pre_hook(lambda *_: calls.append(1))
    TransformerAttribution(network).attribute_targets(IMAGES, [0, 1, 2, 3])
    assert len(calls) == 1


def test_an_answer_that_is_switched_off_has_a_zero_map() -> None:
    """A ReLU behind the logits: the target is computed from the input, its derivative is 0."""
    found = GenericAttention(model(end=lambda x: (x - 100).relu())).attribute(IMAGES, 1)
    assert not bool(found.any())


def test_a_black_image_has_no_relevance() -> None:
    found = TransformerLRP(model()).attribute(torch.zeros_like(IMAGES), 1)
    assert not bool(found.any())


# -- attention maps that no gradient arrives at ---------------------------------------------------


class WithoutGradient(nn.Module):
    """One block whose map is cut off from its derivative in one of several ways."""

    def __init__(self, cut: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.cut = cut
        self.patches, self.head = nn.Conv2d(3, 12, 8, 8), nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = x + self.cut((x @ x.mT).softmax(-1), x)
        return self.head(x.mean(1))


class RoundTheMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, map: Tensor, values: Tensor) -> Tensor:
        return map @ values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, grad


class NoDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, map: Tensor, values: Tensor) -> Tensor:
        return torch.bmm(map, values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, None


CUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "round the map": RoundTheMap.apply,
    "no derivative": NoDerivative.apply,
}


NO_GRADIENT = (
    "computes attention in a custom autograd function whose backward is not the derivative of its "
    "forward, so that its attention map has no gradient: write it with PyTorch functions"
)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("method", ["transformer_attribution", "generic", "grad_cam"])
def test_a_map_that_no_gradient_arrives_at_is_an_error(method: str, cut: str) -> None:
    torch.manual_seed(0)
    cut_off = WithoutGradient(CUTS[cut]).double().eval()
    with pytest.raises(ExplanationError, match=f"^WithoutGradient {NO_GRADIENT}"):
        METHODS[method](cut_off).attribute(IMAGES, 1)
    for other in (AttentionRollout, TransformerLRP):
        assert float(other(cut_off).attribute(IMAGES, 1).abs().max()) > 0


@pytest.mark.parametrize("granularity", ["input", "token"])
def test_that_of_yoso_is_such_a_map(granularity: Any) -> None:
    torch.manual_seed(0)
    config = YosoConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16, use_expectation=True,
    )  # fmt: skip
    yoso = YosoForSequenceClassification(config).eval()
    with pytest.raises(ExplanationError, match=f"^yoso.encoder.layer.0.attention.* {NO_GRADIENT}"):
        TransformerAttribution(yoso).attribute(
            torch.tensor([[5, 6, 7, 8]]), 1, granularity=granularity
        )
