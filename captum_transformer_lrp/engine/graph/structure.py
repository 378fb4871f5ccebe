"""Calls that only move elements, and calls that make no activation at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from captum_transformer_lrp.rules.spellings import in_place_spellings, spelled

REARRANGEMENTS: frozenset[Callable[..., Any]] = frozenset(
    spelled(
        "view", "reshape", "view_as", "reshape_as", "permute", "transpose", "t", "movedim",
        "moveaxis", "swapaxes", "swapdims", "adjoint", "flatten", "ravel", "unflatten", "squeeze",
        "unsqueeze", "expand", "expand_as", "broadcast_to", "contiguous", "clone", "chunk", "split",
        "split_with_sizes", "unsafe_chunk", "unsafe_split", "tensor_split", "hsplit", "vsplit",
        "unbind", "select", "narrow", "index_select", "gather", "take_along_dim", "__getitem__",
        "roll", "flip", "fliplr", "flipud", "rot90", "repeat", "repeat_interleave", "tile",
        "unfold", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "diagonal", "tril",
        "triu", "as_strided", "masked_select", "pad", "constant_pad_nd", "alias", "atleast_1d",
        "atleast_2d", "atleast_3d", "squeeze_copy", "im2col", "einops", "real", "imag",
        "view_as_real", "view_as_complex", "sort", "topk", "cpu", "cuda",
    )
)  # fmt: skip
"""One activation in, the same elements out; gradients are relevance already."""

COPIES: frozenset[Callable[..., Any]] = frozenset(spelled("clone", "contiguous", "alias"))
"""Those of them that leave every element where it is."""

PERMUTATIONS: frozenset[Callable[..., Any]] = frozenset(
    spelled("permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "adjoint")
)
"""Those of them that change the order of axes."""

JOINS: frozenset[Callable[..., Any]] = frozenset(
    spelled(
        "cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack",
        "where", "index_put", "masked_scatter", "scatter", "index_copy", "slice_scatter",
        "select_scatter", "diagonal_scatter", "complex",
        "broadcast_tensors", "meshgrid", "block_diag",
    )
)  # fmt: skip
"""Elements of several tensors, put side by side."""

CASTS: frozenset[Callable[..., Any]] = frozenset(
    spelled("to", "type", "type_as", "float", "double", "half", "bfloat16")
)
"""Changes of dtype or device."""

DETACHING: frozenset[Callable[..., Any]] = frozenset(spelled("detach"))
"""Of the calls whose result is no activation those that leave it in all but derivative."""

STATISTICS: frozenset[Callable[..., Any]] = frozenset(
    spelled("max", "amax", "min", "amin", "mean", "sum", "norm", "vector_norm", "std", "var")
)
"""Statistics that a softmax or a norm spelled out takes of what was detached."""

IGNORED: frozenset[Callable[..., Any]] = frozenset(
    spelled(
        "size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "data_ptr",
        "is_floating_point", "is_complex", "element_size", "storage_offset", "get_device",
        "untyped_storage", "detach", "item", "tolist", "numpy", "__len__", "__bool__", "__hash__",
        "__repr__", "__format__", "argmax", "argmin", "argsort", "isnan", "isinf", "isfinite",
        "is_same_size", "eq", "ne", "lt", "gt", "le", "ge", "equal", "allclose", "zeros_like",
        "ones_like", "empty_like", "full_like", "new_zeros",
        "new_ones", "new_empty", "new_full", "new_tensor", "requires_grad_",
        "has_torch_function", "nonzero", "count_nonzero", "result_type", "can_cast", "is_nonzero",
        "any", "all", "register_hook", "retain_grad",
    )
)  # fmt: skip
"""Calls whose result is no activation: shapes, comparisons, fresh constants."""

OUT_OF_PLACE: dict[Callable[..., Any], Callable[..., Any]] = dict(in_place_spellings())
"""For calls that change their first argument those that return what it would be."""

UPDATES = frozenset(OUT_OF_PLACE) | {Tensor.__setitem__, Tensor.copy_}
"""The calls that change their first argument."""
