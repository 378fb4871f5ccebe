"""Text from anywhere, safe to print: it waits for no library of pictures."""

from __future__ import annotations

import unicodedata

from captum_transformer_lrp.errors import ArgumentError

# They reorder the letters around them, so that a reader sees another text than the model did.
_DIRECTION_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


# Control characters, line and paragraph separators, and halves of letters: file names that are no
# UTF-8 have the last, and nothing can print them.
_UNPRINTABLE = frozenset({"Cc", "Zl", "Zp", "Cs"})


def printable(text: str, keep: str = "") -> str:
    r"""The text with control characters escaped: a terminal would obey them, a reader not see them.

    Args:
        text: any text.
        keep: characters that are left as they are, such as line breaks.

    >>> print(printable("a\x1b[2Jb\u202ec\n"), printable("a\nb", keep="\n"))
    a\x1b[2Jb\u202ec\n a
    b
    """
    return "".join(_escaped(letter) if letter not in keep else letter for letter in text)


def _escaped(letter: str) -> str:
    if unicodedata.category(letter) in _UNPRINTABLE or letter in _DIRECTION_OVERRIDES:
        return letter.encode("unicode_escape").decode("ascii")
    return letter


# What says enough by itself: the package's own errors are RuntimeErrors, and Captum asserts.
_PLAIN_ERRORS = (OSError, ValueError, TypeError, RuntimeError, AssertionError)


def one_sentence(error: Exception) -> str:
    r"""An error's message on one line, safe for a terminal.

    >>> one_sentence(ValueError("a\n  b"))
    'a b'
    >>> one_sentence(KeyError("a")), one_sentence(MemoryError())
    ("KeyError: 'a'", 'MemoryError')
    """
    text = printable(" ".join(str(error).split()))
    kind = type(error)
    plain = isinstance(error, _PLAIN_ERRORS) or kind.__module__.startswith(__package__)
    if not text or plain:
        return text or kind.__name__
    return f"{kind.__name__}: {text}"


def check_text(text: object) -> None:
    r"""Refuse what is no text with words, and one whose bytes were no UTF-8: no tokenizer takes it.

    >>> check_text("na\udcefve")
    Traceback (most recent call last):
    ...
    captum_transformer_lrp.errors.ArgumentError: the text is not in UTF-8 at letter 3, ...
    """
    if not isinstance(text, str):
        raise ArgumentError(f"found {type(text).__name__} as the text, expected one text (str)")
    if not text.strip():
        raise ArgumentError("found an empty text, expected at least one word")
    check_utf8(text)


def check_utf8(text: str) -> None:
    """Refuse a text with bytes in it that were no UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ArgumentError(
            f"the text is not in UTF-8 at letter {error.start + 1}, {text[error.start]}: "
            "type it again, or save it in UTF-8 and give the file"
        ) from error
