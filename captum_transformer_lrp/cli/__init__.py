"""The command line, `captum-transformer-lrp`."""

from captum_transformer_lrp.cli.app import app, main

__all__ = ["app", "main"]
