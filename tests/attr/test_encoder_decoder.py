"""Encoder–decoder models: both inputs are attributed, and mass goes from decoder to encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from captum_transformer_lrp import TransformerAttribution

IDS = torch.tensor([[5, 6, 7, 11, 2], [12, 13, 9, 4, 2]])
DECODER_IDS = torch.tensor([[3, 8, 10], [3, 15, 16]])
TARGET = (1, 9)


def t5() -> Any:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=30, d_model=24, d_kv=6, d_ff=32, num_layers=1, num_heads=4,
        decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).double().eval()


def bart(kind: Any = BartForConditionalGeneration) -> Any:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=30, d_model=24, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=4, decoder_attention_heads=4,
        max_position_embeddings=16, pad_token_id=1, eos_token_id=2, num_labels=3,
        decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    return kind(config).double().eval()


def forward(model: Any) -> Callable[..., Tensor]:
    def logits(input_ids: Tensor, decoder_input_ids: Tensor, **more: Any) -> Tensor:
        found: Tensor = model(
            input_ids=input_ids, decoder_input_ids=decoder_input_ids, **more
        ).logits
        return found

    return logits


@pytest.fixture(scope="module", params=[t5, bart], ids=["t5", "bart"])
def function(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    return forward(request.param())


def test_both_inputs_are_attributed_as_a_tuple(function: Callable[..., Tensor]) -> None:
    found = TransformerAttribution(function).attribute((IDS, DECODER_IDS), TARGET)
    assert isinstance(found, tuple)
    of_encoder, of_decoder = found
    assert of_encoder.shape == IDS.shape
    assert of_decoder.shape == DECODER_IDS.shape
    assert of_encoder.sum() > 0
    assert of_decoder.sum() > 0
    assert not of_decoder[:, 2].any()  # after the position that is explained


def test_relevance_is_conserved_over_both_inputs(function: Callable[..., Tensor]) -> None:
    found = TransformerAttribution(function).explain((IDS, DECODER_IDS), TARGET)
    assert torch.allclose(found.total, torch.ones(2).double(), atol=1e-6)
    sums = [one.flatten(1).sum(1).abs() for one in found.relevances]
    assert all((one > 1e-6).all() for one in sums)


def test_masses_are_the_rollout_as_dense_matrices(function: Callable[..., Tensor]) -> None:
    r"""With one layer each: e_p D for the decoder's tokens, e_p X (I + E) for the encoder's.

    E, D and X are E_h(∇A ⊙ R)⁺ of the encoder's self-attention, the decoder's and the
    cross-attention; e_p is the position whose logit is explained.
    """
    found = TransformerAttribution(function).explain((IDS, DECODER_IDS), TARGET)
    assert len(found.attentions) == 3
    of_encoder, of_decoder, cross = (maps.weighted.mean(1) for maps in found.attentions)
    assert cross.shape == (2, 3, 5)
    row = torch.eye(3).double()[TARGET[0]].expand(2, 1, 3)
    decoder = row @ of_decoder
    encoder = row @ cross @ (torch.eye(5).double() + of_encoder)
    assert isinstance(found.attributions, tuple)
    assert torch.allclose(found.attributions[0], encoder.squeeze(1), atol=1e-12)
    assert torch.allclose(found.attributions[1], decoder.squeeze(1), atol=1e-12)


def test_examples_do_not_touch_each_other(function: Callable[..., Tensor]) -> None:
    method = TransformerAttribution(function)
    both = method.attribute((IDS, DECODER_IDS), TARGET)
    for place in range(2):
        cut = slice(place, place + 1)
        single = method.attribute((IDS[cut], DECODER_IDS[cut]), TARGET)
        for one, other in zip(both, single, strict=True):
            assert torch.allclose(one[cut], other, atol=1e-12)


def test_padding_of_the_encoder_gets_exactly_zero(function: Callable[..., Tensor]) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    found = TransformerAttribution(function).attribute(
        (IDS, DECODER_IDS), TARGET, {"attention_mask": mask}
    )
    assert not found[0][mask == 0].any()
    assert (found[0][mask == 1] > 0).all()


def test_ids_that_a_model_shifts_for_its_decoder_are_the_input_s_tokens() -> None:
    """BART's classifier gives its ids to the encoder and, shifted, to the decoder."""
    model = bart(BartForSequenceClassification)

    def by_hand(input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        found: Tensor = model(input_ids=input_ids, decoder_input_ids=decoder_input_ids).logits
        return found

    shifted = torch.cat([torch.full((2, 1), 2), IDS[:, :-1]], 1)
    whole = TransformerAttribution(model).explain(IDS, 1)
    parts = TransformerAttribution(by_hand).explain((IDS, shifted), 1)
    expected = parts.relevances[0].clone()
    expected[:, :-1] += parts.relevances[1][:, 1:]
    assert torch.allclose(whole.relevances[0], expected, atol=1e-12)
    assert torch.allclose(whole.total, torch.ones(2).double(), atol=1e-6)
