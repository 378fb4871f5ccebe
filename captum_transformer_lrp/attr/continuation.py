"""Explanations of generated text, token by token, from one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias, cast

import torch
from torch import Tensor

from captum_transformer_lrp.attr.targets import plain
from captum_transformer_lrp.engine.recording import find_logits
from captum_transformer_lrp.engine.watch.checks import kind_without_values
from captum_transformer_lrp.engine.watch.writes import unchanged
from captum_transformer_lrp.errors import ArgumentError, ExplanationError

Hops: TypeAlias = int | Literal["all"]


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
    hops: Hops = 0,
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
        hops: how many times relevance on continuation tokens is passed on to what these come from,
            as ``through_written`` does; "all" leaves none on them.

    Returns:
        (N, T, S + T): for each continuation token a map over prompt and continuation; zero at
        padding and from the explained token on, and all zero for padding of the continuation.

    Raises:
        TypeError: for anything but a method and tensors.
        ValueError: if shapes do not fit, or a prompt is empty.
        ExplanationError: if the model is not causal.

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
    if not callable(getattr(attribution, "attribute_targets", None)):
        raise TypeError(
            "attribution must be a method made for a model, such as "
            f"TransformerAttribution(model), found {type(attribution).__name__}"
        )
    hops = checked_hops(hops)
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
    arguments = dict(additional_forward_args or {})
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.shape == ids.shape:
            arguments[name] = value.gather(1, order)
    if not bool(mask.all()):
        arguments["attention_mask"] = seen.long()
    lengths = prompt_mask.sum(1)
    _check_causal(attribution, ordered, arguments, lengths)
    targets, explained = [], []
    for step in range(continuation_ids.shape[1]):
        # A continuation that has ended already is explained at its last token, and then emptied.
        last = torch.minimum(lengths + step, mask.sum(1) - 1)
        tokens = ordered.gather(1, last.unsqueeze(1)).squeeze(1)
        targets.append(list(zip((last - 1).tolist(), tokens.tolist(), strict=True)))
        explained.append(last)
    found = attribution.attribute_targets(ordered, targets, arguments)
    maps = torch.stack(found, 1) * own_mask.unsqueeze(-1)
    later = torch.arange(ids.shape[1], device=ids.device) >= torch.stack(explained, 1).unsqueeze(-1)
    if float((maps * later).abs().max()) > 1e-6 * float(maps.abs().max()):
        raise ExplanationError(_NOT_CAUSAL)
    back = order.unsqueeze(1).expand_as(maps)
    maps = torch.zeros_like(maps).scatter(2, back, maps)
    return through_written(maps, maps, input_ids.shape[1], hops) if hops else maps


def through_written(maps: Tensor, written: Tensor, start: int, hops: Hops) -> Tensor:
    """Pass relevance on written tokens on to the tokens that these come from, hop by hop.

    Each written token's row is divided by the sum of its absolute values.  Its columns of the
    prompt are P, those of written tokens W, which has nothing on and above its diagonal.  A map
    (p, w) becomes (p + w (I + W + … + W^(k−1)) P, w W^k) after k hops, and W^T is zero.  Signs
    multiply: what speaks against a token that speaks for the answer, speaks against the answer.  So
    a hop never adds to the sum of absolute values, and keeps the sum where no row has both signs.
    Recursive attribution is FlashTrace's (Pan et al. 2026, arXiv 2602.01914), which drops what is
    negative.

    Args:
        maps: (…, rows, columns), what is explained.
        written: (…, T, columns), the maps of the T written tokens, in their order.  A token whose
            map is zero keeps what it has.
        start: the column of the first written token.
        hops: how many times; "all" for until nothing is left to pass on.

    Returns:
        Maps like ``maps``, summed up in float64.

    Raises:
        ArgumentError: for what is no number of hops.
        ExplanationError: if a written token has relevance on itself or on later ones.

    Example:
        >>> prompt_then_written = torch.tensor([[1.0, 3.0, 0.0, 0.0], [0.0, 1.0, 4.0, 0.0]])
        >>> through_written(prompt_then_written, prompt_then_written, 2, "all")
        tensor([[1., 3., 0., 0.],
                [1., 4., 0., 0.]])
    """
    hops = checked_hops(hops)
    count = written.shape[-2]
    own = slice(start, start + count)
    shares = written.double()
    later = shares[..., own].triu()
    if later.numel() and float(later.abs().max()) > 1e-6 * float(shares.abs().max()):
        raise ExplanationError(
            "a written token has relevance on itself or on later tokens, so that there is no hop "
            "back: give a causal language model, and a method that gives later tokens none"
        )
    shares = shares.clone()
    shares[..., own] -= later
    total = shares.abs().sum(-1, keepdim=True)
    shares /= total.masked_fill(total == 0, 1)
    found = maps.double()
    for _ in range(count if hops == "all" else min(hops, count)):
        moved = found[..., own] * (total > 0).transpose(-2, -1)
        if not moved.any():
            break
        found = found + moved @ shares
        found[..., own] -= moved
    return found.to(maps.dtype)


def checked_hops(hops: Any) -> Hops:
    """A number of hops of Python's own, or "all"; raises for anything else."""
    number = plain(hops)
    if number == "all" or (type(number) is int and number >= 0):
        return cast(Hops, number)
    raise ArgumentError(f"found hops={hops!r}, expected a number from 0, or 'all'")


def _check_causal(
    attribution: Any, ids: Tensor, arguments: Mapping[str, Any], lengths: Tensor
) -> None:
    """Raise if what follows a prompt has a part in the logits at the prompt."""
    model = getattr(attribution, "forward_func", None)
    if model is None:
        return
    before = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
    others = torch.where(before, ids, (ids == 0).to(ids.dtype))
    logits = []
    for one in (others, ids):
        with torch.no_grad(), unchanged(model, arguments):
            logits.append(find_logits(model(one, **arguments)))
    found, expected = logits
    if found.shape[:2] != ids.shape:
        raise ExplanationError(
            f"the model returned shape {tuple(found.shape)} for token ids {tuple(ids.shape)}, "
            "expected logits (N, positions, vocabulary): explain_continuation is for language "
            "models"
        )
    difference = float((found - expected)[before].abs().max())
    rounding = max(1e-5, 4 * torch.finfo(found.dtype).eps) * float(expected[before].abs().max())
    if difference > rounding:
        raise ExplanationError(_NOT_CAUSAL)


_NOT_CAUSAL = (
    "the model is not causal: what follows a token has a part in the logits before it, so that a "
    "continuation would be explained by itself; build it as a decoder, such as with "
    "is_decoder=True, or explain one masked position by attribute(ids, target=(position, token))"
)


def _mask(mask: Tensor | None, ids: Tensor, name: str) -> Tensor:
    for value, what in ((ids, name), (mask, f"the mask of {name}")):
        if isinstance(value, Tensor):
            kind = kind_without_values(value)
            if kind is not None:
                raise TypeError(f"{what} is {kind[0]}, expected a dense tensor: {kind[1]}")
        elif value is not None or what == name:
            advice = ": explain_generation(model, tokenizer, prompt) takes texts"
            raise TypeError(
                f"{what} must be a tensor (N, S), found {type(value).__name__}"
                f"{advice if what == name else ''}"
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
