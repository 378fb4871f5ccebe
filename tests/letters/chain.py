"""A language model that thinks before it answers: ``python -m tests.letters.chain`` trains it.

A prompt is eight letters, two of them different capitals, and a question mark. The model copies
the capitals, in their order. Then it writes the number of each, and then the letter of the first
number: ``f H g I b e g b ? H I 1 2 w``. In training every second pair of capitals or numbers that
it reads is another one, so that each step has to be taken from the one before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from captum_transformer_lrp import TransformerLRP, explain_continuation
from captum_transformer_lrp.attr.continuation import Hops
from captum_transformer_lrp.names import WRITTEN_TEXT_METHOD

NAMES: Final = ("[PAD]", "?", *"abcdefg", *"HIJK", *"1234", *"wxyz")
PAD, QUESTION, LETTER, CAPITAL, NUMBER, KINDS = 0, 1, 2, 9, 13, 4
PLACES: Final = 8
BATCH, STEPS, RATE = 64, 600, 3e-3
FOLDER: Final = Path(__file__).parents[2] / "captum_transformer_lrp/examples/assets/letter_chain"


@dataclass(frozen=True)
class Chains:
    """Prompts with what follows.

    Args:
        ids: (N, 9), letters and a question mark.
        written: (N, 5), two capitals, two numbers and a letter, as the model reads them.
        right: (N, 5), what the model is to write.
        places: (N, 2), where in the prompt the capitals stand.
    """

    ids: Tensor
    written: Tensor
    right: Tensor
    places: Tensor

    @property
    def texts(self) -> list[str]:
        """The prompts as one types them."""
        return [" ".join(NAMES[one] for one in row) for row in self.ids.tolist()]


def draw(count: int, generator: torch.Generator, *, changed: float = 0.0) -> Chains:
    """Some prompts; of capitals and numbers that are read, a share is changed."""

    def pairs() -> Tensor:
        return torch.rand(count, KINDS, generator=generator).argsort(1)[:, :2]

    def read(right: Tensor, first: int) -> Tensor:
        chosen = torch.rand(count, 1, generator=generator) < changed
        return torch.where(chosen, first + pairs(), right)

    letters = torch.randint(LETTER, CAPITAL, (count, PLACES), generator=generator)
    capitals = CAPITAL + pairs()
    places = torch.rand(count, PLACES, generator=generator).argsort(1)[:, :2].sort(1).values
    ids = F.pad(letters.scatter(1, places, capitals), (0, 1), value=QUESTION)
    copied = read(capitals, CAPITAL)
    numbers = read(copied + KINDS, NUMBER)
    answer = numbers[:, :1] + KINDS
    right = torch.cat([capitals, copied + KINDS, answer], 1)
    return Chains(ids, torch.cat([copied, numbers, answer], 1), right, places)


def train(seed: int = 0) -> GPT2LMHeadModel:
    """Every prompt is new; the loss is that of all that is written."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(NAMES), n_positions=14, n_embd=48, n_layer=2, n_head=4, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, pad_token_id=PAD, bos_token_id=None, eos_token_id=None,
        )
    ).train()  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        logits, right = _answers(model, draw(BATCH, generator, changed=0.5))
        loss = F.cross_entropy(logits.flatten(0, 1), right.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def accuracy(model: GPT2LMHeadModel, *, changed: float = 0.0) -> float:
    """The share of what is written after 1,000 new prompts that is right."""
    with torch.no_grad():
        drawn = draw(1000, torch.Generator().manual_seed(1000), changed=changed)
        logits, right = _answers(model, drawn)
    return float((logits.argmax(-1) == right).float().mean())


def _answers(model: GPT2LMHeadModel, drawn: Chains) -> tuple[Tensor, Tensor]:
    text = torch.cat([drawn.ids, drawn.written[:, :-1]], 1)
    return model(input_ids=text, use_cache=False).logits[:, PLACES:], drawn.right


def found_and_share(model: GPT2LMHeadModel, drawn: Chains, hops: Hops) -> tuple[float, float]:
    """How often the answer's map is highest, of the prompt's letters, at the first capital; and the
    share of all relevance there."""
    method = TransformerLRP(model, preset=WRITTEN_TEXT_METHOD)
    maps = explain_continuation(method, drawn.ids, drawn.written, hops=hops)[:, -1]
    places = drawn.places[:, :1]
    found = (maps[:, :PLACES].argmax(1, keepdim=True) == places).double().mean()
    share = (maps.gather(1, places).abs() / maps.abs().sum(1, keepdim=True)).mean()
    return float(found), float(share)


def main() -> None:
    torch.set_num_threads(1)
    model = train()
    inside = Tokenizer(WordLevel({name: place for place, name in enumerate(NAMES)}, "[PAD]"))
    inside.pre_tokenizer = WhitespaceSplit()
    tokens = PreTrainedTokenizerFast(tokenizer_object=inside, pad_token="[PAD]", unk_token="[PAD]")
    FOLDER.mkdir(exist_ok=True)
    model.half().save_pretrained(FOLDER)
    (FOLDER / "generation_config.json").unlink()
    tokens.save_pretrained(FOLDER)
    model.float()
    print(f"right: {accuracy(model):.1%}; with changed steps: {accuracy(model, changed=0.5):.1%}")
    drawn = draw(200, torch.Generator().manual_seed(2))
    for hops in (0, 1, 2, "all"):
        found, share = found_and_share(model, drawn, hops)
        print(f"| {hops} | {100 * found:.0f} | {100 * share:.0f} |")


if __name__ == "__main__":
    main()
