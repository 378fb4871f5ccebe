"""Every causal language model of transformers writes, and what it writes is explained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from captum_transformer_lrp import ArgumentError, ExplanationError, explain_generation
from tests.sweep.timm_models import draw_zero_weights
from tests.sweep.transformers_configs import TRAINING, tiny_config
from tests.sweep.transformers_models import VOCABULARY

LOOKS_AHEAD = ("cpmant", "prophetnet", "xlm", "xlnet")
REFUSED = {"deepseek_v4": "NaN"}
NOT_SMALL = {
    "bailing_hybrid", "bamba", "blt", "dbrx", "deepseek_v32", "dots1", "dots3_note",
    "dots3_note_text", "emu3", "gemma3n", "gemma3n_text", "gemma4", "gemma4_assistant",
    "gemma4_text", "gemma4_unified", "gemma4_unified_assistant", "gemma4_unified_text",
    "glm_moe_dsa", "granitemoehybrid", "kimi_linear", "lfm2_moe", "llama4", "longcat_flash",
    "mamba2", "musicgen", "musicgen_melody", "qwen3_5", "qwen3_5_moe", "qwen4_exp",
    "qwen4_exp_text", "recurrent_gemma", "reformer", "xlstm", "zaya",
}  # fmt: skip
"""Families whose settings do not fit together when each of them is small."""
FEW = ("gpt2", "llama", "qwen3", "bloom", "mistral", "opt")
WORDS = [f"w{number}" for number in range(VOCABULARY)]


def tokenizer() -> Any:
    inside = Tokenizer(WordLevel({name: place for place, name in enumerate(WORDS)}, "w0"))
    inside.pre_tokenizer = WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inside, pad_token="w0")


@pytest.mark.parametrize(
    "kind",
    [
        *FEW,
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
            if kind not in NOT_SMALL.union(FEW)
        ),
    ],
)
def test_a_family_explains_each_written_word_by_those_before_it(kind: str) -> None:
    model = small(kind)
    prompt = " ".join(WORDS[place] for place in (5, 9, 7, 12, 30))
    if kind in LOOKS_AHEAD:
        with pytest.raises(ArgumentError, match="changes with the tokens behind it"):
            explain_generation(model, tokenizer(), prompt, continuation=" w8 w40 w21")
        return
    if kind in REFUSED:
        with pytest.raises(ExplanationError, match=REFUSED[kind]):
            explain_generation(model, tokenizer(), prompt, continuation=" w8 w40 w21")
        return
    found = explain_generation(model, tokenizer(), prompt, continuation=" w8 w40 w21")
    assert found.maps.shape == (3, 8)
    for row in range(3):
        assert np.abs(found.maps[row, : 5 + row]).max() > 0
        # A token that comes later has no part; rotations and recurrences round.
        assert np.abs(found.maps[row, 5 + row :]).max() <= 1e-6 * np.abs(found.maps[row]).max()


def small(kind: str) -> Any:
    """A model of random weights, in evaluation mode."""
    torch.manual_seed(0)
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    ids = torch.tensor([[5, 9, 7]])
    config = tiny_config(kind)
    config.is_decoder = True  # without it, those of BERT's kind look at later words
    model = getattr(transformers, name if isinstance(name, str) else name[0])(config)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    model = model.train() if kind in TRAINING else model.eval()
    draw_zero_weights(model)
    model(ids)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(NOT_SMALL))
def test_a_family_that_is_left_out_cannot_be_built(kind: str) -> None:
    with pytest.raises(Exception, match=r"\w"):  # whatever its settings raise
        small(kind)
