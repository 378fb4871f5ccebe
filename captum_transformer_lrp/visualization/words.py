"""From the pieces that a tokenizer makes to the words that a reader wrote."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from captum_transformer_lrp.errors import ArgumentError
from captum_transformer_lrp.visualization.arrays import ArrayLike, to_array

Granularity: TypeAlias = Literal["piece", "word", "sentence"]

# Written without spaces: what a tokenizer makes a piece of is as near to a word as one gets.
_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
# They are drawn into the letter before them: marks, joiners, variants and the colours of skin.
_JOINER = "\u200d"
_CONTINUES = re.compile("[\u200c\u200d\ufe00-\ufe0f\U0001f3fb-\U0001f3ff]")
_END_OF_SENTENCE = re.compile(
    "[.!?…]+[\\])\"'”’»]*(?=\\s)|[。！？｡]+[」』”）]*|[।؟۔]+|\\n+", re.UNICODE
)


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


@dataclass(frozen=True)
class PiecesOfWord:
    """Which pieces a reader takes for one: a :class:`Word` with the positions of its pieces."""

    text: str
    pieces: tuple[int, ...]
    before: str = ""
    special: bool = False

    def word(self, relevance: npt.NDArray[Any]) -> Word:
        """The same with the sum of its pieces' relevance."""
        total = float(relevance[list(self.pieces)].sum(dtype=np.float64))
        return Word(self.text, total, self.before, self.special)


def words_from_pieces(
    text: str | Sequence[str],
    pieces: Sequence[str],
    attribution: ArrayLike,
    *,
    offsets: Sequence[tuple[int, int]],
    word_ids: Sequence[int | None],
    sequence_ids: Sequence[int | None] | None = None,
    granularity: Granularity = "word",
    special_tokens: bool = False,
) -> list[Word]:
    """Merge word pieces to the words of the text; a word's relevance is the sum of its pieces'.

    A Hugging Face fast tokenizer gives everything that is needed: after
    `encoding = tokenizer(text)` these are `encoding.tokens()`, `encoding.encodings[0].offsets` and
    `encoding.word_ids()`; after `tokenizer(text, second)` also `encoding.sequence_ids()`.

    A word ends at a space, and between letters and punctuation. In scripts without spaces
    (Chinese, Japanese, Thai, …) each piece is a word. A character is never divided.

    Args:
        text: what was tokenized; of a pair, both texts.
        pieces: the S tokens.
        attribution: one number per token, (S,) or (1, S).
        offsets: where each token starts and ends in its text.
        word_ids: the number of the word that each token belongs to; None for special tokens.
        sequence_ids: which of the texts each token belongs to, 0 or 1; None for special tokens.
        granularity: "piece", "word" or "sentence". A sentence ends at its punctuation or line.
        special_tokens: whether special tokens, padding included, are kept. They are hidden by
            default: their relevance says nothing about the text.

    Raises:
        ArgumentError: for the pieces of two texts with one text.
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
    if sequence_ids is not None:
        lengths["sequence_ids"] = len(sequence_ids)
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"found {found}, expected one of each per token of a single text")
    words = group_pieces(
        text,
        pieces,
        offsets=offsets,
        word_ids=word_ids,
        sequence_ids=sequence_ids,
        granularity=granularity,
        special_tokens=special_tokens,
    )
    return [word.word(relevance) for word in words]


def group_pieces(
    text: str | Sequence[str],
    pieces: Sequence[str],
    *,
    offsets: Sequence[tuple[int, int]],
    word_ids: Sequence[int | None],
    sequence_ids: Sequence[int | None] | None = None,
    granularity: Granularity = "word",
    special_tokens: bool = False,
) -> list[PiecesOfWord]:
    """Which pieces make which word; the arguments are those of `words_from_pieces`."""
    if granularity not in get_args(Granularity):
        raise ArgumentError(
            f"found granularity={granularity!r}, expected one of {', '.join(get_args(Granularity))}"
        )
    texts = (text,) if isinstance(text, str) else tuple(text)
    found = _Pieces(texts, pieces, offsets, word_ids, sequence_ids)
    return found.words(granularity, special_tokens)


def _sequences(
    count: int, word_ids: Sequence[int | None], sequence_ids: Sequence[int | None] | None
) -> list[int | None]:
    """The number of each piece's text; none of special tokens."""
    found = sequence_ids
    if found is None:
        found = [None if word is None else 0 for word in word_ids]
        known = [(place, word) for place, word in enumerate(word_ids) if word is not None]
        for (place, word), (following, next_word) in pairwise(known):
            again = word == next_word and following > place + 1
            if next_word < word or again:
                raise ArgumentError(
                    "found the pieces of more than one text: give text=(first, second) and "
                    "sequence_ids=encoding.sequence_ids()"
                )
    if any(number is not None and number >= count for number in found):
        raise ArgumentError(f"found the pieces of two texts and {count} text: give both")
    return list(found)


