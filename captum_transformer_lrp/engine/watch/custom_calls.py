"""Calls in the forward pass of a custom autograd function, and what it returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import (
    Args,
    Function,
    Kwargs,
    replace_tensors,
)
from captum_transformer_lrp.engine.watch.custom import CustomCall, bridged

if TYPE_CHECKING:
    from captum_transformer_lrp.engine.watch.interception import Interception


def inside_custom(
    watch: Interception, custom: CustomCall, function: Function, args: Args, kwargs: Kwargs
) -> Any:
    """Record a call in a custom function's forward pass; it sees a result without graph."""
    with torch.enable_grad():
        result = watch.call(function, args, kwargs)

    def detached(tensor: Tensor) -> Tensor:
        if watch.tape.mark(tensor) is None or id(tensor) in watch.custom_results:
            return tensor
        outside = tensor.detach()
        watch.replaced[id(outside)] = (outside, tensor)
        watch.custom_results[id(outside)] = custom
        return outside

    return replace_tensors(result, detached)


def leave_custom(watch: Interception, result: Tensor, recorded: Tensor) -> None:
    """Its result has got the custom function's own derivative."""
    custom = watch.custom_results.pop(id(result))
    if custom.calls_modules:
        return
    joined = bridged(watch.tape, result, recorded)
    watch.tape.marks[joined] = watch.tape.marks[recorded]
    watch.replaced[id(result)] = (result, joined)
