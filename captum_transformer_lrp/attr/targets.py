"""From Captum's target types to the seed that every backward phase starts from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_transformer_lrp.engine.watch.checks import kind_without_values


def predicted(output: Tensor) -> Any:
    """The target that ``None`` stands for: each example's class of the highest logit.

    Args:
        output: logits (N, C), or one value for each example (N,).
    """
    if output.dim() == 1:
        return None
    if output.dim() == 2:
        return output.detach().argmax(1)
    raise ValueError(
        f"the model's output has shape {tuple(output.shape)}; with more than two dimensions say "
        "which value to explain, e.g. target=(position, class_index)"
    )


def seed(output: Tensor, target: Any) -> Tensor:
    """The one-hot of the target, R⁽⁰⁾ of the paper.

    Args:
        output: logits, (N, C) or (N, …, C).
        target: as everywhere in Captum, but None is taken as it is (an output (N,)); or a function
            from the output to a value for each example (N,), such as the difference of two logits.

    Returns:
        A tensor shaped as ``output``, 1 at each example's target and 0 elsewhere; for a function
        its gradient, which is the same where the function picks one value.

    Raises:
        ValueError: if the target is out of range or does not fit the output.

    Example:
        >>> seed(torch.zeros(2, 3), [2, 0])
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
        >>> seed(torch.zeros(1, 3), lambda logits: logits[:, 2] - logits[:, 0])
        tensor([[-1.,  0.,  1.]])
    """
    if callable(target):
        return _gradient(output, target)
    entries = checked_target(output, target)
    one_hot = torch.zeros_like(output)
    for example, indices in enumerate(entries):
        one_hot[example][indices] = 1
    return one_hot


def _gradient(output: Tensor, target: Callable[[Tensor], Any]) -> Tensor:
    """What a function of the output changes by, with each of the output's values."""
    with torch.enable_grad():
        leaf = output.detach().clone().requires_grad_()
        value = target(leaf)
        if not isinstance(value, Tensor) or value.shape != output.shape[:1]:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"the target, a function, returned {found} for an output of shape "
                f"{tuple(output.shape)}, expected a value for each example, ({len(output)},)"
            )
        if not value.requires_grad:
            raise ValueError(
                "the target, a function, returned what does not depend on the output by "
                "differentiable operations"
            )
        return torch.autograd.grad(value.sum(), leaf)[0]


def plain(target: Any) -> Any:
    """A target of Python's own integers: those of NumPy and tensors of one value are taken, too.

    Example:
        >>> import numpy
        >>> plain(numpy.int64(3)), plain([torch.tensor(1), 2]), plain(numpy.array([0, 1]))
        (3, [1, 2], [0, 1])
    """
    if isinstance(target, np.ndarray):
        return plain(target.tolist()) if target.dtype.kind == "i" else target
    if isinstance(target, np.integer):
        return int(target)
    if isinstance(target, Tensor) and target.dim() == 0 and _has_integers(target):
        return int(target)
    if type(target) in (list, tuple):
        return type(target)(plain(one) for one in target)
    return target


def _has_integers(target: Tensor) -> bool:
    is_integer = not (target.is_floating_point() or target.is_complex())
    return is_integer and target.dtype != torch.bool and kind_without_values(target) is None


def checked_target(output: Tensor, target: Any) -> list[tuple[int, ...]]:
    """For each example the indices of its target; raises for one that the output has not."""
    count, shape = output.shape[0], tuple(output.shape)
    target = plain(target)
    if target is None:
        if output.dim() != 1:
            raise ValueError(f"an output of shape {shape} needs a target")
        return [()] * count
    if output.dim() == 1:
        raise ValueError(f"the model gives one value for each example (shape {shape}): no target")
    if isinstance(target, Tensor):
        if not _has_integers(target):
            kind, _ = kind_without_values(target) or (f"of {target.dtype}", "")
            raise ValueError(
                f"target must be integers, found a tensor that is {kind}: pass class indices"
            )
        if target.numel() > 1 and target.shape != (count,):
            raise misfit(f"shape {tuple(target.shape)}", count)
        entries: list[Any] = target.flatten().tolist()
    elif isinstance(target, list):
        if len(target) != count:
            raise misfit(f"{len(target)} entries", count)
        entries = target
    elif isinstance(target, (int, tuple)) and not isinstance(target, bool):
        entries = [target]
    else:
        raise ValueError(
            f"target must be an int, a tuple, a list or a tensor of them, found {target!r}"
        )
    indices = [_indices(shape, entry) for entry in entries]
    return indices * count if len(indices) == 1 else indices


def misfit(found: str, count: int) -> ValueError:
    """The error for a target that is of another number of examples."""
    return ValueError(
        f"target has {found}, but there are {count} examples; give one class for all or one for "
        "each"
    )


def _indices(shape: tuple[int, ...], entry: Any) -> tuple[int, ...]:
    """One example's target as an index of each dimension after the first."""
    indices = entry if isinstance(entry, tuple) else (entry,)
    if len(indices) != len(shape) - 1:
        raise ValueError(
            f"target {entry!r} gives {len(indices)} index(es), but an output of shape {shape} "
            f"needs {len(shape) - 1} for each example"
        )
    for place, (index, size) in enumerate(zip(indices, shape[1:], strict=True), start=1):
        if not isinstance(index, int) or isinstance(index, bool):
            raise ValueError(
                f"target {entry!r} holds {index!r} ({type(index).__name__}), expected integers: "
                "pass class indices"
            )
        if not -size <= index < size:
            raise ValueError(
                f"target {entry!r} is out of range: dimension {place} of the output has "
                f"{size} values, 0 to {size - 1}"
            )
    return indices
