"""Heads and inputs of transformers beyond one class for one sentence."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor, nn

from captum_transformer_lrp import BiAttention, TransformerAttribution, TransformerLRP

PAD = 0
BERT = transformers.BertConfig(
    vocab_size=20,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    num_labels=2,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# -- multiple choice: (N, choices, S) --------------------------------------------------------------


@pytest.fixture
def choices() -> Tensor:
    ids = torch.randint(3, 20, (2, 3, 6))
    ids[0, 1, 4:] = PAD
    return ids


@pytest.mark.parametrize("method", [TransformerAttribution, TransformerLRP])
def test_the_choice_that_is_explained_gets_everything(method: type, choices: Tensor) -> None:
    model = transformers.BertForMultipleChoice(BERT).eval()
    mask = {"attention_mask": (choices != PAD).long()}
    found = method(model).attribute(choices, 1, mask)
    assert found.shape == choices.shape
    assert found[:, 1].any()
    assert not found[:, [0, 2]].any()
    assert not found[0, 1, 4:].any()
    alone = method(model).attribute(choices[:1], 1, {"attention_mask": mask["attention_mask"][:1]})
    torch.testing.assert_close(found[:1], alone, rtol=1e-5, atol=1e-6)  # in float32


# -- question answering ----------------------------------------------------------------------------


def test_an_output_without_logits_is_an_error_that_names_what_there_is(choices: Tensor) -> None:
    model = transformers.BertForQuestionAnswering(BERT).eval()
    with pytest.raises(TypeError, match=r"\['end_logits', 'start_logits'\].*\['end_logits'\]"):
        TransformerAttribution(model).attribute(choices[:, 0], 1)
    start = TransformerAttribution(lambda *args: model(*args)["start_logits"])
    assert start.attribute(choices[:, 0], 1).shape == (2, 6)


# -- Longformer: as many global tokens as each example has -----------------------------------------


@pytest.fixture
def longformer() -> nn.Module:
    config = transformers.LongformerConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        attention_window=[8, 8],
        max_position_embeddings=32,
        pad_token_id=PAD,
    )
    return transformers.LongformerForSequenceClassification(config).double().eval()


@pytest.mark.parametrize("of_second", [[0], [0, 4, 5], []])
def test_examples_with_different_global_tokens_are_explained_together(
    longformer: nn.Module, of_second: list[int]
) -> None:
    ids = torch.randint(3, 20, (2, 16))
    attends_globally = torch.zeros_like(ids)
    attends_globally[0, [0, 3]] = 1
    attends_globally[1, of_second] = 1
    method = TransformerAttribution(longformer)
    arguments = {"attention_mask": torch.ones_like(ids), "global_attention_mask": attends_globally}
    explanation = method.explain(ids, 1, arguments)
    torch.testing.assert_close(explanation.total, torch.ones(2).double(), rtol=0, atol=1e-9)
    for one in range(2):
        of_one = {name: value[one : one + 1] for name, value in arguments.items()}
        alone = method.attribute(ids[one : one + 1], 1, of_one)
        found = explanation.attributions[one : one + 1]
        torch.testing.assert_close(found, alone, rtol=1e-7, atol=1e-12)


# -- padding whose embedding is zero ---------------------------------------------------------------


def test_padding_without_length_is_no_nan_in_biattention() -> None:
    config = transformers.LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        pad_token_id=PAD,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.tensor([[PAD, PAD, 5, 6, 7]])
    found = BiAttention(model).attribute(ids, (4, 3), {"attention_mask": (ids != PAD).long()})
    assert found[0, 2:].any()
    assert not found[0, :2].any()
