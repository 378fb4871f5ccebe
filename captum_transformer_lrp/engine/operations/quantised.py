"""Products with weights that bitsandbytes has quantised, as linear layers with dequantised ones.

What is explained is the product of the activation with the dequantised weight.  Where bitsandbytes
rounds the activation to 8 bits, too, that rounding is left out, as a cast to half precision is: it
moves the logit, not what the logit is made of.  bitsandbytes is not imported: its operators are
told by their names.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs, title
from captum_transformer_lrp.engine.watch.context import Context, Handler
from captum_transformer_lrp.errors import ExplanationError

_NESTED_BLOCK: Final = 256
"""How many scales of 4-bit blocks ``gemm_4bit`` takes to be quantised together."""


def _gemm_4bit(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    given, known = _named(watch, function, args, kwargs), torch.ops.bitsandbytes
    scale = given["absmax"]
    if given.get("absmax_8bit") is not None:
        nested = (given["absmax_8bit"], scale, given["absmax_code"], _NESTED_BLOCK, torch.float32)
        scale = known.dequantize_blockwise.default(*nested) + given["absmax_offset"]
    form = (given["blocksize"], given["quant_type"], list(given["shapeB"]), torch.float32)
    weight = known.dequantize_4bit.default(given["B"], scale, *form)
    return _linear(watch, args[0], weight, given.get("bias"))


def _gemv_4bit(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    given = _named(watch, function, args, kwargs)
    rest = [given[name] for name in ("B", "shapeB", "absmax", "code", "blocksize")]
    if args[0].is_cpu:  # its kernel alone knows how it has packed the weights
        weight = function(torch.eye(given["shapeB"][1]), *rest).t()
    else:
        packed, shape, scale, code, blocksize = rest
        form = (blocksize, "fp4" if bool(code[1] > 0) else "nf4", list(shape), torch.float32)
        weight = torch.ops.bitsandbytes.dequantize_4bit.default(packed, scale, *form)
    return _linear(watch, args[0], weight, None)


def _int8_quant(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """An activation stays as it is, as integers of which 127 stands for 127."""
    x = args[0]
    scale = x.new_full((), 127).expand(x.numel() // x.shape[-1])
    double = "double" in str(function)
    return (x, x, scale, scale, None) if double else (x, scale, None)


def _int8_scaled_mm(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    given = _named(watch, function, args, kwargs)
    if given["row_stats"].stride() != (0,):  # not as _int8_quant made it
        _refuse(watch, function, args, kwargs)
    weight = _of_rows(given["B"], given["col_stats"])
    return _linear(watch, args[0], weight, given.get("bias"))


def _int8_mixed_scaled_mm(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    given = _named(watch, function, args, kwargs)
    weight = _of_rows(given["CB"], given["SCB"])
    return _linear(watch, args[0], weight, given.get("bias")), None


def _refuse(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> NoReturn:
    raise ExplanationError(
        f"{title(function)}, called by {watch.names.caller()}, is explained as bitsandbytes' own "
        "linear layers call it: on activations at their own scale, with a constant weight"
    )


def _named(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> dict[str, Any]:
    """Arguments by their names, constants as they are kept: packed values may look like floats."""
    if not (args and watch.mark(args[0]) and args[0].is_floating_point()):
        _refuse(watch, function, args, kwargs)
    operator: Any = getattr(function, "default", function)
    names = [one.name for one in operator._schema.arguments]
    named = dict(zip(names, args, strict=False)) | kwargs
    kept = watch.tape.originals.get
    return {name: one if kept(one) is None else kept(one) for name, one in named.items()}


def _linear(watch: Context, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    with watch:
        return F.linear(x, weight.to(x.dtype), bias)


def _of_rows(weight: Tensor, largest: Tensor) -> Tensor:
    found: Tensor = torch.ops.bitsandbytes.int8_vectorwise_dequant.default(weight, largest)
    return found


OPERATORS: Final[dict[str, Handler]] = {
    "bitsandbytes.gemm_4bit": _gemm_4bit,
    "bitsandbytes.gemv_4bit": _gemv_4bit,
    "bitsandbytes.int8_vectorwise_quant": _int8_quant,
    "bitsandbytes.int8_double_quant": _int8_quant,
    "bitsandbytes.int8_linear_matmul": _refuse,
    "bitsandbytes.int8_scaled_mm": _int8_scaled_mm,
    "bitsandbytes.int8_mixed_scaled_mm": _int8_mixed_scaled_mm,
}
