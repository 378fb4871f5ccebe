"""Calls on token ids, which are followed to the embedding that looks them up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import (
    Args,
    Function,
    Kwargs,
    first_tensor,
    tensors_in,
)
from captum_transformer_lrp.engine.graph.structure import CASTS, JOINS, REARRANGEMENTS, UPDATES
from captum_transformer_lrp.engine.graph.tensor_table import HeldTable
from captum_transformer_lrp.engine.graph.values import is_laid_out_plainly
from captum_transformer_lrp.engine.watch import moves
from captum_transformer_lrp.engine.watch.context import Context
from captum_transformer_lrp.engine.watch.token_ids import ELEMENTWISE, TokenIds, moved
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.rules.spellings import spelled


def with_token_ids(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """A call on token ids: they are moved, computed with, or looked up."""
    found = [watch.look_ups.ids.get(tensor) for tensor in tensors_in((args, kwargs))]
    known = HeldTable((one.ids, one) for one in found if one is not None)
    first = known.values()[0]
    if function in UPDATES:
        return _write_ids(watch, function, args, kwargs, known)
    with torch.no_grad():
        result = function(*args, **kwargs)
    if isinstance(result, Tensor) and result.is_floating_point():
        looked_up = function in _LOOK_UPS and result.shape[:-1] == first.ids.shape
        return _looked_up(watch, result, first, args, kwargs) if looked_up else result
    parts = list(tensors_in(result))
    if not parts or any(one.is_floating_point() or one.dtype == torch.bool for one in parts):
        return result
    places: list[Tensor] = []
    if function in _MOVES and _joins_one_input(known):
        anyhow = moves.ANYHOW.get(function, function)
        places = moved(lambda change: moves.called_with(anyhow, args, kwargs, change), known)
    if parts[0].shape == first.ids.shape and (
        function in ELEMENTWISE or (function in _LOOK_UPS and not any(map(torch.any, places)))
    ):
        places = [first.places]
    for part, place in zip(parts, places, strict=bool(places)):
        watch.look_ups.ids[part] = first.become(part, place)
    return result


def _write_ids(
    watch: Context, function: Function, args: Args, kwargs: Kwargs, known: HeldTable[TokenIds]
) -> Any:
    """Ids that are written into others, as those of a decoder are."""
    target, _ = first_tensor(args, kwargs)
    base = target if target._base is None else target._base
    first = known.values()[0]
    followed = is_laid_out_plainly(base) and not base.is_floating_point()
    if followed and _joins_one_input(known):
        onto = watch.look_ups.ids.get(base)
        onto = onto or first.become(base, torch.zeros_like(base, dtype=torch.long))

        def run(change: Callable[[Tensor], Tensor]) -> Tensor:
            changed = change(base).clone()
            place = target.shape, target.stride(), int(target.storage_offset())
            onto_view = changed.as_strided(*place)
            moves.called_with(
                function, args, kwargs, lambda t: onto_view if t is target else change(t)
            )
            return changed

        known[base] = onto
        (places,) = moved(run, known)
        watch.look_ups.ids[base] = first.become(base, places)
        if target is not base:
            of_view = places.as_strided(target.shape, target.stride(), int(target.storage_offset()))
            watch.look_ups.ids[target] = first.become(target, of_view)
    with torch.no_grad():
        return function(*args, **kwargs)


def _looked_up(
    watch: Context, embedded: Tensor, ids: TokenIds, args: Args, kwargs: Kwargs
) -> Tensor:
    """Embeddings of token ids: here the tape begins."""
    examples = ids.examples
    axis = examples.axis or 0
    leaf = watch.precision.raised(embedded.movedim(axis, 0).detach()).requires_grad_()
    watch.look_ups.leaves.append((ids.index, leaf, ids.places.movedim(axis, 0)))
    result = leaf.movedim(0, axis)
    mark = watch.tape.given(examples, ids.index, features=-1)
    watch.tape.marks[leaf] = watch.tape.marks[result] = mark
    of_input = ids.places > 0
    if not bool(of_input.all()):  # what the model's own ids get is the table's
        own = watch.precision.raised(embedded.detach())
        name = next((n for n in map(watch.names.of_constant, tensors_in((args, kwargs))) if n), "")
        watch.names.constants[own] = name or watch.names.caller()
        return moves.join(watch, torch.where, (of_input.unsqueeze(-1), result, own), {})
    return result


def check_indices(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> None:
    """Raise for float values that are looked up, before PyTorch says so in words of its own."""
    if function in _INDICES_FIRST:
        indices = kwargs["input"] if "input" in kwargs else args[0]
    else:
        indices = args[1:3], kwargs.get("index"), kwargs.get("indices")
    for tensor in tensors_in(indices):
        if tensor.is_floating_point():
            raise ExplanationError(
                f"{watch.names.caller()} looks up {tensor.dtype} values in a table, found in the "
                "place of token ids, which cannot be moved by noise (NoiseTunnel, "
                "sensitivity_max): call the method with the embeddings (N, S, D) and a function "
                "that takes them, such as "
                "lambda embeddings, mask: model(inputs_embeds=embeddings, attention_mask=mask)"
            )


def _joins_one_input(known: HeldTable[TokenIds]) -> bool:
    return len({one.index for one in known.values()}) == 1


_MOVES = REARRANGEMENTS | JOINS | CASTS | frozenset(spelled("masked_fill"))

_LOOK_UPS = frozenset(spelled("embedding", "index_select", "__getitem__"))
INDEXED = _LOOK_UPS | frozenset(spelled("embedding_bag"))
_INDICES_FIRST = frozenset({F.embedding, F.embedding_bag})
