"""From Captum's target types to the seed that every backward phase starts from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum._utils.common import _select_targets
from torch import Tensor


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
    check_target(output, target)
    with torch.enable_grad():
        leaf = torch.zeros_like(output, requires_grad=True)
        selected = leaf if target is None else _select_targets(leaf, target)
        if selected.numel() != output.shape[0]:
            raise ValueError(
                f"target {target!r} selects {selected.numel() // output.shape[0]} values for each "
                f"example of an output of shape {tuple(output.shape)}; give an index for each "
                f"dimension after the first, e.g. target=({', '.join('0' * (output.dim() - 1))},)"
            )
        return torch.autograd.grad(selected.sum(), leaf)[0]


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


def check_target(output: Tensor, target: Any) -> None:
    """Raise for a target that the output has no value for."""
    count, shape = output.shape[0], tuple(output.shape)
    if target is None:
        if output.dim() != 1:
            raise ValueError(f"an output of shape {shape} needs a target")
        return
    if output.dim() == 1:
        raise ValueError(f"the model gives one value for each example (shape {shape}): no target")
    if isinstance(target, Tensor):
        if target.is_floating_point():
            raise ValueError(f"target must be integers, found a tensor of {target.dtype}")
        if target.numel() > 1 and target.shape != (count,):
            raise ValueError(
                f"target has shape {tuple(target.shape)}, but there are {count} examples; give one "
                "class for all or one for each"
            )
        entries: list[Any] = target.flatten().tolist()
    elif isinstance(target, list):
        if len(target) != count:
            raise ValueError(
                f"target has {len(target)} entries, but there are {count} examples; give one "
                "class for all or one for each"
            )
        entries = target
    elif isinstance(target, (int, tuple)) and not isinstance(target, bool):
        entries = [target]
    else:
        raise ValueError(
            f"target must be an int, a tuple, a list or a tensor of them, found {target!r}"
        )
    for entry in entries:
        indices = entry if isinstance(entry, tuple) else (entry,)
        if len(indices) != output.dim() - 1:
            raise ValueError(
                f"target {entry!r} gives {len(indices)} index(es), but an output of shape {shape} "
                f"needs {output.dim() - 1} for each example"
            )
        for place, index in enumerate(indices):
            size = shape[1 + place]
            if not isinstance(index, int) or not -size <= index < size:
                raise ValueError(
                    f"target {entry!r} is out of range: dimension {1 + place} of the output has "
                    f"{size} values, 0 to {size - 1}"
                )
