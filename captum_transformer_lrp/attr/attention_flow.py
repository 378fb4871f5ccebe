"""Attention flow (Abnar & Zuidema 2020), a baseline of the paper."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from captum._utils.progress import progress
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor
from typing_extensions import Unpack

from captum_transformer_lrp.attr import heads, views
from captum_transformer_lrp.attr.attention_rollout import HeadFusion
from captum_transformer_lrp.attr.base import RecordedAttribution, Settings
from captum_transformer_lrp.attr.matrices import attention_matrices
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.phases import Rollout
from captum_transformer_lrp.engine.recording import Recording

logger = logging.getLogger(__name__)

# SciPy's solver takes int32, in which this is a flow of 1: capacities are rounded to 1e-9.
_ONE = 2**30
# Measured on one core of a server, on the attention of trained ViTs.
_EDGES_PER_SECOND = 2.5e7
_LONG_SECONDS = 10.0


class AttentionFlow(RecordedAttribution):
    r"""Maximum flow from where the model reads its answer to each token of the input.

    Tokens before and after each attention are nodes of a graph.  From token :math:`i` after
    block :math:`b` to token :math:`j` before it leads an edge of capacity

    .. math:: \tfrac12 \left(E_h A^{(b)} + I\right)_{ij},

    where the I is the skip connection.  A token's attribution is the greatest flow that the edges
    can carry to it from the token that the model reads its answer from.  Where it reads several,
    as under mean pooling, each of them lets in as much flow as its weight in what is read.  It is
    the same for every target that is read from the same tokens.  Entries are between 0 and 1, as
    capacities that are rounded to 1e-9, and have no fixed sum.  Models whose attentions are not all
    between the same tokens, such as windowed ones, are refused.

    Each token takes one maximum flow through all edges, so a map costs blocks times tokens cubed,
    and examples come one after the other: four seconds for DeiT-tiny's 197 tokens and 12 blocks.
    Before it starts on what may take ten seconds and more, it logs a warning with its estimate.
    The progress bar of ``show_progress`` counts tokens.

    Args:
        forward_func: as in :class:`TransformerAttribution`.
        head_fusion: how the heads of a block become one map: their mean, max or min.  A row whose
            sum is not 1 afterwards is divided by it.
        settings: ``rules``, ``stabilizer``, ``strict`` and ``dtype``, as in
            :class:`TransformerAttribution`.

    Reference:
        Samira Abnar, Willem Zuidema, *Quantifying Attention Flow in Transformers*, ACL 2020.

    Example:
        >>> import timm, torch
        >>> from captum_transformer_lrp import AttentionFlow
        >>> model = timm.create_model("test_vit", num_classes=10).eval()
        >>> images = torch.randn(2, 3, 160, 160)
        >>> flow = AttentionFlow(model).attribute(images, granularity="token")
        >>> flow.shape, bool((flow > 0).all() and (flow <= 1).all())
        (torch.Size([2, 101]), True)
    """

    phases = (Rollout,)
    multiplies_by_inputs = False

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        head_fusion: HeadFusion = "mean",
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(forward_func, **settings)
        views.check_choice("head_fusion", head_fusion, HeadFusion)
        self.head_fusion = head_fusion

    def _of_piece(
        self, inputs: Any, targets: Sequence[Any], additional: Any, view: views.View
    ) -> list[Any]:
        known: list[tuple[AttentionStep, Tensor, Tensor]] = []

        def explained(recording: Recording, start: Tensor) -> Any:
            def row_of(steps: views.Pass) -> Tensor:
                # Without attention all mass stays where the model reads its answer from.
                readout = views.token_mass(recording, start, steps).detach()
                for last, before, flow in known:
                    if last is steps[-1] and torch.equal(before, readout):
                        return flow
                matrices = torch.stack(self._matrices(recording, steps), 1)
                flow = _flows(matrices, readout, show_progress=view.show_progress)
                known.append((steps[-1], readout, flow))
                return flow

            return views.row_view(recording, view, row_of)

        return self._each_target(inputs, targets, additional, explained)

    def _matrices(self, recording: Recording, steps: views.Pass) -> list[Tensor]:
        """E_h A + I of every attention, its rows divided by their sums, (N, S, S) each."""
        maps = {step.index: step.attention.detach() for step in steps}
        # Plain attention only: anything else raises here.
        matrices = attention_matrices(recording, steps, maps)
        if self.head_fusion != "mean":
            matrices = [
                heads.fused_heads(recording, maps[step.index], step, self.head_fusion).squeeze(1)
                for step in steps
            ]
        identity = torch.eye(matrices[0].shape[-1]).to(matrices[0])
        skipped = [matrix + identity for matrix in matrices]
        return [matrix / matrix.sum(-1, keepdim=True) for matrix in skipped]


def layered_graph(capacities: np.ndarray, readout: np.ndarray) -> csr_array:
    """The graph whose maximum flows are wanted.

    Args:
        capacities: (layers, S, S), the layer nearest the input first; entry (b, i, j) is that of
            the edge from token i after layer b to token j before it, 0 to 1.
        readout: (S,), the capacity of the edge from the source to each token after the last
            layer, summing to at most 1.

    Returns:
        A sparse matrix of int32 capacities, in units of 2**-30.  Node j is token j before the
        first layer, and the last node is the source.
    """
    layers, size, _ = capacities.shape
    source = (layers + 1) * size
    layer, after, before = np.nonzero(capacities)
    read = np.nonzero(readout)[0]
    rows = np.concatenate([(layer + 1) * size + after, np.full(len(read), source)])
    columns = np.concatenate([layer * size + before, layers * size + read])
    values = np.concatenate([capacities[layer, after, before], readout[read]])
    rounded = np.rint(values * _ONE).astype(np.int32)
    places = rows.astype(np.int32), columns.astype(np.int32)
    return csr_array((rounded, places), shape=(source + 1, source + 1))


def greatest_flow(graph: csr_array, token: int) -> float:
    """The greatest flow from the source of a :func:`layered_graph` to one token.

    Example: of the flow to token 0, 3/8 goes straight down and 1/8 by way of token 1.

        >>> half = np.array([[0.5, 0.5], [0.0, 1.0]])
        >>> back = np.array([[0.375, 0.625], [0.125, 0.875]])
        >>> graph = layered_graph(np.stack([back, half]), np.array([1.0, 0.0]))
        >>> greatest_flow(graph, 0), greatest_flow(graph, 1)
        (0.5, 1.0)
    """
    return float(maximum_flow(graph, graph.shape[0] - 1, token).flow_value) / _ONE


def _flows(matrices: Tensor, readout: Tensor, *, show_progress: bool) -> Tensor:
    """The flow to every token of every example, (N, S), of matrices (N, layers, S, S)."""
    count, layers, size, _ = matrices.shape
    _announce(count * size, (layers + 1) * size + 1, int(matrices.count_nonzero()) // count)
    graphs = [
        layered_graph(*arrays)
        for arrays in zip(
            matrices.double().cpu().numpy(), readout.double().cpu().numpy(), strict=True
        )
    ]
    tokens: Iterable[int] = range(count * size)
    if show_progress:
        tokens = progress(tokens, desc="Attention Flow attribution", total=count * size)
    flow = [greatest_flow(graphs[number // size], number % size) for number in tokens]
    return torch.tensor(flow, dtype=torch.float64).reshape(count, size).to(matrices)


def _announce(flows: int, nodes: int, edges: int) -> None:
    """Say what is going to take long."""
    seconds = flows * edges / _EDGES_PER_SECOND
    if seconds >= _LONG_SECONDS:
        logger.warning(
            "AttentionFlow computes %d maximum flows through a graph of %d nodes and %d edges, "
            "which may take about %.0f s; show_progress=True shows how far it is",
            flows,
            nodes,
            edges,
            seconds,
        )
