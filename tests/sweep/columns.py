"""What is checked of one model: what ``verify`` checks, and what a sweep wants to know besides."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from captum_transformer_lrp import (
    ExplanationError,
    TransformerAttribution,
    TransformerLRP,
    verify,
)
from captum_transformer_lrp.attr.targets import seed
from captum_transformer_lrp.engine.graph.op import Books
from captum_transformer_lrp.engine.phases import Relevance, Rollout
from captum_transformer_lrp.engine.recording import Recording
from tests.sweep.cases import Case
from tests.sweep.results import Result
from tests.sweep.softmax_attention import computes_softmax_attention


def examine(case: Case, result: Result) -> None:
    """Fill in the columns of ``result``, and its verdict."""
    start = time.process_time()
    inputs = case.inputs if isinstance(case.inputs, tuple) else (case.inputs,)
    arguments = case.additional_forward_args
    result.parameters = sum(parameter.numel() for parameter in case.model.parameters())
    result.inputs = [list(value.shape) for value in inputs]
    explained = case.forward or case.model
    method = TransformerAttribution(explained, dtype=torch.float64)
    try:
        with torch.no_grad():
            _, result.softmax_attention = computes_softmax_attention(
                lambda: explained(*inputs, **arguments)
            )
        verification = verify(
            case.model,
            case.inputs,
            case.target,
            additional_forward_args=arguments,
            attribution=method,
        )
        result.take(verification)
        with method._recorded(case.inputs, arguments) as recording:
            result.readout = readout(recording, seed(recording.output, case.target))
    except ExplanationError as error:
        result.verdict, result.reason = "refused", f"{type(error).__name__}: {error}"
        if not result.softmax_attention:
            result.propagates = _propagates(case)
    finally:
        result.seconds = round(time.process_time() - start, 2)


def readout(recording: Recording, start: Tensor) -> str:
    """Which tokens of the last token sequence the answer is read from, in words.

    This is where the rollout phase's mass lies before any attention has moved it.
    """
    tape = recording.tape
    if not tape.streams:
        return "no skip connection around an attention"
    stream = tape.streams[-1].tensor
    mark = tape.mark(stream)
    assert mark is not None
    (mass,) = tape.backward(Rollout(), recording.output, start, [stream])
    if mark.examples.axis is not None and mark.examples.index is None:
        mass = mass.select(mark.examples.axis, 0)
        features = stream.dim() - 1 == mass.dim()
    else:
        features = True
    # A token is a place along all axes but the features, which the mass is spread over.
    return _in_words(_by_token(mass, is_map=features and stream.dim() == 4))


def _by_token(mass: Tensor, *, is_map: bool) -> Tensor:
    """The mass of every token: features are the last axis, or the first of (C, H, W)."""
    if not is_map:
        return mass.sum(-1).flatten()
    last, first = mass.sum(-1).flatten(), mass.sum(0).flatten()
    by_channel = mass.flatten(1).std(0).mean() < mass.flatten(0, 1).std(0).mean()
    return first if by_channel else last


def _in_words(tokens: Tensor) -> str:
    total = float(tokens.sum())
    count = len(tokens)
    if total <= 0:
        return "the tokens that a last attention pools"
    read = (tokens > 1e-9 * total).nonzero().flatten().tolist()
    shares = tokens[read] / total
    even = bool((shares.max() - shares.min()) < 1e-6)
    if count == 1:
        return "one token"
    if len(read) == 1:
        place = {0: "the first token", count - 1: "the last token"}
        return place.get(read[0], f"token {read[0]}")
    how = "the mean of" if even else "a weighted mean of"
    if len(read) == count:
        return f"{how} all tokens"
    if read == list(range(count - len(read), count)):
        return f"{how} all tokens but the first {count - len(read)}".replace(
            "the first 1", "the first"
        )
    if len(read) <= 3:
        return f"{how} tokens {', '.join(map(str, read))}"
    return f"{how} {len(read)} of {count} tokens"


def _propagates(case: Case) -> float | str:
    """What ``TransformerLRP`` loses on a model without softmax attention."""
    method = TransformerLRP(case.forward or case.model, dtype=torch.float64)
    try:
        with method._recorded(
            case.inputs, case.additional_forward_args, keeps_books=True
        ) as recording:
            start = seed(recording.output, case.target)
            leaves = [leaf for found in recording.leaves for leaf in found]
            books = Books()
            phase = Relevance(books)
            arrived = recording.tape.backward(phase, recording.output, start, leaves)
            parts = [value.flatten(1).sum(1) for value in arrived]
            total = torch.stack([*parts, *books.shares.values()]).sum(0)
            return float((total - 1).abs().max())
    except ExplanationError as error:
        return f"{type(error).__name__}: {error}"
