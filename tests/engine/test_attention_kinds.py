"""What counts as an attention, and how mass passes it: against dense closed forms in float64.

Tolerances of 1e-9 leave room for rounding only.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer_lrp import NoAttentionError, TransformerAttribution, TransformerLRP
from captum_transformer_lrp.attr.explanation import Explanation

WIDTH, TOKENS = 6, 5


class Reader(nn.Module):
    """Adds what ``mix`` makes of queries, keys and values, and reads the answer off token 0."""

    def __init__(self, mix: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.mix = mix
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.learned = nn.Parameter(torch.randn(1, WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def mixed(self, x: Tensor) -> Tensor:
        return self.mix(self.q(x), self.k(x), self.v(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.mixed(x))[:, 0])


class Pooling(Reader):
    """A learned query gathers the answer from all tokens; no skip connection."""

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.learned @ self.k(x).mT).softmax(-1)
        return self.head((weights @ self.v(x))[:, 0])


def factorised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q @ (k.softmax(1).mT @ v)


def factorised_by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    context = torch.einsum("nts,ntc->nsc", k.softmax(1), v)
    return torch.einsum("nis,nsc->nic", q, context)


def with_residual_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Multiscale vision transformers add the queries to what attention returns."""
    return (q @ k.mT).softmax(-1) @ v + q


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.relu(q) @ (F.relu(k).mT @ v)


def softmax_over_features(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q @ (k.softmax(-1).mT @ v)


def made(mix: Callable[[Tensor, Tensor, Tensor], Tensor], kind: type[Reader] = Reader) -> Reader:
    torch.manual_seed(0)
    return kind(mix).double().eval()


def tokens() -> Tensor:
    return torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).double()


def explained(model: nn.Module, **options: bool) -> Explanation:
    explanation = TransformerAttribution(model).explain(tokens(), [0, 2], **options)
    assert float((explanation.total - 1).abs().max()) < 1e-9
    with torch.no_grad():
        assert torch.allclose(explanation.output, model(tokens()), rtol=1e-12, atol=1e-12)
    return explanation


def by_token(explanation: Explanation) -> Tensor:
    assert isinstance(explanation.attributions, Tensor)
    return explanation.attributions.sum(-1)


@pytest.mark.parametrize("mix", [factorised, factorised_by_einsum])
def test_factorised_attention_averages_values_by_a_softmax_over_keys(
    mix: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    """``Q · (softmax(K)ᵀ · V)``: queries share mass among slots, each slot's map among tokens."""
    model = made(mix)
    explanation = explained(model)
    (attention,) = explanation.attentions
    x = tokens()
    with torch.no_grad():
        q, k, v = model.q(x), model.k(x), model.v(x)
        weights = k.softmax(1)
        assert torch.allclose(attention.attention.reshape(weights.mT.shape), weights.mT)
        context = weights.mT @ v
        sizes = q[:, 0, :, None].abs() * context.abs()  # (N, slots, features), for token 0
        of_context = sizes / sizes.sum(1, keepdim=True) / WIDTH
        slot_to_token = attention.weighted.reshape(weights.mT.shape)
        expected = torch.einsum("nst,nsc->nt", slot_to_token, of_context)
    assert torch.allclose(by_token(explanation), expected, rtol=1e-9, atol=0)


def test_pooling_by_a_learned_query_is_attention() -> None:
    model = made(factorised, Pooling)
    explanation = explained(model)
    (attention,) = explanation.attentions
    assert torch.allclose(by_token(explanation), attention.weighted.reshape(2, TOKENS), rtol=1e-9)


def test_a_skip_connection_within_the_attention_branch_hides_no_attention() -> None:
    """``x + (A·V + Q)`` has two skips around the attention: 2 I + (∇A ⊙ R)⁺."""
    explanation = explained(made(with_residual_queries), keep_identity=True)
    (attention,) = explanation.attentions
    expected = attention.weighted.reshape(2, TOKENS, TOKENS)[:, 0].clone()
    expected[:, 0] += 2
    assert torch.allclose(by_token(explanation), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("mix", [linear, softmax_over_features])
def test_what_is_no_mean_of_values_is_no_attention_and_is_named(
    mix: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = made(mix)

        def forward(self, x: Tensor) -> Tensor:
            return self.mixer(x)

    model = Named().double().eval()
    with pytest.raises(NoAttentionError, match=r"no softmax attention.*mixer.*TransformerLRP"):
        TransformerAttribution(model).attribute(tokens(), 1)
    attributions, delta = TransformerLRP(model).attribute(
        tokens(), 1, return_convergence_delta=True
    )
    assert attributions.shape == tokens().shape
    assert torch.allclose(attributions.sum((1, 2)) + delta, torch.ones(2).double())


def test_a_model_without_any_attention_has_relevance() -> None:
    """Without biases or other parameters to absorb it, all of it arrives."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(TOKENS * WIDTH, 8), nn.ReLU(), nn.Linear(8, 3)
    ).double()
    attributions, delta = TransformerLRP(model).attribute(
        tokens(), 1, return_convergence_delta=True
    )
    assert float(delta.abs().max()) < 1e-9
    assert torch.allclose(attributions.sum((1, 2)), torch.ones(2).double())


def test_scores_are_forgotten_at_a_skip_connection_and_at_a_norm() -> None:
    """A softmax above a block of linear attention is not over that block's products."""

    class TwoBlocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = made(linear), made(softmax_over_features)
            self.norm = nn.LayerNorm(WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.norm(x + self.first.mixed(x)))

    with pytest.raises(NoAttentionError):
        TransformerAttribution(TwoBlocks().double().eval()).attribute(tokens(), 1)


def test_a_class_token_added_to_a_projection_is_no_bias_in_a_batch_of_one() -> None:
    """``cls.expand(1, …)`` has the shape of a bias, but takes its share as in any batch."""

    class ClassAttention(Reader):
        def forward(self, x: Tensor) -> Tensor:
            token = self.learned.unsqueeze(0).expand(len(x), -1, -1)
            joined = torch.cat([token, x], 1)
            weights = (self.q(joined[:, :1]) @ self.k(joined).mT).softmax(-1)
            scaled = 0.5 * self.learned[0].cos() * self.v(weights @ joined)  # a layer scale
            return self.head((token + scaled)[:, 0])

    method = TransformerAttribution(made(factorised, ClassAttention))
    batch = method.explain(tokens(), 1)
    single = method.explain(tokens()[:1], 1)
    assert torch.allclose(batch.relevances[0][:1], single.relevances[0], rtol=1e-9, atol=1e-12)
    for name, share in single.absorbed.items():
        assert torch.allclose(batch.absorbed[name][:1], share, rtol=1e-9, atol=1e-12)


def gated_by_a_part_of_the_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """iFormer's: values and gate are two parts of one projection."""
    values, gate = torch.cat([v, v.flip(-1)], -1).sigmoid().chunk(2, -1)
    return ((q @ k.mT).softmax(-1) @ values) * gate


def test_a_gate_beside_an_attention_takes_no_mass_from_it() -> None:
    explanation = explained(made(gated_by_a_part_of_the_values))
    (attention,) = explanation.attentions
    expected = attention.weighted.reshape(2, TOKENS, TOKENS)[:, 0]
    assert expected.any()
    assert torch.allclose(by_token(explanation), expected, rtol=1e-9, atol=0)
