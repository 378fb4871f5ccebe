"""What the explained output does not depend on needs no rule, and is never in the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    TimeSeriesTransformerConfig,
    TimeSeriesTransformerForPrediction,
)

from captum_transformer_lrp import (
    AttentionRollout,
    PartialLRP,
    TransformerAttribution,
    TransformerLRP,
    UnsupportedOperationError,
)
from tests.attr.methods import METHODS, each_once

Make = Callable[..., Any]

SIZES = {
    "vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2,
}  # fmt: skip
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
LABELS = {
    "single_label_classification": torch.tensor([1, 0]),
    "multi_label_classification": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
    "regression": torch.tensor([[0.5, 1.0], [2.0, 3.0]]),
}
"""For each kind of loss that a classifier computes of labels in its batch."""


@pytest.mark.parametrize(("method", "kind"), each_once(LABELS))
def test_labels_in_the_batch_change_nothing(method: str, kind: str) -> None:
    torch.manual_seed(1)
    config = BertConfig(**SIZES, problem_type=kind, num_labels=2)
    attribution = METHODS[method](BertForSequenceClassification(config).eval())
    expected = attribution.attribute(IDS, 1)
    found = attribution.attribute(IDS, 1, {"labels": LABELS[kind]})
    assert torch.equal(found, expected)
    assert float(expected.abs().max()) > 0


@pytest.mark.parametrize("method", ["transformer_attribution", "rollout", "lrp", "attcat"])
def test_neither_do_positions_of_an_answer(method: str) -> None:
    torch.manual_seed(0)
    model = BertForQuestionAnswering(BertConfig(**SIZES)).eval()
    attribution = METHODS[method](lambda ids, **kwargs: model(ids, **kwargs).start_logits)
    positions = {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([2, 3])}
    expected = attribution.attribute(IDS, 1)
    assert torch.equal(attribution.attribute(IDS, 1, positions), expected)


@pytest.mark.parametrize("method", ["transformer_attribution", "checkpointed", "raw", "lrp"])
def test_neither_do_router_losses(method: str) -> None:
    """They mix all tokens of all examples, which no explanation can tell apart."""
    torch.manual_seed(0)
    experts = {"num_key_value_heads": 2, "num_local_experts": 4}
    model = MixtralForCausalLM(MixtralConfig(**SIZES, **experts)).eval()
    attribution = METHODS[method](model)
    expected = attribution.attribute(IDS, (-1, 4))
    loss = {"output_router_logits": True, "labels": IDS}
    assert torch.equal(attribution.attribute(IDS, (-1, 4), loss), expected)


@pytest.mark.parametrize("method", ["transformer_attribution", "generic", "lrp"])
def test_neither_does_the_loss_of_an_encoder_decoder(method: str) -> None:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=30, d_model=16, d_ff=32, num_layers=2, num_heads=2, d_kv=8,
        decoder_start_token_id=0,
    )  # fmt: skip
    attribution = METHODS[method](T5ForConditionalGeneration(config).eval())
    shifted = torch.tensor([[0, 5, 6], [0, 9, 10]])
    expected = attribution.attribute(IDS, (1, 4), {"decoder_input_ids": shifted})
    labels = torch.tensor([[5, 6, 7], [9, 10, 11]])
    assert torch.equal(attribution.attribute(IDS, (1, 4), {"labels": labels}), expected)


@pytest.mark.parametrize("distribution", ["student_t", "normal", "negative_binomial"])
@pytest.mark.parametrize("method", ["transformer_attribution", "rollout", "lrp"])
def test_neither_does_the_likelihood_of_a_forecast(method: str, distribution: str) -> None:
    """Those of Student's t and the negative binomial distribution are made of ``lgamma``."""
    torch.manual_seed(0)
    config = TimeSeriesTransformerConfig(
        prediction_length=3, context_length=6, lags_sequence=[1, 2], d_model=16, encoder_layers=2,
        decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_time_features=2,
        distribution_output=distribution,
    )  # fmt: skip
    model = TimeSeriesTransformerForPrediction(config).eval()
    past, future = torch.rand(1, 8), torch.tensor([[1.0, 2.0, 3.0]])
    given = {
        "past_time_features": torch.randn(1, 8, 2), "past_observed_mask": torch.ones(1, 8),
        "future_time_features": torch.randn(1, 3, 2),
    }  # fmt: skip

    def with_loss(past_values: Tensor) -> Any:
        return model(past_values=past_values, future_values=future, **given).params[0]

    def alone(past_values: Tensor) -> Any:
        hidden = model.model(past_values=past_values, future_values=future, **given)[0]
        return model.output_params(hidden)[0]

    expected, found = (METHODS[method](one).attribute(past, 1) for one in (alone, with_loss))
    assert torch.equal(found, expected)


