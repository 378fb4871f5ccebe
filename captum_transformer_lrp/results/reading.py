"""What a language model reads: the prompt, and what was or will be written after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from captum_transformer_lrp.errors import ArgumentError
from captum_transformer_lrp.models import LanguageModel
from captum_transformer_lrp.results.spelling import token_ids, with_and_without_space
from captum_transformer_lrp.results.written import most_probable

_NEW_TOKENS = 20


def prompt_ids(
    tokenizer: Any, prompt: str, messages: Sequence[Mapping[str, Any]] | None
) -> list[int]:
    """The tokens of a prompt, or of a conversation up to where the model answers."""
    if messages is not None and prompt:
        raise ArgumentError("found both a prompt and messages=: give one of them")
    if messages is None:
        found = tokenizer(prompt)["input_ids"]
    else:
        template = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False
        )
        found = token_ids(tokenizer, template)
    if not found or (not prompt.strip() and messages is None):
        raise ArgumentError("found an empty prompt, expected at least one word, or messages=")
    return [int(one) for one in found]


def continuation_ids(
    loaded: LanguageModel,
    prompt: str,
    asked: Sequence[int],
    messages: Any,
    continuation: str | Sequence[int] | Tensor,
) -> list[int]:
    """The tokens of a continuation as they follow those of the prompt."""
    tokenizer = loaded.tokenizer
    if not isinstance(continuation, str):
        found = np.asarray(continuation).reshape(-1).astype(int).tolist()
    elif not continuation:
        found = []
    else:
        several = []
        for one in with_and_without_space(continuation):
            together = [] if messages is not None else tokenizer(prompt + one)["input_ids"]
            joined = list(together[: len(asked)]) == list(asked)
            ids = list(together[len(asked) :]) if joined else token_ids(tokenizer, one)
            if ids and ids not in several:
                several.append(ids)
        found = most_probable(loaded.model, asked, several)
    if not found:
        raise ArgumentError("found an empty continuation, expected at least one token")
    return [int(one) for one in found]


def generated(
    loaded: LanguageModel, asked: Sequence[int], count: int | None, options: Mapping[str, Any]
) -> list[int]:
    """What the model writes."""
    if count is None:
        most = getattr(getattr(loaded.model, "config", None), "max_position_embeddings", None)
        count = min(_NEW_TOKENS, (most or len(asked) + _NEW_TOKENS) - len(asked))
    if count < 1:
        raise ArgumentError(f"found max_new_tokens={count}, expected at least 1")
    if not hasattr(loaded.model, "generate"):
        raise ArgumentError(
            f"{type(loaded.model).__name__} has no generate(): give what was written as "
            "continuation="
        )
    ids = torch.tensor([asked], device=next(loaded.model.parameters()).device)
    padding = loaded.tokenizer.pad_token_id
    settings = {
        "do_sample": False, "attention_mask": torch.ones_like(ids),
        "pad_token_id": loaded.tokenizer.eos_token_id if padding is None else padding,
        "max_new_tokens": count, **options,
    }  # fmt: skip
    with torch.no_grad():
        found = cast(Any, loaded.model).generate(ids, **settings)
    found = getattr(found, "sequences", found)[0, len(asked) :].tolist()
    if not found:
        raise ArgumentError("the model wrote nothing: give what was written as continuation=")
    return [int(one) for one in found]
