"""Explanations of generated text, token by token, from one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


class ExplainsTargets(Protocol):
    """Any method of this library that explains several targets of one forward pass."""

    def attribute_targets(
        self, inputs: Any, targets: Any, additional_forward_args: Any = None
    ) -> list[Any]:
        """For each target what ``attribute`` returns."""
        ...


def explain_continuation(
    attribution: ExplainsTargets,
    input_ids: Tensor,
    continuation_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    continuation_mask: Tensor | None = None,
    additional_forward_args: Mapping[str, Any] | None = None,
) -> Tensor:
    """Explain each token of a continuation by the tokens before it, in one forward pass.

    The model is run once, on prompt and continuation together (teacher forcing).  The logit of
    each continuation token, at the position before it, is explained: in a causal model no later
    token has a part in it.

    Args:
        attribution: a method made for a causal language model whose logits are (N, positions,
            vocabulary), such as ``TransformerAttribution(model)``.
        input_ids: the prompt's token ids (N, S), padded on either side.
        continuation_ids: the token ids that follow (N, T): generated, or any others; padded on
            the right.
        attention_mask: (N, S), 0 at the padding of the prompt; None if there is none.
        continuation_mask: (N, T), 0 at the padding of the continuation; None if there is none.
        additional_forward_args: further keyword arguments of the model.  Those of shape (N, S + T),
            such as ``position_ids``, are of the tokens in their order here.

    Returns:
        (N, T, S + T): for each continuation token a map over prompt and continuation; zero at
        padding and from the explained token on, and all zero for padding of the continuation.

    Raises:
        ValueError: if shapes do not fit, or a prompt is empty.

    Example:
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from captum_transformer_lrp import TransformerAttribution, explain_continuation
        >>> _ = torch.manual_seed(0)
        >>> config = GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=2, n_head=2)
        >>> model = GPT2LMHeadModel(config).eval()
        >>> prompt, continuation = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9]])
        >>> maps = explain_continuation(TransformerAttribution(model), prompt, continuation)
        >>> maps.shape
        torch.Size([1, 2, 5])
        >>> maps[0, 0, 3:]  # the first new token is explained by the prompt alone
        tensor([0., 0.])
    """
    prompt_mask = _mask(attention_mask, input_ids, "input_ids")
    own_mask = _mask(continuation_mask, continuation_ids, "continuation_ids")
    if len(input_ids) != len(continuation_ids):
        raise ValueError(
            f"there are {len(input_ids)} prompts, but {len(continuation_ids)} continuations"
        )
    if not bool(prompt_mask.any(1).all()):
        raise ValueError("a prompt has no tokens, so nothing comes before its continuation")
    if bool((own_mask[:, 1:] & ~own_mask[:, :-1]).any()):
        raise ValueError("continuations must be padded on the right")
    ids = torch.cat([input_ids, continuation_ids], 1)
    mask = torch.cat([prompt_mask, own_mask], 1)
    # Padding goes behind the tokens, where a causal model does not see it and every token has the
    # position that it has without padding.
    order = torch.argsort((~mask).int(), dim=1, stable=True)
    ordered, seen = ids.gather(1, order), mask.gather(1, order)
    arguments = {
        name: value.gather(1, order) if _of_tokens(value, ids) else value
        for name, value in (additional_forward_args or {}).items()
    }
    if not bool(mask.all()):
        arguments["attention_mask"] = seen.long()
    lengths = prompt_mask.sum(1)
    targets = []
    for step in range(continuation_ids.shape[1]):
        # A continuation that has ended already is explained at its last token, and then emptied.
        last = torch.minimum(lengths + step, mask.sum(1) - 1)
        tokens = ordered.gather(1, last.unsqueeze(1)).squeeze(1)
        targets.append(list(zip((last - 1).tolist(), tokens.tolist(), strict=True)))
    found = attribution.attribute_targets(ordered, targets, arguments)
    maps = torch.stack(found, 1) * own_mask.unsqueeze(-1)
    back = order.unsqueeze(1).expand_as(maps)
    return torch.zeros_like(maps).scatter(2, back, maps)


def _of_tokens(value: Any, ids: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == ids.shape


def _mask(mask: Tensor | None, ids: Any, name: str) -> Tensor:
    if not isinstance(ids, Tensor):
        raise ValueError(
            f"{name} must be a tensor of token ids (N, S), found {type(ids).__name__}: "
            "explain_generation(model, tokenizer, prompt) takes texts"
        )
    if ids.dim() != 2 or ids.is_floating_point():
        raise ValueError(f"{name} must be token ids (N, S), found {ids.dtype} {tuple(ids.shape)}")
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if mask.shape != ids.shape:
        raise ValueError(
            f"the mask of {name} has shape {tuple(mask.shape)}, but {name} {tuple(ids.shape)}"
        )
    return mask.bool()
