"""The tape's gradient at the inputs beside plain autograd's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from captum_transformer_lrp.engine.recording import Recording, find_logits


def gradients_at_inputs(
    recording: Recording,
    start: Tensor,
    inputs: tuple[Tensor, ...],
    called: Callable[[tuple[Tensor, ...]], Any],
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradient of the target at each input; for token ids at the embeddings looked up for them.

    Returns:
        The tape's, and autograd's of ``called``, the plain model.

    Raises:
        LookupError: if the embeddings that the plain model looks up cannot be recognised.
    """
    taped = recording.run(recording.gradient, start, recording.all_leaves)
    leaves = tuple(
        value.detach().clone().requires_grad_() if value.is_floating_point() else value
        for value in inputs
    )
    with torch.enable_grad(), _Embeddings() as embeddings:
        output = find_logits(called(leaves))
    wanted: list[Tensor] = []
    masks: list[Tensor | None] = []
    for value, of_input, places in zip(leaves, recording.leaves, recording.places, strict=True):
        if value.is_floating_point():
            wanted.append(value)
            masks.append(None)
            continue
        wanted += [embeddings.equal_to(leaf) for leaf in of_input]
        # What the model looks up for ids of its own is no part of the input.
        masks += [(of_leaf > 0).unsqueeze(-1) for of_leaf in places]
    plain = torch.autograd.grad(output, wanted, start.to(output.dtype), allow_unused=True)
    expected, found = [], []
    for value, gradient, one, mask in zip(wanted, plain, taped, masks, strict=True):
        whole = torch.zeros_like(value) if gradient is None else gradient
        whole = whole if whole.shape == one.shape else whole.transpose(0, 1)
        expected.append(whole if mask is None else whole * mask)
        found.append(one if mask is None else one * mask)
    return found, expected


class _Embeddings(TorchFunctionMode):
    """Keeps what is looked up in any embedding."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[Tensor] = []

    def equal_to(self, leaf: Tensor) -> Tensor:
        """The first look-up of these values (or with the batch in the second place), once."""
        for place, one in enumerate(self._found):
            for laid in (one, one.transpose(0, 1)):
                if laid.shape == leaf.shape and torch.equal(laid.to(leaf.dtype), leaf):
                    return self._found.pop(place)
        raise LookupError("the tape's embeddings are none of the model's")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not F.embedding:
            return result
        looked_up = result.detach().requires_grad_()
        self._found.append(looked_up)
        return looked_up * 1  # no leaf: some models scale it in place
