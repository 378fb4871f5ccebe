"""Whether a model computes softmax attention, observed without the library.

An attention is a softmax whose result multiplies activations as a matrix: a weighted mean of
values, whatever the scores are made from.  Fused attention is the same in one call.
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
_ENDS = {"linear", "layer_norm", "batch_norm", "group_norm", "rms_norm", "sum", "mean"}
_SCALES = {"mul", "__mul__", "__rmul__", "multiply"}
_FUSED = {F.scaled_dot_product_attention, F.multi_head_attention_forward}


def computes_softmax_attention(run: Callable[[], Output]) -> tuple[Output, bool]:
    """What ``run`` returns, and whether it computed softmax attention."""
    watch = _Watch()
    with watch:
        output = run()
    return output, watch.found


class _Watch(TorchFunctionMode):
    """Follows the results of softmax to the products that they are used in."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False
        self._maps: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        operands = [one for one in _flat((args, kwargs)) if isinstance(one, Tensor)]
        are_maps = [id(one) in self._maps for one in operands]
        if func in _FUSED:
            self.found = True
        elif name in _PRODUCTS:
            values = [
                one
                for one, is_map in zip(operands, are_maps, strict=True)
                if not is_map and not isinstance(one, torch.nn.Parameter)
            ]
            self.found |= any(are_maps) and bool(values)
        elif name == "softmax" or (any(are_maps) and not _ends(name, operands)):
            self._maps |= {id(one): one for one in _flat(result) if isinstance(one, Tensor)}
        return result


def _ends(name: str, operands: list[Tensor]) -> bool:
    """Whether what comes out is no map any more, but has been summed, mixed or gated."""
    gates = [one for one in operands if one.dim() > 1 and not isinstance(one, torch.nn.Parameter)]
    return name in _ENDS or (name in _SCALES and len(gates) > 1)


def _flat(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value
