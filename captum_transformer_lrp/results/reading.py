"""What a language model reads: the prompt, and what was or will be written after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from captum_transformer_lrp.errors import ArgumentError
from captum_transformer_lrp.models import LanguageModel
from captum_transformer_lrp.printing import check_text, check_utf8
from captum_transformer_lrp.results.classes import check_count
from captum_transformer_lrp.results.given_models import naming_length
from captum_transformer_lrp.results.seen import Seen, look, with_image_tokens
from captum_transformer_lrp.results.spelling import (
    check_token_id,
    token_ids,
    with_and_without_space,
)
from captum_transformer_lrp.results.written import Reader, most_probable

_NEW_TOKENS = 20


def prompt_ids(
    loaded: LanguageModel,
    processor: Any,
    prompt: str,
    messages: Sequence[Mapping[str, Any]] | None,
    images: Any,
) -> tuple[list[int], Seen | None]:
    """The tokens of a prompt, or of a conversation up to where the model answers; and its images.

    Where there are images, the processor makes pixels of them.
    """
    if messages is None:
        if isinstance(prompt, str) and not prompt.strip():
            raise ArgumentError("found an empty prompt, expected at least one word, or messages=")
        check_text(prompt)
    elif prompt:
        raise ArgumentError("found both a prompt and messages=: give one of them")
    else:
        templates = loaded.tokenizer if images is None else processor
        prompt = templates.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False
        )
    if images is not None:
        prompt = with_image_tokens(processor, prompt, images)
        return look(processor, loaded.model, prompt, images)
    if messages is not None:
        return token_ids(loaded.tokenizer, prompt), None
    return [int(one) for one in loaded.tokenizer(prompt)["input_ids"]], None


def continuation_ids(
    reader: Reader,
    tokenizer: Any,
    prompt: str,
    asked: Sequence[int],
    continuation: str | Sequence[int] | Tensor,
) -> list[int]:
    """The tokens of a continuation as they follow those of the prompt, if that is a plain text."""
    if not isinstance(continuation, str):
        found = _ids_of_one_text(tokenizer, continuation)
    else:
        check_utf8(continuation)
        several = []
        for one in with_and_without_space(continuation):
            together = tokenizer(prompt + one)["input_ids"] if prompt else []
            joined = bool(prompt) and list(together[: len(asked)]) == list(asked)
            ids = list(together[len(asked) :]) if joined else token_ids(tokenizer, one)
            if ids and ids not in several:
                several.append(ids)
        found = most_probable(reader, asked, several) if several else []
    if not found:
        raise ArgumentError("found an empty continuation, expected at least one token")
    return [int(one) for one in found]


def _ids_of_one_text(tokenizer: Any, continuation: Sequence[int] | Tensor) -> list[int]:
    given = continuation.cpu() if isinstance(continuation, Tensor) else continuation
    found = np.atleast_1d(given)
    if found.size and (found.dtype.kind not in "iu" or found.size != found.shape[-1]):
        raise ArgumentError(
            f"found a continuation of {found.dtype} and shape {found.shape}, expected a text, or "
            "the integer token ids (T,) of one"
        )
    ids: list[int] = found.reshape(-1).tolist()
    for one in ids:
        check_token_id(tokenizer, one)
    return ids


def generated(
    reader: Reader,
    tokenizer: Any,
    asked: Sequence[int],
    count: int | None,
    options: Mapping[str, Any],
) -> list[int]:
    """What the model writes."""
    model = reader.model
    if count is None:
        most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        count = min(_NEW_TOKENS, (most or len(asked) + _NEW_TOKENS) - len(asked))
        if count < 1:
            raise ArgumentError(
                f"found a prompt of {len(asked)} tokens, and the model has positions for {most}, "
                "so that it can write nothing: give a shorter one"
            )
    check_count("max_new_tokens", count)
    if not hasattr(model, "generate"):
        raise ArgumentError(
            f"{type(model).__name__} has no generate(): give what was written as continuation="
        )
    ids, padding = reader.given(asked), tokenizer.pad_token_id
    settings = {
        "do_sample": False, "attention_mask": torch.ones_like(ids),
        "pad_token_id": tokenizer.eos_token_id if padding is None else padding,
        "max_new_tokens": count, **options,
    }  # fmt: skip
    if reader.seen is not None:
        settings |= {**reader.seen.arguments(len(asked)), "pixel_values": reader.seen.pixels}
    with torch.no_grad(), naming_length(model, len(asked) + count):
        # By name: the first argument of BLIP-2's are the pixels.
        found = cast(Any, model).generate(input_ids=ids, **settings)
    found = getattr(found, "sequences", found)[0, len(asked) :].tolist()
    if not found:
        raise ArgumentError("the model wrote nothing: give what was written as continuation=")
    return [int(one) for one in found]
