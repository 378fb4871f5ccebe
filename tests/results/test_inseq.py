"""The methods of this library in inseq: its tables hold the numbers of this library.

inseq is needed for nothing else: ``pip install inseq`` to run these tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from captum_transformer_lrp import TransformerAttribution, TransformerLRP, explain_generation
from captum_transformer_lrp.inseq_methods import register_methods
from tests.letters.data import MODELS, NAMES, trained
from tests.letters.data import tokenizer as of_letters

inseq = pytest.importorskip("inseq")

PROMPT, TEXT = "f H g I b e g b ?", "f H g I b e g b ? H I"
WORDS = ["[PAD]", "</s>", *"abcdefgh"]


@pytest.fixture(scope="module", autouse=True)
def names() -> set[str]:
    assert register_methods() == register_methods()  # again, nothing happens
    return set(register_methods())


@pytest.fixture(scope="module", params=list(MODELS))
def letters(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    model, tokenizer = trained(request.param), of_letters()
    tokenizer.bos_token = tokenizer.eos_token = "[PAD]"  # without which inseq reads no tokenizer
    model.config.bos_token_id = model.config.eos_token_id = 0
    model.config.name_or_path = request.param
    return model, tokenizer


def attribute(model: Any, tokenizer: Any, method: str, *texts: Any, **options: Any) -> Any:
    loaded = inseq.load_model(model, method, tokenizer=tokenizer, model_kwargs={})
    options = {"attributed_fn": "logit", "show_progress": False, **options}
    return loaded.attribute(*texts, **options).sequence_attributions


@pytest.mark.parametrize(
    "method",
    [
        "attnlrp",
        "cp_lrp",
        "transformer_lrp",
        "transformer_attribution",
        "attention_rollout",
        "alti",
    ],
)
def test_maps_are_those_of_explain_generation(letters: tuple[Any, Any], method: str) -> None:
    (found,) = attribute(*letters, method, PROMPT, TEXT)
    expected = explain_generation(*letters, PROMPT, continuation="H I", method=method)
    maps = torch.nan_to_num(found.target_attributions).numpy()
    np.testing.assert_allclose(maps, expected.maps.T, rtol=1e-3, atol=1e-5)
    assert [one.token for one in found.target[:9]] == PROMPT.split()


def test_the_letter_that_was_copied_is_found(letters: tuple[Any, Any]) -> None:
    (found,) = attribute(*letters, "attnlrp", PROMPT)  # the model writes
    assert torch.nan_to_num(found.target_attributions)[:8, :2].argmax(0).tolist() == [1, 3]


def test_a_probability_is_explained_as_a_function(letters: tuple[Any, Any]) -> None:
    model, tokenizer = letters
    (found,) = attribute(*letters, "attnlrp", PROMPT, PROMPT + " H", attributed_fn="probability")
    expected = TransformerLRP(model, preset="attnlrp").attribute(
        tokenizer(PROMPT, return_tensors="pt")["input_ids"],
        target=lambda logits: logits[:, -1].softmax(-1)[:, NAMES.index("H")],
        additional_forward_args={"use_cache": False},
    )
    torch.testing.assert_close(found.target_attributions[:9, 0], expected[0], rtol=1e-3, atol=1e-6)


def test_a_contrast_is_a_difference_of_maps(letters: tuple[Any, Any]) -> None:
    (found,) = attribute(
        *letters, "attnlrp", PROMPT, PROMPT + " H", attributed_fn="contrast_logits_diff",
        contrast_targets=PROMPT + " I",
    )  # fmt: skip
    expected = explain_generation(*letters, PROMPT, target="H", instead_of="I")
    np.testing.assert_allclose(
        found.target_attributions[:9, 0].numpy(), expected.maps[0], rtol=1e-3, atol=1e-5
    )


def test_options_are_those_of_the_class(letters: tuple[Any, Any]) -> None:
    model, tokenizer = letters
    loaded = inseq.load_model(model, "transformer_lrp", tokenizer=tokenizer, preset="cp_lrp")
    found = loaded.attribute(PROMPT, TEXT, attributed_fn="logit", show_progress=False)
    expected = explain_generation(*letters, PROMPT, continuation="H I", method="cp_lrp")
    np.testing.assert_allclose(
        torch.nan_to_num(found.sequence_attributions[0].target_attributions).numpy(),
        expected.maps.T, rtol=1e-3, atol=1e-5,
    )  # fmt: skip


def test_every_name_is_one_of_inseq_s(names: set[str]) -> None:
    assert {"attnlrp", "transformer_attribution"} < names
    assert names < set(inseq.list_feature_attribution_methods())
    assert "saliency" not in names  # inseq's own


def bart() -> Any:
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=len(WORDS), d_model=16, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
            decoder_ffn_dim=16, max_position_embeddings=32, pad_token_id=0, bos_token_id=1,
            eos_token_id=1, decoder_start_token_id=0, forced_eos_token_id=None,
        )
    )  # fmt: skip


def t5() -> Any:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


@pytest.mark.parametrize("attribute_target", [False, True])
@pytest.mark.parametrize("build", [bart, t5])
def test_an_encoder_and_a_decoder_have_a_map_each(build: Any, attribute_target: bool) -> None:
    torch.manual_seed(0)
    model = build().eval()
    model.config.name_or_path = "small"
    inside = Tokenizer(WordLevel({name: place for place, name in enumerate(WORDS)}, "[PAD]"))
    inside.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inside, pad_token="[PAD]", unk_token="[PAD]", bos_token="</s>",
        eos_token="</s>",
    )  # fmt: skip
    (found,) = attribute(
        model, tokenizer, "transformer_attribution", "a b c d", "e f g",
        attribute_target=attribute_target,
    )  # fmt: skip

    def logits(input_ids: Any, decoder_input_ids: Any) -> Any:
        return model(input_ids=input_ids, decoder_input_ids=decoder_input_ids).logits

    source, written = tokenizer("a b c d", return_tensors="pt")["input_ids"], [0, 6, 7, 8]
    for step in range(1, 4):
        pair = source, torch.tensor([written[:step]])
        expected = TransformerAttribution(logits).attribute(pair, target=(step - 1, written[step]))
        torch.testing.assert_close(
            found.source_attributions[:4, step - 1], expected[0][0], rtol=1e-3, atol=1e-6
        )
        if attribute_target:
            torch.testing.assert_close(
                found.target_attributions[:step, step - 1], expected[1][0], rtol=1e-3, atol=1e-6
            )


def test_a_batch_is_its_texts_one_by_one(letters: tuple[Any, Any]) -> None:
    other = "a b K c J d e f ?"
    both = attribute(*letters, "attnlrp", [PROMPT, other])
    for text, found in zip((PROMPT, other), both, strict=True):
        (alone,) = attribute(*letters, "attnlrp", text)
        torch.testing.assert_close(
            torch.nan_to_num(found.target_attributions),
            torch.nan_to_num(alone.target_attributions), rtol=1e-3, atol=1e-5,
        )  # fmt: skip
