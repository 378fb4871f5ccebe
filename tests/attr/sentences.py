"""Maps of the bundled classifier of sentences, for tests of quantised weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from scipy.stats import spearmanr
from torch import Tensor

from captum_transformer_lrp import TransformerAttribution, TransformerLRP

METHODS: dict[str, Callable[[Any], Any]] = {
    "transformer_attribution": TransformerAttribution,
    "attnlrp": partial(TransformerLRP, preset="attnlrp"),
}
SENTENCES = (
    "A gorgeous, witty film, though the ending is a little dull.",
    "The acting is superb, but the plot is dull.",
    "A wonderful story, but bad acting.",
    "It never fails to entertain the audience.",
    "I didn't enjoy this lifeless and silly movie.",
    "A moving and beautiful film about friendship.",
    "The jokes are stale and the cast looks bored.",
    "An honest, warm and funny comedy for the whole family.",
    "A dull, lifeless film that wastes a fine cast.",
    "One of the best thrillers of the year, tense and smart.",
    "The script is a mess, yet the two leads are charming.",
    "Too long, too loud and too proud of itself.",
    "A quiet drama that stays with you for days.",
    "Neither funny nor scary, it is simply boring.",
    "The music is lovely and the pictures are breathtaking.",
    "What a waste of time and talent.",
    "A clever idea, told with warmth and a light touch.",
    "It falls apart in the last twenty minutes.",
    "Bad dialogue and worse acting ruin a good premise.",
    "Children will love it, and their parents will not mind.",
)


def maps(model: Any, words: Any, method: str, texts: Sequence[str] = SENTENCES) -> list[Tensor]:
    found = []
    for text in texts:
        given = words(text, return_tensors="pt")
        mask = {"attention_mask": given["attention_mask"]}
        found.append(METHODS[method](model).attribute(given["input_ids"], 1, mask)[0, 1:-1])
    return found


def correlations(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [float(spearmanr(*pair)[0]) for pair in zip(found, expected, strict=True)]
