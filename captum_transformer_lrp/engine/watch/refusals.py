"""What is refused where relevance or mass comes to it, not where it is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.marks import Kind
from captum_transformer_lrp.engine.graph.role import Flow
from captum_transformer_lrp.engine.watch.constant_calls import of_no_call
from captum_transformer_lrp.engine.watch.context import Context
from captum_transformer_lrp.errors import ExplanationError, UnsupportedOperationError
from captum_transformer_lrp.rules import Rule
from captum_transformer_lrp.rules.call import Call
from captum_transformer_lrp.rules.examples import unknown_examples
from captum_transformer_lrp.rules.kernels import AutogradKernel


def record_unannounced(watch: Context, tensors: Sequence[Tensor]) -> bool:
    """Put tensors that were made by no call that was seen on the tape, where they are refused.

    Returns:
        Whether there are any.
    """
    found = False
    for tensor in tensors:
        message = "" if tensor in watch.tape.marks else of_no_call(watch, tensor)
        if not message:
            continue
        found = True
        count = watch.examples.count
        in_front = tensor.dim() > 0 and tensor.shape[0] == count
        recorded = watch.record(
            record_unannounced,
            AutogradKernel(tensor.detach),
            (),
            tensor,
            rule=RefusalRule(UnsupportedOperationError, message),
            role=Flow.REFUSED,
            mark=watch.tape.made(
                Kind.OTHER,
                (),
                watch.examples if in_front else unknown_examples(watch.examples),
            ),
        )
        watch.writes.replaced[tensor] = recorded
    return found


@dataclass(eq=False, repr=False)
class RefusalRule(Rule):
    """Raises where relevance arrives.

    Args:
        error: what is raised.
        message: what it says.
        advises: whether to say whether eq. 2 would do.
    """

    error: type[ExplanationError]
    message: str
    advises: bool = False

    def relevance(self, call: Call, relevance: Tensor) -> tuple[None, ...]:
        """See :class:`Rule`."""
        self.refuse(call, relevance)
        return tuple(None for _ in call.inputs)

    def refuse(self, call: Call, arrived: Tensor) -> None:
        """Raise unless nothing has arrived."""
        if not bool((arrived != 0).any()):
            return
        if not self.advises:
            raise self.error(self.message)
        advice = (
            ", or pass strict=False to let it follow the generic rule, eq. 2"
            if _has_eq_2(call)
            else "; strict=False is of no use, as the sum that eq. 2 divides by is 0 for it"
        )
        raise self.error(self.message + advice)


def _has_eq_2(call: Call) -> bool:
    """Whether the sum that eq. 2 divides by is not 0 by construction.

    By Euler's theorem it is for functions f(λx) = f(x), such as angles and correlations.
    """
    generator = torch.Generator().manual_seed(0)
    seed = 1 + torch.rand(call.output.shape, generator=generator).to(call.output)
    try:
        parts = [x * one for x, one in zip(call.inputs, call.vjp(seed), strict=True)]
    except RuntimeError:  # not differentiable, or not by each input
        return False
    size = torch.stack([part.abs().sum() for part in parts]).sum()
    return bool(torch.stack([part.sum() for part in parts]).sum().abs() > 1e-5 * size)
