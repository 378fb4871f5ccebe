"""Models of token ids as functions of their embeddings, for methods that need gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captum_transformer_lrp.engine.recording import find_logits
from captum_transformer_lrp.errors import ExplanationError


class EmbeddingLookup(TorchFunctionMode):
    """While it is entered, watches for the look-up of some token ids, and may replace its result.

    It works on PyTorch's calls in this thread, so the model has neither hooks nor other changes.

    Args:
        ids: token ids (N, S), the very tensor that the model is given.
        replacement: what the look-up gives instead, (N, S, D); None for what it finds.

    Example:
        >>> import torch
        >>> table, ids = nn.Embedding(5, 2), torch.tensor([[3, 1]])
        >>> with EmbeddingLookup(ids, torch.ones(1, 2, 2)):
        ...     table(ids)
        tensor([[[1., 1.],
                 [1., 1.]]])
    """

    def __init__(self, ids: Tensor, replacement: Tensor | None = None) -> None:
        super().__init__()
        self._ids = ids
        self._replacement = replacement
        self._found: Tensor | None = None
        self._weight: Tensor | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Make the call, or replace its result."""
        kwargs = kwargs or {}
        if func is not F.embedding:
            return func(*args, **kwargs)
        indices: Tensor = kwargs["input"] if "input" in kwargs else args[0]
        if not self._is_looked_for(indices):
            return func(*args, **kwargs)
        if self._replacement is not None:
            self._found = self._replacement
            return self._replacement.reshape(*indices.shape, -1)
        self._found = func(*args, **kwargs)
        self._weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
        return self._found

    def found(self) -> Tensor:
        """The embeddings that the ids have, (N, S, D).

        Raises:
            ExplanationError: if nobody looked them up.
        """
        if self._found is None:
            raise ExplanationError(
                "no torch.nn.Embedding looked the token ids up as they were given: call "
                "the method with float embeddings (N, S, D) and a function that takes them, such "
                "as lambda embeddings: model(inputs_embeds=embeddings)"
            )
        return self._found.detach().reshape(*self._ids.shape, -1)

    def weight(self) -> Tensor:
        """The table that they were looked up in, (vocabulary, D)."""
        assert self._weight is not None
        return self._weight.detach()

    def _is_looked_for(self, indices: Tensor) -> bool:
        """The same memory: models reshape the ids, and other ids may have equal values."""
        with torch._C.DisableTorchFunction():  # who watches the model takes it for a way to write
            same_size = indices.numel() == self._ids.numel()
            return same_size and indices.data_ptr() == self._ids.data_ptr()


class FromInputs(nn.Module):
    """A model that returns its logits as a tensor and takes all arguments by position.

    Args:
        model: the model, or a function.
        names: the keyword arguments that the positional ones after the first stand for; empty if
            they are positional for the model, too.
    """

    def __init__(self, model: Callable[..., Any], names: Sequence[str] = ()) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, inputs: Tensor, *values: Any) -> Tensor:
        """The logits."""
        if not self.names:
            return find_logits(self.model(inputs, *values))
        return find_logits(self.model(inputs, **dict(zip(self.names, values, strict=True))))


class FromEmbeddings(FromInputs):
    """The same for a model of token ids, as a function of the embeddings looked up for them.

    The ids follow as the second argument: the model still runs on them, as far as it does more
    with them than look them up.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Embedding(5, 2), nn.Flatten())
        >>> FromEmbeddings(model)(torch.ones(1, 2, 2), torch.tensor([[3, 1]]))
        tensor([[1., 1., 1., 1.]])
    """

    def forward(self, inputs: Tensor, *values: Any) -> Tensor:
        """The logits at embeddings (N, S, D)."""
        ids, *rest = values
        lookup = EmbeddingLookup(ids, inputs)
        with lookup:
            logits = super().forward(ids, *rest)
        lookup.found()
        return logits
