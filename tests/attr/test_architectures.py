"""One mechanism for many architectures: minutes, so `make slow`.

Models are built at their smallest with random weights, in float64.  Nothing here names an
architecture to the library.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

from captum_transformer_lrp import TransformerAttribution

pytestmark = pytest.mark.slow

VISION = [
    "beit_base_patch16_224",
    "caformer_s18",
    "cait_xxs24_224",
    "coat_lite_tiny",
    "convit_tiny",
    "crossvit_tiny_240",
    "davit_tiny",
    "deit_tiny_distilled_patch16_224",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientvit_m0",
    "gcvit_xxtiny",
    "hiera_tiny_224",
    "levit_128s",
    "maxvit_rmlp_pico_rw_256",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "nest_tiny",
    "pit_ti_224",
    "pvt_v2_b0",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "tiny_vit_5m_224",
    "tnt_s_patch16_224",
    "twins_svt_small",
    "visformer_tiny",
    "vit_relpos_small_patch16_224",
    "vit_tiny_r_s16_p8_224",
    "vitamin_small_224",
    "xcit_nano_12_p16_224",
]

TEXT = [
    "albert",
    "bart",
    "camembert",
    "convbert",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "ernie",
    "esm",
    "falcon",
    "funnel",
    "gemma",
    "gemma2",
    "glm",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "layoutlm",
    "llama",
    "longformer",
    "mbart",
    "mistral",
    "modernbert",
    "mpnet",
    "nystromformer",
    "olmo2",
    "opt",
    "persimmon",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "roberta",
    "squeezebert",
    "starcoder2",
    "t5",
    "xlm",
    "xlnet",
]

SMALL = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "embedding_size"], 32),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers"], 2),
    **dict.fromkeys(["encoder_layers", "decoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads"], 4),
    **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["intermediate_size", "d_ff", "ffn_dim", "hidden_dim", "d_inner"], 48),
    **dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim"], 48),
    **dict.fromkeys(["head_dim", "d_kv", "d_head"], 8),
    "num_key_value_heads": 2,
    "vocab_size": 60,
    "max_position_embeddings": 64,
    "num_labels": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "pooler_hidden_size": 32,
    "rotary_dim": 4,
    "block_sizes": [1, 1],
    "attention_window": [8, 8],
}


def check(model: nn.Module, inputs: Tensor) -> None:
    """Nothing is changed, relevance is conserved, and examples do not touch each other."""
    with torch.no_grad():
        plain = model(inputs)
    plain = plain if isinstance(plain, Tensor) else plain.logits
    method = TransformerAttribution(model)
    explanation = method.explain(inputs, target=1)
    assert explanation.output.shape == plain.shape
    # Models that compute parts in float32 whatever their weights are more precise on the tape.
    assert (explanation.output - plain).abs().max() <= 1e-5 * plain.abs().max()
    assert (explanation.total - 1).abs().max() < 1e-6
    assert explanation.attentions
    attributions = explanation.attributions
    assert isinstance(attributions, Tensor)
    assert attributions.shape == inputs.shape
    assert attributions.isfinite().all()
    assert (attributions >= 0).all()
    assert attributions.sum() > 0
    for one in range(len(inputs)):
        single = method.attribute(inputs[one : one + 1], target=1)
        assert isinstance(single, Tensor)
        assert (single - attributions[one : one + 1]).abs().max() <= 1e-6 * single.abs().max()


@pytest.mark.parametrize("name", VISION)
def test_of_timm(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).double().eval()
    _draw_zero_weights(model)
    side = model.default_cfg["input_size"][-1]
    check(model, torch.randn(2, 3, side, side, dtype=torch.float64))


@pytest.mark.parametrize("kind", TEXT)
def test_of_transformers(kind: str) -> None:
    torch.manual_seed(0)
    config: Any = CONFIG_MAPPING[kind]()
    for name, value in SMALL.items():
        if hasattr(config, name) or name == "decoder_start_token_id":
            with contextlib.suppress(AttributeError, NotImplementedError):  # derived from others
                setattr(config, name, value)
    if getattr(config, "layer_types", None):
        config.layer_types = list(config.layer_types)[:2]
    model = AutoModelForSequenceClassification.from_config(config).double().eval()
    _draw_zero_weights(model)
    ids = torch.randint(3, 60, (2, 16))
    ids[:, -1] = getattr(config, "eos_token_id", None) or 2
    check(model, ids)


def _draw_zero_weights(model: nn.Module) -> None:
    """Heads and biases that start at 0 have nothing to propagate."""
    for parameter in model.parameters():
        if parameter.dim() == 1 or not parameter.any():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
