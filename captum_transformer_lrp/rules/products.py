"""Matrix products by the library that is faster for them."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from captum_transformer_lrp.rules.decisions import decisions

FEWEST_MULTIPLICATIONS: Final = 10_000_000
"""In a smaller product the call of oneDNN costs what it saves."""


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """``x @ matrix``, without a graph for autograd where oneDNN computes it.

    PyTorch multiplies by MKL.  On an AMD EPYC with AVX-512, oneDNN takes a third less time for two
    hundred rows, and a twelfth less for fifteen hundred.  On one without, it takes as long or twice
    as long.

    Args:
        x: (…, K).
        matrix: (K, N).

    Returns:
        (…, N).
    """
    if (
        {type(x), type(matrix)} <= _PLAIN
        and is_for_onednn(x.numel() // max(x.shape[-1], 1), matrix)
        and x.dtype == matrix.dtype
        and not torch.is_grad_enabled()
        and not torch._C._are_functorch_transforms_active()
        and decisions() is None  # a program that is exported has PyTorch's operations alone
    ):
        return by_onednn(x, matrix, None)
    return x @ matrix


def is_for_onednn(rows: int, matrix: Any) -> bool:
    """Whether oneDNN is the faster one for so many rows and a matrix, or its layout."""
    depth, width = matrix.shape
    return (
        rows * depth * width >= FEWEST_MULTIPLICATIONS
        and matrix.dtype == torch.float32
        and matrix.device.type == "cpu"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and onednn_uses_more()
    )


@cache
def onednn_uses_more() -> bool:
    """Whether this is a processor of AMD with AVX-512, which MKL seems to leave unused."""
    about = Path("/proc/cpuinfo")
    maker = about.read_text("utf-8", "replace") if about.exists() else platform.processor()
    return "AuthenticAMD" in maker and torch.backends.cpu.get_cpu_capability() == "AVX512"


def by_onednn(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ matrix + bias`` of float32 on the processor, without a graph for autograd."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, matrix.t(), bias, "none", [], "")
    return found


_PLAIN: Final = {Tensor, nn.Parameter}
