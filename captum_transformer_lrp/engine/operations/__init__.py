"""What each PyTorch operation means to the engine: its operands, its kernel, its flow of mass."""

from __future__ import annotations

from collections.abc import Iterable

from captum_transformer_lrp.engine.graph.arguments import Function
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
from captum_transformer_lrp.engine.operations.generic import generic
from captum_transformer_lrp.engine.watch import moves
from captum_transformer_lrp.engine.watch.context import Handlers, Table

HANDLERS = Handlers(moves.HANDLERS)
"""What to do with a call of a given function, whatever its rule."""

for _family in (composites, elementwise, experts, fused, linear, pooling, products, scaling, sums):
    HANDLERS.update(_family.HANDLERS)


def table(with_rule: Iterable[Function]) -> Table:
    """The table of one forward pass.

    Args:
        with_rule: the functions that have a rule, the user's own included.
    """
    functions = {**moves.MOVES, **dict.fromkeys(with_rule, generic), **HANDLERS}
    return Table(functions, flex.OPERATORS, generic)
