"""From the pieces that a tokenizer makes to the words that a reader wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from captum_transformer_lrp.visualization.arrays import ArrayLike, to_array


@dataclass(frozen=True)
class Word:
    """One word of a text with the relevance of all its pieces.

    Args:
        text: the word as it was written, or a special token's name.
        attribution: the sum over the word's pieces.
        before: what stands between the previous word and this one, spaces as a rule.
        special: whether this is a token that the tokenizer added, such as [CLS].
    """

    text: str
    attribution: float
    before: str = ""
    special: bool = False


def words_from_pieces(
    text: str,
    pieces: Sequence[str],
    attribution: ArrayLike,
    *,
    offsets: Sequence[tuple[int, int]],
    word_ids: Sequence[int | None],
    special_tokens: bool = False,
) -> list[Word]:
    """Merge word pieces to the words of the text; a word's relevance is the sum of its pieces'.

    A Hugging Face fast tokenizer gives everything that is needed: after
    `encoding = tokenizer(text)` these are `encoding.tokens()`, `encoding.encodings[0].offsets` and
    `encoding.word_ids()`.

    Args:
        text: what was tokenized.
        pieces: the S tokens.
        attribution: one number per token, (S,) or (1, S).
        offsets: where each token starts and ends in the text.
        word_ids: the number of the word that each token belongs to; None for special tokens.
        special_tokens: whether special tokens, padding included, are kept. They are hidden by
            default: their relevance says nothing about the text.

    Raises:
        ValueError: where the lengths disagree, or the attribution contains NaN.

    Example:
        >>> words_from_pieces(
        ...     "a witty film",
        ...     ["[CLS]", "a", "wit", "##ty", "film", "[SEP]"],
        ...     [0.5, 0.0, 0.25, 0.125, 0.1, 0.025],
        ...     offsets=[(0, 0), (0, 1), (2, 5), (5, 7), (8, 12), (0, 0)],
        ...     word_ids=[None, 0, 1, 1, 2, None],
        ... )[1]
        Word(text='witty', attribution=0.375, before=' ', special=False)
    """
    relevance = to_array(attribution)
    if relevance.ndim == 2 and len(relevance) == 1:
        relevance = relevance[0]
    lengths = {
        "pieces": len(pieces),
        "attribution": relevance.size if relevance.ndim == 1 else relevance.shape,
        "offsets": len(offsets),
        "word_ids": len(word_ids),
    }
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"found {found}, expected one of each per token of a single text")

    words: list[Word] = []
    end_of_previous = 0
    for group in _groups(word_ids):
        total = float(relevance[group].sum())
        if word_ids[group[0]] is None:
            if special_tokens:
                words.append(Word(pieces[group[0]], total, " " if words else "", special=True))
            continue
        start, end = offsets[group[0]][0], offsets[group[-1]][1]
        # Some tokenizers count the space before a word to the word.
        while start < end and text[start].isspace():
            start += 1
        words.append(Word(text[start:end], total, text[end_of_previous:start]))
        end_of_previous = max(end_of_previous, end)
    return words


def _groups(word_ids: Sequence[int | None]) -> list[list[int]]:
    """The positions of each word's pieces; every special token is a group of its own."""
    groups: list[list[int]] = []
    for position, word in enumerate(word_ids):
        if groups and word is not None and word == word_ids[groups[-1][-1]]:
            groups[-1].append(position)
        else:
            groups.append([position])
    return groups
