"""The gradient phase: PyTorch's own derivative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from captum_transformer_lrp.engine.graph.op import NATIVE, Keeps, Op, Phase, Saved
from captum_transformer_lrp.rules.kernels import SoftmaxKernel
from captum_transformer_lrp.rules.rows import on_rows


class Gradient(Phase):
    """The gradient goes on in the call's own autograd graph, or else by the kernel."""

    follows_graph: ClassVar[bool] = True

    @classmethod
    def needs(cls, op: Op) -> Keeps:
        """See :class:`Phase`."""
        if op.has_graph:
            return Keeps.SHAPES
        return Keeps.OUTPUT if isinstance(op.kernel, SoftmaxKernel) else Keeps.VALUES

    def pull(self, op: Op, saved: Saved, arrived: Tensor) -> Sequence[Tensor | None]:
        """See :class:`Phase`."""
        if op.has_graph:
            return NATIVE
        call = op.call(saved)
        if isinstance(call.kernel, SoftmaxKernel):
            return (call.kernel.vjp_at(call.output, arrived),)
        if call.kernel.by_row:
            return (on_rows(call, arrived, lambda some, rows: some.vjp(rows)[0]),)
        return call.vjp(arrived)
