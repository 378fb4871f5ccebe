"""Language models that copy letters, so that one knows where each written letter comes from.

A prompt is eight letters, two of them different capitals, and a question mark. The models write the
two capitals in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

NAMES: Final = ("[PAD]", "?", *"abcdefg", *"HIJK")
PAD, QUESTION, FIRST, CAPITAL = 0, 1, 2, 9
PLACES: Final = 8


@dataclass(frozen=True)
class Prompts:
    """Prompts with what follows.

    Args:
        ids: (N, 9), letters and a question mark.
        capitals: (N, 2), what a model is to write.
        places: (N, 2), where in the prompt the capitals stand.
    """

    ids: Tensor
    capitals: Tensor
    places: Tensor

    @property
    def texts(self) -> list[str]:
        """The prompts as one types them."""
        return [" ".join(NAMES[one] for one in row) for row in self.ids.tolist()]


def draw(count: int, generator: torch.Generator) -> Prompts:
    letters = torch.randint(FIRST, CAPITAL, (count, PLACES), generator=generator)
    number = len(NAMES) - CAPITAL
    capitals = CAPITAL + torch.rand(count, number, generator=generator).argsort(1)[:, :2]
    places = torch.rand(count, PLACES, generator=generator).argsort(1)[:, :2].sort(1).values
    ids = F.pad(letters.scatter(1, places, capitals), (0, 1), value=QUESTION)
    return Prompts(ids, capitals, places)


def gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(NAMES), n_positions=16, n_embd=48, n_layer=2, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **_special(),
        )
    )  # fmt: skip


def llama() -> Any:
    """With grouped queries: four heads share two pairs of keys and values."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(NAMES), hidden_size=48, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16, **_special(),
        )
    )  # fmt: skip


def _special() -> dict[str, Any]:
    return {"pad_token_id": PAD, "bos_token_id": None, "eos_token_id": None}


MODELS: Final[dict[str, Callable[[], Any]]] = {"gpt2": gpt2, "llama": llama}


def checkpoint(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.safetensors")


def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each letter; spaces between them."""
    inside = Tokenizer(WordLevel({name: place for place, name in enumerate(NAMES)}, "[PAD]"))
    inside.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inside, pad_token="[PAD]", unk_token="[PAD]")


def trained(name: str) -> Any:
    """A model with the weights that ``python -m tests.letters.train`` found."""
    model = MODELS[name]()
    missing, unexpected = model.load_state_dict(load_file(checkpoint(name)), strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}  # GPT-2's is that of its embedding
    return model.eval()
