"""Backward hooks of the user: an explanation is no backward pass of theirs, so none is called."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor
from torch.utils.hooks import BackwardHook, RemovableHandle

from captum_transformer_lrp.engine.graph.arguments import Args, Function
from captum_transformer_lrp.engine.watch.frames import calling_frame

_AROUND_A_MODULE = BackwardHook._apply_on_tensors.__code__

REGISTRATIONS = frozenset({Tensor.register_hook, Tensor.register_post_accumulate_grad_hook})
"""Calls that would have a function called with relevance and mass, too."""

GRAPH = vars(torch._C.TensorBase)["grad_fn"].__get__
"""Reads a tensor's own graph, onto which PyTorch puts the hook of a module."""


def unregistered() -> RemovableHandle:
    """What a registration returns that is not made."""
    return RemovableHandle(OrderedDict())


def hooked(function: Function, args: Args) -> Tensor | None:
    """The tensor behind which a module with a full backward hook puts its node, if this is it.

    PyTorch makes a view of each tensor that enters or leaves such a module, and calls the hook as
    something arrives there.  Reading the tensor itself passes it by.
    """
    if function is not Tensor.view_as or len(args) != 2 or args[0] is not args[1]:
        return None
    found: Tensor = args[0]
    return None if calling_frame(_AROUND_A_MODULE) is None else found
