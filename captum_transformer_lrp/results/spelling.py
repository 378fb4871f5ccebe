"""From token ids to the text that they spell, and back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from captum_transformer_lrp.errors import ArgumentError
from captum_transformer_lrp.printing import check_utf8

if TYPE_CHECKING:
    from captum_transformer_lrp.visualization.words import Granularity, PiecesOfWord

_INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class Spelled:
    """What token ids spell.

    Args:
        text: without special tokens.
        offsets: where each token starts and ends in the text. The tokens that share a character
            have all of it; special tokens have nothing.
        names: what a reader calls each token.
        special: whether each token is a special one.
    """

    text: str
    offsets: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    special: tuple[bool, ...]

    def words(
        self, first: int, last: int, granularity: Granularity, special_tokens: bool
    ) -> list[PiecesOfWord]:
        """The words of the tokens from `first` to before `last`; no word goes beyond them."""
        from captum_transformer_lrp.visualization.words import group_pieces

        offsets = self.offsets[first:last]
        start, end = (offsets[0][0], offsets[-1][1]) if offsets else (0, 0)
        special = self.special[first:last]
        found = group_pieces(
            self.text[start:end],
            self.names[first:last],
            offsets=[(one - start, other - start) for one, other in offsets],
            word_ids=[None if one else 0 for one in special],
            sequence_ids=[None if one else 0 for one in special],
            granularity=granularity,
            special_tokens=special_tokens,
        )
        return [replace(one, pieces=tuple(first + n for n in one.pieces)) for one in found]

    def between(self, start: int, end: int) -> list[int]:
        """The tokens that spell the letters from `start` to before `end`."""
        return [
            place
            for place, (first, last) in enumerate(self.offsets)
            if first < end and last > start and self.text[first:last].strip()
        ]


def spell(tokenizer: Any, ids: Sequence[int], hidden: Collection[int] = ()) -> Spelled:
    """The text of token ids with the place of each.

    Tokens are decoded a few at a time, in the light of those before them: of bytes, several make
    one character, and whether a token begins with a space depends on what it stands behind.

    Args:
        tokenizer: of transformers, fast or slow.
        ids: of one text.
        hidden: further ids that are special, such as those in whose place an image stands.
    """
    # Decoding skips all tokens that were added as special ones, the unnamed ones, too.
    added = getattr(tokenizer, "added_tokens_decoder", {})
    unnamed = (one for one, token in added.items() if token.special)
    special_ids = {*tokenizer.all_special_ids, *unnamed, *hidden}
    names = [str(name) for name in tokenizer.convert_ids_to_tokens(list(ids))]
    text = ""
    offsets: list[tuple[int, int]] = []
    read = known = 0  # ids[read:known] are what the next ones are decoded behind

    def decoded(start: int, end: int) -> str:
        return str(
            tokenizer.decode(
                list(ids[start:end]), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    for place, one in enumerate(ids):
        end = place + 1
        following = ids[end] if end < len(ids) else None
        if one in special_ids:
            offsets.append((len(text), len(text)))
            known += known == place
            continue
        before, after = decoded(read, known), decoded(read, end)
        last_of_text = following is None or following in special_ids
        if after.endswith(_INCOMPLETE) and not last_of_text and end - known < 8:
            continue
        start, text = len(text), text + after[len(before) :]
        offsets += [(start, len(text))] * (end - len(offsets))
        read, known = known, end
    spelled = [text[start:stop] or name for (start, stop), name in zip(offsets, names, strict=True)]
    special = tuple(one in special_ids for one in ids)
    return Spelled(text, tuple(offsets), tuple(spelled), special)


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text alone, without what a tokenizer adds to it."""
    return [int(one) for one in tokenizer(text, add_special_tokens=False)["input_ids"]]


def check_token_id(tokenizer: Any, token: int) -> None:
    """Raise for an id that stands for no token."""
    if not 0 <= token < len(tokenizer):
        raise ArgumentError(f"found token id {token}, expected one from 0 to {len(tokenizer) - 1}")


def with_and_without_space(text: str) -> list[str]:
    """A text as it is and, where it begins with no space, behind one.

    >>> with_and_without_space("Paris"), with_and_without_space(" Paris")
    (['Paris', ' Paris'], [' Paris'])
    """
    return [text] if not text or text[0].isspace() else [text, f" {text}"]


def spellings(tokenizer: Any, text: str) -> list[list[int]]:
    """The token ids of a text, with and without a space before it.

    Raises:
        ArgumentError: where the tokenizer does not know it.
    """
    check_utf8(text)
    found: list[list[int]] = []
    for one in with_and_without_space(text):
        ids = token_ids(tokenizer, one)
        if ids and ids not in found and tokenizer.unk_token_id not in ids:
            found.append(ids)
    if not found:
        raise ArgumentError(f"the tokenizer has no tokens for {text!r}: give a token id")
    return found
