"""Mixtures of experts: however they are computed, one explanation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForSequenceClassification

from captum_transformer_lrp import TransformerAttribution


@pytest.fixture(scope="module")
def explained() -> dict[str, Any]:
    """A small Mixtral in float32, explained with each way to compute its experts."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=40, hidden_size=32, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_labels=3,
        pad_token_id=0,
    )  # fmt: skip
    model = MixtralForSequenceClassification(config).eval()
    ids = torch.randint(1, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    found = {}
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        model.set_experts_implementation(implementation)
        found[implementation] = TransformerAttribution(model).explain(ids, 1)
    return found


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_every_way_to_compute_experts_has_one_explanation(
    explained: dict[str, Any], implementation: str
) -> None:
    found, expected = explained[implementation], explained["eager"]
    assert torch.allclose(found.relevances[0], expected.relevances[0], atol=1e-5)
    assert torch.allclose(found.attributions, expected.attributions, atol=1e-6)


def test_a_router_s_softmax_is_no_attention(explained: dict[str, Any]) -> None:
    names = [maps.name for maps in explained["eager"].attentions]
    assert names == ["model.layers.0.self_attn", "model.layers.1.self_attn"]


def test_relevance_through_experts_is_conserved(explained: dict[str, Any]) -> None:
    assert torch.allclose(explained["eager"].total, torch.ones(3), atol=1e-6)
