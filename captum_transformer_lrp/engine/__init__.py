"""The engine: a watched forward pass, and three backward phases over it."""

from captum_transformer_lrp.engine import operations

__all__ = ["operations"]
