"""What each PyTorch operation means to the engine: its operands, its kernel, its flow of mass."""

from __future__ import annotations

from captum_transformer_lrp.engine.operations import (
    composites,
    elementwise,
    experts,
    flex,
    fused,
    generic,
    linear,
    pooling,
    products,
    quantised,
    scaling,
    sums,
)
from captum_transformer_lrp.engine.watch.context import Handlers, Table

HANDLERS = Handlers()
"""What to do with a call of a given function, whatever its rule."""

for _family in (composites, elementwise, experts, fused, linear, pooling, products, scaling, sums):
    HANDLERS.update(_family.HANDLERS)

TABLE = Table(HANDLERS, flex.OPERATORS | quantised.OPERATORS, generic.generic)
"""The table of every forward pass."""
