"""The command line, `captum-transformer-lrp`."""

import sys

try:
    from captum_transformer_lrp.cli.app import app, main
except ModuleNotFoundError as error:
    if error.name not in ("rich", "typer"):
        raise
    _missing = error.name

    def main() -> None:
        """Say what to install."""
        sys.exit(
            f"error: the command line needs {_missing}: run "
            "pip install 'captum-transformer-lrp[cli]'"
        )


__all__ = ["app", "main"]
