"""Backward hooks of the user: an explanation is no backward pass of theirs, so none is called."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor
from torch.utils.hooks import BackwardHook, RemovableHandle

from captum_transformer_lrp.engine.graph.arguments import Args, Function
from captum_transformer_lrp.engine.watch.units import calling_frame

_AROUND_A_MODULE = BackwardHook._apply_on_tensors.__code__

REGISTRATIONS = frozenset({Tensor.register_hook, Tensor.register_post_accumulate_grad_hook})
"""Calls that would have a function called with relevance and mass, too."""

GRAPH = vars(torch._C.TensorBase)["grad_fn"].__get__
"""Reads a tensor's own graph, onto which PyTorch puts the hook of a module."""


def unregistered() -> RemovableHandle:
    """What a registration returns that is not made."""
    return RemovableHandle(OrderedDict())


def is_hooked(function: Function, args: Args) -> bool:
    """Whether a call makes what stands for a tensor at the door of a module with backward hooks.

    PyTorch makes a view of each tensor that enters or leaves such a module, and calls the hooks as
    something arrives there.  Reading the tensor itself passes them by.
    """
    is_one = function is Tensor.view_as and len(args) == 2 and args[0] is args[1]
    return is_one and calling_frame(_AROUND_A_MODULE) is not None
