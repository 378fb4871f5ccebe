"""Whether a model computes softmax attention, observed without the library.

An attention is a softmax over scores that are a product of two activations, whose result
multiplies values; or a call of PyTorch's fused attention, which is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Output = TypeVar("Output")

_PRODUCTS = {"matmul", "bmm", "einsum", "baddbmm", "mm", "__matmul__"}
_WEIGHTED = {
    "linear", "conv1d", "conv2d", "conv3d", "layer_norm", "batch_norm", "group_norm", "rms_norm",
}  # fmt: skip
_FUSED = {F.scaled_dot_product_attention, F.multi_head_attention_forward}


def computes_softmax_attention(run: Callable[[], Output]) -> tuple[Output, bool]:
    """What ``run`` returns, and whether it computed softmax attention."""
    watch = _Watch()
    with watch:
        output = run()
    return output, watch.found


class _Watch(TorchFunctionMode):
    """Follows scores from the product that makes them to the softmax and to the values."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False
        self._kinds: dict[int, tuple[Tensor, str]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _FUSED:
            self.found = True
        if self.found or not isinstance(result, (Tensor, tuple, list)):
            return result
        name = getattr(func, "__name__", "")
        operands = [one for one in _flat((args, kwargs)) if isinstance(one, Tensor)]
        kinds = {self._kinds[id(one)][1] for one in operands if id(one) in self._kinds}
        kind = ""
        if name in _PRODUCTS:
            activations = [one for one in operands if not isinstance(one, torch.nn.Parameter)]
            if "attention" in kinds:
                self.found = len(activations) > 1
            elif len(activations) > 1:
                kind = "scores"
        elif name == "softmax":
            kind = "attention" if "scores" in kinds else ""
        elif name not in _WEIGHTED and kinds:
            kind = "attention" if "attention" in kinds else "scores"
        if kind:
            for one in _flat(result):
                if isinstance(one, Tensor):
                    self._kinds[id(one)] = one, kind
        return result


def _flat(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value
