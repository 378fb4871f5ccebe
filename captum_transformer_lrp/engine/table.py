"""The table that one forward pass looks its calls up in."""

from __future__ import annotations

from collections.abc import Iterable

from captum_transformer_lrp.engine.graph.arguments import Function
from captum_transformer_lrp.engine.operations import HANDLERS, flex, quantised
from captum_transformer_lrp.engine.operations.generic import generic
from captum_transformer_lrp.engine.watch import moves, scatters
from captum_transformer_lrp.engine.watch.context import Table


def table(with_rule: Iterable[Function]) -> Table:
    """The table of one forward pass.

    Args:
        with_rule: the functions that have a rule, the user's own included.
    """
    functions = {
        **moves.MOVES,
        **dict.fromkeys(with_rule, generic),
        **moves.HANDLERS,
        **scatters.HANDLERS,
        **HANDLERS,
    }
    return Table(functions, flex.OPERATORS | quantised.OPERATORS, generic)
