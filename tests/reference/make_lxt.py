"""Makes lxt_*.npz: AttnLRP and CP-LRP of tiny models, computed with lxt.

It needs an environment of its own, as lxt patches the model code of one release of transformers:

    python -m venv lxt-venv
    lxt-venv/bin/pip install torch torchvision transformers==4.52.4 zennit
    lxt-venv/bin/pip install --no-deps lxt==2.1
    lxt-venv/bin/python tests/reference/make_lxt.py gpt2 attnlrp

One call for each model and preset, as lxt's patches stay for as long as the process lives.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from lxt.efficient import monkey_patch
from lxt.efficient.models import bert, gpt2, llama, vit_torch

MODELS = ("gpt2", "llama", "bert", "vit")


def patches(name: str, preset: str) -> tuple:
    """The module that lxt patches, and with what."""
    if name == "gpt2":
        return gpt2.modeling_gpt2, gpt2.attnLRP if preset == "attnlrp" else gpt2.cp_LRP
    if name == "llama":
        return llama.modeling_llama, llama.attnLRP if preset == "attnlrp" else llama.cp_LRP
    if name == "bert" and preset == "attnlrp":
        return bert.modeling_bert, bert.attnLRP
    if name == "vit" and preset == "cp_lrp":
        return vit_torch.vision_transformer, vit_torch.cp_LRP
    raise SystemExit(f"lxt has no {preset} for {name}")


def build(name: str) -> torch.nn.Module:
    """A tiny model; tests/attr/test_lxt.py builds the same and loads these weights."""
    if name == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        return GPT2LMHeadModel(
            GPT2Config(vocab_size=20, n_positions=12, n_embd=16, n_layer=2, n_head=2)
        )
    if name == "llama":
        from transformers import LlamaConfig, LlamaForCausalLM

        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=12,
            )
        )  # fmt: skip
    if name == "bert":
        from lxt.efficient.models.bert import modeling_bert
        from transformers import BertConfig

        return modeling_bert.BertForSequenceClassification(
            BertConfig(
                vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=24, max_position_embeddings=12, num_labels=3,
            )
        )  # fmt: skip
    from torchvision.models import VisionTransformer

    return VisionTransformer(16, 8, 2, 2, 16, 24, num_classes=3)


def main(name: str, preset: str) -> None:
    """Explain one model, and keep its weights, its input and the relevance."""
    monkey_patch(*patches(name, preset))
    torch.manual_seed(0)
    model = build(name)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1.0 if parameter.dim() == 1 else 0.4)
        if parameter.dim() == 1:
            parameter.data.mul_(0.2).add_(0.5)
    model = model.double().eval()
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    if name == "vit":
        inputs = torch.randn(2, 3, 16, 16, dtype=torch.float64)
        given = inputs.clone().requires_grad_()
        output = model(given)
        target = output[:, 1]
    else:
        inputs = torch.randint(1, 20, (2, 7))
        given = model.get_input_embeddings()(inputs).detach().requires_grad_()
        output = model(inputs_embeds=given).logits
        target = output[:, 1] if output.dim() == 2 else output[:, -1, 5]
    target.sum().backward()
    relevance = (given * given.grad).detach()
    folder = Path(__file__).parent
    np.savez_compressed(
        folder / f"lxt_{name}_{preset}.npz",
        inputs=inputs.numpy(),
        logits=target.detach().numpy(),
        relevance=relevance.numpy(),
        **{f"state.{key}": value for key, value in state.items()},
    )
    print(name, preset, relevance.flatten(1).sum(1), target)


if __name__ == "__main__":
    main(*sys.argv[1:])