def _without_spaces(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(_WITHOUT_SPACES)


class _Pieces:
    """The pieces of one or two texts, and where the letters of each begin and end."""

    def __init__(
        self,
        texts: Sequence[str],
        pieces: Sequence[str],
        offsets: Sequence[tuple[int, int]],
        word_ids: Sequence[int | None],
        sequence_ids: Sequence[int | None] | None,
    ) -> None:
        self.texts, self.pieces, self.offsets, self.word_ids = texts, pieces, offsets, word_ids
        self.of_text = _sequences(len(texts), word_ids, sequence_ids)
        self.spans = [
            (start + len(whole) - len(whole.lstrip()), start + len(whole.rstrip()))
            for (start, end), number in zip(offsets, self.of_text, strict=True)
            for whole in [texts[number or 0][start:end]]
        ]

    def words(self, granularity: Granularity, special_tokens: bool) -> list[PiecesOfWord]:
        groups: list[list[int]] = []
        blanks: list[int] = []  # pieces of spaces alone go to the word behind them
        for place, number in enumerate(self.of_text):
            start, end = self.spans[place]
            blank = number is not None and start >= end
            if blank and "\n" not in self.texts[number or 0][slice(*self.offsets[place])]:
                blanks.append(place)
                continue
            if blanks and (number is None or number != self.of_text[blanks[0]]):
                groups, blanks = _ended(groups, blanks), []
            if groups and not blanks and self._joined(groups[-1][-1], place, granularity):
                groups[-1].append(place)
            else:
                groups.append([*blanks, place])
            blanks = []
        groups = _ended(groups, blanks)
        if granularity == "sentence":
            groups = self._sentences(groups)
        return list(self._named(groups, special_tokens))

    def _joined(self, left: int, right: int, granularity: Granularity) -> bool:
        """Whether two neighbouring pieces are of one word, or of one character at least."""
        number = self.of_text[right]
        if number is None or self.of_text[left] != number:
            return False
        (start, end), (start_of_left, end_of_left) = self.spans[right], self.spans[left]
        if start >= end or end_of_left <= start_of_left:  # a line break
            return False
        first, last = self.texts[number][start], self.texts[number][end_of_left - 1]
        if start < end_of_left:  # bytes of one character
            return True
        if start > end_of_left:
            return False
        if _CONTINUES.match(first) or unicodedata.category(first)[0] == "M" or last == _JOINER:
            return True
        if granularity == "piece" or _without_spaces(first) or _without_spaces(last):
            return False
        both = {unicodedata.category(one)[0] for one in (first, last)}
        if both <= {"L", "M"}:
            return True
        same_kind = both <= {"L", "M", "N"} or not both & {"L", "M", "N"}
        return same_kind and self.word_ids[left] == self.word_ids[right]

    def _sentences(self, groups: Sequence[list[int]]) -> list[list[int]]:
        """Words joined to the sentences that they stand in."""
        ends = [[found.end() for found in _END_OF_SENTENCE.finditer(text)] for text in self.texts]
        joined: list[list[int]] = []
        before: object = None
        for group in groups:
            number, start = self.of_text[group[-1]], self.spans[group[-1]][0]
            of = number is not None and (number, sum(end <= start for end in ends[number or 0]))
            if of and of == before:
                joined[-1] += group
            else:
                joined.append(list(group))
            before = of
        return joined

    def _named(self, groups: list[list[int]], special_tokens: bool) -> Iterator[PiecesOfWord]:
        """Groups of pieces with their texts, and what stands between them."""
        end_of_previous, text_of_previous, first = 0, 0, True
        for group in groups:
            number = self.of_text[group[-1]]
            if number is None:
                if special_tokens:
                    before = "" if first else " "
                    yield PiecesOfWord(self.pieces[group[0]], tuple(group), before, special=True)
                    first = False
                continue
            spans = [self.spans[place] for place in group]
            visible = [(start, end) for start, end in spans if start < end]
            # Of a line break, or nothing but spaces, what the tokenizer says.
            shown = visible or [self.offsets[place] for place in group]
            start, end = shown[0][0], shown[-1][1]
            if number != text_of_previous:
                end_of_previous = 0
            before = self.texts[number][end_of_previous:start]
            if number != text_of_previous and not first:
                before = "\n\n" + before
            yield PiecesOfWord(self.texts[number][start:end], tuple(group), before)
            end_of_previous, text_of_previous = max(end_of_previous, end), number
            first = False


def _ended(groups: list[list[int]], blanks: list[int]) -> list[list[int]]:
    """Spaces at the end of a text, with the word before them."""
    if not blanks or not groups:
        return [blanks] if blanks else groups
    return [*groups[:-1], [*groups[-1], *blanks]]
