"""What each PyTorch operation means to the engine: its operands, its kernel, its flow of mass.

Importing this package enters its handlers in
:data:`captum_transformer_lrp.engine.watch.interception.HANDLERS`.
"""

from captum_transformer_lrp.engine.operations import (
    composites,
    elementwise,
    experts,
    flex,
    fused,
    linear,
    pooling,
    products,
    scaling,
    sums,
)

__all__ = [
    "composites",
    "elementwise",
    "experts",
    "flex",
    "fused",
    "linear",
    "pooling",
    "products",
    "scaling",
    "sums",
]
