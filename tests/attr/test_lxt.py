"""AttnLRP and CP-LRP are what their authors' library computes, on models that nobody patched.

The numbers are lxt's own, made by tests/reference/make_lxt.py in an environment of its own.  What
is left between the two is float32: lxt's RMSNorm computes in it, whatever the model's precision,
and its activations divide by x + 1e-10.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from captum_transformer_lrp import TransformerLRP

REFERENCE = Path(__file__).resolve().parents[1] / "reference"


def build(name: str) -> nn.Module:
    if name == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=20, n_positions=12, n_embd=16, n_layer=2, n_head=2)
        )
    if name == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=20,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=12,
            )
        )
    if name == "bert":
        return BertForSequenceClassification(
            BertConfig(
                vocab_size=20,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=24,
                max_position_embeddings=12,
                num_labels=3,
            )
        )
    return VisionTransformer(16, 8, 2, 2, 16, 24, num_classes=3)


CASES = [
    ("gpt2", "attnlrp"),
    ("gpt2", "cp_lrp"),
    ("llama", "attnlrp"),
    ("llama", "cp_lrp"),
    ("bert", "attnlrp"),
    ("vit", "cp_lrp"),
]


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_relevance_is_lxt_s(name: str, preset: str) -> None:
    with np.load(REFERENCE / f"lxt_{name}_{preset}.npz") as found:
        kept = {key: torch.from_numpy(found[key]) for key in found.files}
    model = build(name).double().eval()
    state = {key[6:]: value for key, value in kept.items() if key.startswith("state.")}
    model.load_state_dict(state, strict=False)
    inputs, expected = kept["inputs"], kept["relevance"]
    target: Any = (6, 5) if name in ("gpt2", "llama") else 1
    method = TransformerLRP(model, preset=preset, start="logit")
    relevance, delta = method.attribute(inputs, target, return_convergence_delta=True)
    if name != "vit":  # token ids get the sum over their embeddings
        expected = expected.sum(-1)
    scale = expected.abs().max()
    assert float((relevance - expected).abs().max() / scale) < 1e-5
    logits = kept["logits"]
    assert torch.allclose(relevance.flatten(1).sum(1) + delta, logits, rtol=1e-5, atol=1e-6)