# -- heads beside the one that is explained -------------------------------------------------------


class TwoHeads(nn.Module):
    """A head beside the classifier, with an attention of its own and a call without a rule."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.when = when
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.blocks = nn.ModuleList(nn.MultiheadAttention(12, 2, batch_first=True) for _ in "ab")
        self.head = nn.Linear(12, 4)
        self.beside = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, images: Tensor) -> Any:
        x = self.patches(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x, x, x)[0]
        aside = self.aside(x) if self.when == "before" else None
        logits = self.head(x.mean(1))
        if self.when == "after":
            aside = self.aside(x)
        return (logits, aside) if self.when != "never" else logits

    def aside(self, x: Tensor) -> Tensor:
        x = x + self.beside(x, x, x)[0]
        return self.head(torch.cumprod(x, 1).mean(1))


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()


def two_heads(when: str) -> nn.Module:
    torch.manual_seed(0)
    return TwoHeads(when).double().eval()


@pytest.mark.parametrize(("method", "when"), each_once(["before", "after"]))
def test_a_head_beside_is_none_of_the_models_layers(method: str, when: str) -> None:
    """Its attention would be the last one: for some methods that is the one explained."""
    expected = METHODS[method](two_heads("never")).attribute(IMAGES, 1)
    found = METHODS[method](two_heads(when)).attribute(IMAGES, 1)
    assert torch.equal(found, expected)


def test_what_is_beside_is_not_reported() -> None:
    explanation = TransformerAttribution(two_heads("before")).explain(IMAGES, 1)
    assert [one.name for one in explanation.attentions] == ["blocks.0", "blocks.1"]
    assert float((explanation.total - 1).abs().max()) < 1e-9


# -- where something arrives it is an error -------------------------------------------------------


class Inside(nn.Module):
    """One attention; ``inside`` is applied at one place."""

    def __init__(self, inside: Callable[[Tensor], Tensor], place: str) -> None:
        super().__init__()
        self.inside, self.place = inside, place
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 12))
        self.head = nn.Linear(12, 4)

    def at(self, place: str, x: Tensor) -> Tensor:
        return self.inside(x) if place == self.place else x

    def forward(self, images: Tensor) -> Tensor:
        x = self.at("tokens", self.patches(images).flatten(2).transpose(1, 2))
        x = x + self.attention(x, x, x)[0]
        x = x + self.at("mlp", self.mlp(x))
        return self.at("logits", self.head(x.mean(1)))


def inside(function: Callable[[Tensor], Tensor], place: str) -> nn.Module:
    torch.manual_seed(0)
    return Inside(function, place).double().eval()


def cumulative(x: Tensor) -> Tensor:
    return torch.cumprod(x, 1)


@pytest.mark.parametrize(
    ("method", "place"),
    [
        ("transformer_attribution", "logits"), ("transformer_attribution", "mlp"),
        ("checkpointed", "mlp"), ("rollout", "logits"), ("rollout", "tokens"),
        ("generic", "logits"), ("partial", "mlp"), ("lrp", "tokens"), ("lrp", "mlp"),
        ("libra", "logits"),
    ],
)  # fmt: skip
def test_a_call_without_a_rule_on_the_way_is_named(method: str, place: str) -> None:
    message = r"cumprod, called by .*register_rule.*module\.rule.*strict=False"
    with pytest.raises(UnsupportedOperationError, match=message):
        METHODS[method](inside(cumulative, place)).attribute(IMAGES, 1)


@pytest.mark.parametrize("method", ["rollout", "raw", "generic", "attcat"])
def test_methods_that_send_nothing_through_an_mlp_need_no_rule_there(method: str) -> None:
    """Of these, gradients alone go through it, which need none."""
    found = METHODS[method](inside(cumulative, "mlp")).attribute(IMAGES, 1)
    assert float(found.abs().max()) > 0


def test_a_loss_that_is_explained_itself_is_refused() -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES)).eval()

    def losses(ids: Tensor) -> Tensor:
        return F.cross_entropy(model(ids).logits, torch.tensor([1, 0]), reduction="none")

    with pytest.raises(UnsupportedOperationError, match="cross_entropy"):
        TransformerAttribution(losses).attribute(IDS)


NO_EQ_2: dict[str, Callable[[Tensor], Tensor]] = {
    "correlations": lambda x: torch.stack([torch.corrcoef(one.mT) for one in x]),
    "angles": lambda x: torch.atan2(x, x.roll(1, 1)),
    "copied signs": lambda x: torch.copysign(torch.ones_like(x), x),
    "eigenvectors": lambda x: torch.linalg.eigh(x[:, :12] + x[:, :12].mT).eigenvectors,
    "orthogonal factors": lambda x: torch.linalg.qr(x).Q,
}
"""Functions with f(λx) = f(x): the sum of x ∂f/∂x, by which eq. 2 divides, is 0 by Euler."""


@pytest.mark.parametrize("name", NO_EQ_2)
def test_eq_2_is_not_advised_where_it_divides_by_nothing(name: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=r"strict=False is of no use"):
        TransformerLRP(inside(NO_EQ_2[name], "tokens")).attribute(IMAGES[:1], 1)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.hypot(x, x.roll(1, 1)), lambda x: torch.logcumsumexp(x, 1),
        torch.special.i0, torch.sinh, torch.special.erfcx,
    ],
    ids=["hypot", "logcumsumexp", "i0", "sinh", "erfcx"],
)  # fmt: skip
def test_it_is_advised_and_helps_elsewhere(function: Callable[[Tensor], Tensor]) -> None:
    model = inside(function, "tokens")
    with pytest.raises(UnsupportedOperationError, match=r"or pass strict=False"):
        TransformerLRP(model).attribute(IMAGES, 1)
    found = TransformerLRP(model, strict=False).attribute(IMAGES, 1)
    assert bool(found.isfinite().all())
    assert float(found.abs().max()) > 0


@pytest.mark.parametrize("take", [0, 1], ids=["first", "second"])
def test_each_of_several_outputs_follows_eq_2(take: int) -> None:
    """Eq. 2 is about one output at a time."""
    try:
        torch.aminmax(torch.ones(2, requires_grad=True))[0].backward()
    except RuntimeError as error:
        pytest.skip(f"torch {torch.__version__}: {error}")

    def both(x: Tensor) -> Tensor:
        return torch.cat([torch.aminmax(x, dim=1, keepdim=True)[take], x[:, 1:]], 1)

    with pytest.raises(UnsupportedOperationError, match="aminmax"):
        TransformerLRP(inside(both, "tokens")).attribute(IMAGES, 1)
    found = TransformerLRP(inside(both, "tokens"), strict=False).attribute(IMAGES, 1)

    def chosen(x: Tensor) -> Tensor:
        extreme = (torch.amin, torch.amax)[take]
        return torch.cat([extreme(x, 1, keepdim=True), x[:, 1:]], 1)

    expected = TransformerLRP(inside(chosen, "tokens")).attribute(IMAGES, 1)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


# -- results of calls that nobody is told of ------------------------------------------------------


class Doubled(torch.autograd.Function):
    """An operation outside of PyTorch: what it computes, nobody is told."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(2 * x.detach().numpy())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_of_such_a_call_is_in_nobodys_way(method: str) -> None:
    """As fused kernels of losses are: it is added to others, divided and returned."""
    model = two_heads("never")

    def with_loss(images: Tensor) -> Any:
        logits = model(images)
        loss = Doubled.apply(logits).mean() / 2 + logits.square().mean()
        return logits, loss + Doubled.apply(logits).sum()

    expected = METHODS[method](model).attribute(IMAGES, 1)
    assert torch.equal(METHODS[method](with_loss).attribute(IMAGES, 1), expected)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("method", "place"),
    [(TransformerAttribution, "tokens"), (TransformerAttribution, "mlp"), (TransformerLRP, "mlp"),
     (AttentionRollout, "tokens"), (TransformerLRP, "tokens"), (PartialLRP, "mlp")],
)  # fmt: skip
def test_on_the_way_it_is_named(method: Make, place: str, strict: bool) -> None:
    with pytest.raises(UnsupportedOperationError, match=r"Doubled.*write it with PyTorch") as error:
        method(inside(Doubled.apply, place), strict=strict).attribute(IMAGES, 1)
    assert "strict" not in str(error.value)
