"""Sentences about negation and contrast, made up from the treebank's own opinion words.

The treebank says how positive *dull* is, but it has few sentences that turn such a word round, and
a model trained on it alone takes "not dull" for blame. Here its words are put into fixed sentences,
with the grade that follows: "The plot is not dull ." is mild praise.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_NEUTRAL_GRADE = 2
# A phrase of two words whose first is one of these has an adjective, as a rule, as its second.
_ADVERBS = frozenset(
    {"very", "so", "too", "quite", "extremely", "pretty", "more", "most", "as", "rather"}
    | {"truly", "really", "surprisingly"}
)

_NOUNS = ("film", "movie", "story", "plot", "acting", "script", "comedy", "ending", "cast")

_AFFIRMED = ("The {n} is {w} .", "{a} {w} {n}", "This {n} is {w} .", "It's {a} {w} {n} .")
_NEGATED = (
    "not {w}",
    "not very {w}",
    "not at all {w}",
    "isn't {w}",
    "is not {w}",
    "wasn't {w}",
    "never {w}",
    "hardly {w}",
    "far from {w}",
    "It's not {w} .",
    "This {n} is not {w} .",
    "The {n} isn't {w} .",
    "not {a} {w} {n}",
    "isn't {a} {w} {n}",
    "It's not {a} {w} {n} .",
)
_CONTRASTED = (
    "{w} but {v}",
    "{w} , but {v}",
    "It's {w} , but {v} .",
    "The {n} is {w} , but the {m} is {v} .",
    "The {n} is {w} but the {m} {v} .",
    "Though the {n} is {w} , the {m} is {v} .",
    "{a} {w} {n} , but {v} {m}",
)
_QUALIFIED = ("{a} {w} {n} with {v} {m}", "It's {a} {w} {n} with {b} {v} {m} .")
# How far from even odds a sentence is, in units of the word's own distance.
_TURNED, _LAST_WORD, _MAIN_WORD = -0.8, 0.6, 0.5


class Opinion(NamedTuple):
    """A made-up sentence and its target probability of POSITIVE."""

    text: str
    positive: float


def opinion_words(grades: Mapping[str, int]) -> dict[str, int]:
    """Words of praise or blame that follow an adverb in a phrase of two words.

    Args:
        grades: all phrases in lower case with their grades, 0 to 4.

    >>> opinion_words({"very dull": 1, "dull": 1, "very blue": 2, "blue": 2})
    {'dull': 1}
    """
    pairs = [phrase.split() for phrase in grades if phrase.count(" ") == 1]
    words = [word for first, word in pairs if first in _ADVERBS and word.isalpha()]
    found = {word: grades.get(word, _NEUTRAL_GRADE) for word in words}
    return {word: grade for word, grade in found.items() if grade != _NEUTRAL_GRADE}


def split(words: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Four fifths of the words for training, and every fifth of the alphabet for a test.

    >>> split(dict.fromkeys("abcde", 3))[1]
    {'e': 3}
    """
    ordered = sorted(words)
    held_out = set(ordered[4::5])
    return (
        {word: words[word] for word in ordered if word not in held_out},
        {word: words[word] for word in ordered if word in held_out},
    )


def made_up(
    grades: Mapping[str, int], to_positive: tuple[float, ...], *, seed: int = 0
) -> list[Opinion]:
    """The sentences to train on: affirmed, negated, and with two opinions of which one decides.

    After *but* the last word decides, before *with* the first. Praise and blame are equally
    frequent in negations, so that "not" by itself says nothing.

    Args:
        grades: all phrases in lower case with their grades, 0 to 4.
        to_positive: the target probability of POSITIVE for each grade.
        seed: of the choice of nouns and partners.
    """
    choose = random.Random(seed)
    words, _ = split(opinion_words(grades))
    praise = [word for word, grade in words.items() if grade > _NEUTRAL_GRADE]
    blame = [word for word, grade in words.items() if grade < _NEUTRAL_GRADE]
    balanced = praise + blame + choose.choices(blame, k=max(0, len(praise) - len(blame)))
    found = []

    def add(sentences: Iterable[str], chosen: Iterable[str], share: float, last: bool) -> None:
        for sentence in sentences:
            for word in chosen:
                other = choose.choice(blame if words[word] > _NEUTRAL_GRADE else praise)
                noun, second_noun = choose.sample(_NOUNS, 2)
                text = _filled(sentence, word, noun, other, second_noun)
                decisive = to_positive[words[other if last else word]]
                found.append(Opinion(text, 0.5 + share * (decisive - 0.5)))

    add(_AFFIRMED, balanced, 1.0, last=False)
    add(_NEGATED, balanced, _TURNED, last=False)
    add(_CONTRASTED, balanced, _LAST_WORD, last=True)
    add(_QUALIFIED, balanced, _MAIN_WORD, last=False)
    return found


def held_out_negations(grades: Mapping[str, int]) -> list[tuple[str, bool]]:
    """Negations of words that `made_up` leaves out, and whether each is praise."""
    _, words = split(opinion_words(grades))
    return [
        (_filled(sentence, word, "film", word, "plot"), grade < _NEUTRAL_GRADE)
        for sentence in _NEGATED
        for word, grade in words.items()
    ]


def _filled(sentence: str, word: str, noun: str, other: str, second_noun: str) -> str:
    return sentence.format(
        w=word, n=noun, v=other, m=second_noun, a=_article(word), b=_article(other)
    )


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
