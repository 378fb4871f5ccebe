"""How commands fail: one sentence on stderr, and an exit code that says whose fault it is."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from captum_transformer_lrp.errors import ArgumentError
from captum_transformer_lrp.printing import one_sentence, printable

FAILED, MISUSED, STOPPED = 1, 2, 130
"""Exit codes: something could not be done, the command line must be changed, Ctrl-C."""


class UsageError(ArgumentError):
    """A mistake on the command line, which ends the program with exit code 2."""


@contextmanager
def clear_errors() -> Iterator[None]:
    """Report what goes wrong in one sentence on stderr, without a traceback."""
    # Retries of downloads and bars for what takes a second would bury that sentence; what Captum
    # warns of (hooks that it removes again) is nothing that a user of commands can change.
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # read when it is imported
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if "transformers" in sys.modules:  # it has read its environment already
        sys.modules["transformers"].utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # Each time, and no errors, as tests have it.
            warnings.filterwarnings("always", module=r"captum_transformer_lrp\.")
            warnings.filterwarnings("ignore", category=UserWarning, module=r"captum\.")
            warnings.showwarning = lambda message, *_, **__: warn(
                f"note: {' '.join(str(message).split())}"
            )
            yield
    except (typer.Exit, typer.Abort):  # RuntimeErrors both: all has been said already
        raise
    except ArgumentError as error:
        _fail(error, MISUSED)
    except KeyboardInterrupt as stop:
        if not str(stop):
            raise
        typer.secho(f"stopped: {stop}", fg="yellow", err=True)
        raise typer.Exit(STOPPED) from None
    except BrokenPipeError:  # as in `… | head`: the reader has gone, and nobody is to be told
        os._exit(FAILED)
    except Exception as error:  # what models and damaged files raise cannot be foreseen
        _fail(error, FAILED)


def warn(message: str) -> None:
    """Tell something on stderr that does not end the program."""
    typer.secho(printable(message), fg="yellow", err=True)


def _fail(error: Exception, code: int) -> None:
    typer.secho(f"error: {one_sentence(error)}", fg="red", err=True)
    raise typer.Exit(code)
