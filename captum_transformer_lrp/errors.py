"""What can go wrong, each with a sentence that says what to do."""

from __future__ import annotations


class ExplanationError(RuntimeError):
    """A model or an input that cannot be explained as it is."""


class UnsupportedOperationError(ExplanationError):
    """The model calls an operation that has no propagation rule."""


class NoAttentionError(ExplanationError):
    """The model's output does not depend on any softmax attention."""


class ArgumentError(ValueError):
    """An argument that the caller must change; the message says what was found and expected."""


def interruption(
    error: BaseException | None, outside: BaseException | None = None
) -> KeyboardInterrupt | None:
    """The Ctrl-C that an exception comes from, if any.

    Args:
        error: what was raised.
        outside: what was being handled before already.
    """
    while error is not None and error is not outside:
        if isinstance(error, KeyboardInterrupt):
            return error
        error = error.__cause__ or error.__context__
    return None
