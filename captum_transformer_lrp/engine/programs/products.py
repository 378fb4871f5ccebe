"""The matrix products of a graph, by the library that is faster for them."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, fx

from captum_transformer_lrp.rules.products import by_onednn, is_for_onednn


def choose_products(graph: fx.Graph) -> None:
    """Let oneDNN compute those products of a graph that it is faster for.

    Args:
        graph: its nodes have their layouts.
    """
    for node in [*graph.nodes]:
        if node.target not in _PRODUCTS or node.kwargs:
            continue
        *bias, x, matrix = node.args
        if not is_for_onednn(x.meta["layout"].shape[0], matrix.meta["layout"]):
            continue
        if any(one.meta["layout"].shape != node.meta["layout"].shape[1:] for one in bias):
            continue
        with graph.inserting_before(node):
            chosen = graph.call_function(_BY_ONEDNN, (x, matrix, *(bias or [None])))
        chosen.meta["layout"] = node.meta["layout"]
        node.replace_all_uses_with(chosen)
        graph.erase_node(node)


def _like_product(x: Tensor, matrix: Tensor, _: Tensor | None) -> Tensor:
    return x.new_empty((len(x), matrix.shape[1]))


_PRODUCTS: Final = frozenset({torch.ops.aten.mm.default, torch.ops.aten.addmm.default})

# Inductor takes oneDNN's own operation only where the matrix is a constant of its graph, so that no
# code would serve two blocks.
_LIBRARY: Final = torch.library.Library("captum_transformer_lrp", "FRAGMENT")
_LIBRARY.define("product(Tensor x, Tensor matrix, Tensor? bias) -> Tensor")
_LIBRARY.impl("product", by_onednn, "CompositeExplicitAutograd")
_LIBRARY.impl("product", _like_product, "Meta")
_BY_ONEDNN: Final = torch.ops.captum_transformer_lrp.product.default
