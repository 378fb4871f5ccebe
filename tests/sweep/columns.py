"""What is checked of one model."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from captum_transformer_lrp import ExplanationError, TransformerAttribution, TransformerLRP
from captum_transformer_lrp.attr.targets import seed
from captum_transformer_lrp.engine.graph.step import Books
from captum_transformer_lrp.engine.phases import Relevance, Rollout
from captum_transformer_lrp.engine.recording import Recording, find_logits
from tests.sweep.cases import Case
from tests.sweep.results import Result
from tests.sweep.softmax_attention import computes_softmax_attention


def examine(case: Case, result: Result) -> None:
    """Fill in the columns of ``result``, and its verdict."""
    start = time.process_time()
    result.parameters = sum(parameter.numel() for parameter in case.model.parameters())
    result.inputs = [list(value.shape) for value in _tuple(case.inputs)]
    before = _state(case)
    try:
        with torch.no_grad():
            plain, result.softmax_attention = computes_softmax_attention(
                lambda: find_logits(_called(case))
            )
        method = TransformerAttribution(_explained(case), dtype=torch.float64)
        try:
            _explain(case, method, plain, result)
        except ExplanationError as error:
            result.verdict, result.reason = "refused", f"{type(error).__name__}: {error}"
            if not result.softmax_attention:
                result.propagates = _propagates(case)
            return
        result.judge()
        if before != _state(case):
            result.verdict, result.reason = "failed", "the model's parameters or buffers changed"
    finally:
        result.seconds = round(time.process_time() - start, 2)


def _explain(case: Case, method: TransformerAttribution, plain: Tensor, result: Result) -> None:
    arguments = case.additional_forward_args
    explanation = method.explain(case.inputs, case.target, arguments)
    result.attentions = len(explanation.attentions)
    result.output = _difference([explanation.output], [plain])
    result.relevance = float((explanation.total - 1).abs().max())
    shares = {name: float(share.abs().mean()) for name, share in explanation.absorbed.items()}
    largest = sorted(shares, key=lambda name: -shares[name])[:5]
    result.absorbed = {name: round(shares[name], 4) for name in largest if shares[name] >= 5e-5}
    maps = _tuple(explanation.attributions)
    result.finite = all(bool(one.isfinite().all()) and bool((one >= 0).all()) for one in maps)
    result.shape = all(
        _is_map_of(one, value) for one, value in zip(maps, _tuple(case.inputs), strict=True)
    )
    result.batch = _batch_difference(case, method, maps)
    result.classes = _class_difference(case, method, explanation.output, maps)
    with method._recorded(case.inputs, arguments) as recording:
        start = seed(recording.output, case.target)
        result.gradient = _gradient_difference(case, recording, start)
        result.readout = readout(recording, start)


def _is_map_of(found: Tensor, value: Tensor) -> bool:
    """Whether it has the shape of the input and is no constant along any axis of its tokens."""
    if found.shape != value.shape:
        return False
    if value.dim() == 5:  # frames, and channels behind them
        found = found.sum(2)
        axes = [1, 2, 3]
    elif value.is_floating_point() and value.dim() == 4:
        found = found.sum(1)
        axes = [1, 2]
    else:
        axes = [1]
    varies = [found.shape[axis] == 1 or _varies(found, axis) for axis in axes]
    if value.is_floating_point() and value.dim() == 3:  # sound: features and time in either order
        varies = [varies[0] or _varies(found, 2)]
    return all(varies)


def _varies(found: Tensor, axis: int) -> bool:
    """Whether it does along an axis, by more than rounding."""
    return bool(found.std(axis).amax() > 1e3 * torch.finfo(found.dtype).eps * found.abs().mean())


def _batch_difference(case: Case, method: TransformerAttribution, maps: Iterable[Tensor]) -> float:
    """Between each example's maps in the batch and by itself, the largest."""
    count = len(_tuple(case.inputs)[0])
    maps = list(maps)

    def cut(value: Any, place: int) -> Any:
        batched = isinstance(value, Tensor) and value.dim() > 0 and len(value) == count
        return value[place : place + 1] if batched else value

    def alone(place: int) -> list[Tensor]:
        inputs = tuple(cut(value, place) for value in _tuple(case.inputs))
        single = method.attribute(
            inputs if isinstance(case.inputs, tuple) else inputs[0],
            cut(case.target, place),
            {name: cut(value, place) for name, value in case.additional_forward_args.items()},
        )
        return list(_tuple(single))

    return max(
        _difference([one[place : place + 1] for one in maps], alone(place))
        for place in range(count)
    )


def _class_difference(
    case: Case, method: TransformerAttribution, output: Tensor, maps: Iterable[Tensor]
) -> float | None:
    """Between the maps of two classes, the largest; None for models with one output."""
    other = _other_target(case.target, output.shape[-1])
    if output.dim() == 1 or other is None:
        return None
    found = method.attribute(case.inputs, other, case.additional_forward_args)
    return _difference(list(_tuple(found)), list(maps))


def _other_target(target: Any, classes: int) -> Any:
    if classes < 2:
        return None
    if isinstance(target, tuple):
        return (*target[:-1], _other_target(target[-1], classes))
    if isinstance(target, list):
        return [_other_target(one, classes) for one in target]
    return (target + 1) % classes


def _gradient_difference(case: Case, recording: Recording, start: Tensor) -> float:
    """Between the tape's gradient at the inputs (token ids: their embeddings) and autograd's."""
    leaves = recording.all_leaves
    taped = recording.tape.backward(recording.gradient, recording.output, start, leaves)
    inputs = tuple(
        value.clone().requires_grad_() if value.is_floating_point() else value
        for value in _tuple(case.inputs)
    )
    with torch.enable_grad(), _Embeddings() as embeddings:
        output = find_logits(_called(case, inputs))
    wanted: list[Tensor] = []
    masks: list[Tensor | None] = []
    for value, of_input, places in zip(inputs, recording.leaves, recording.places, strict=True):
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
    return _difference(found, expected)


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
    method = TransformerLRP(_explained(case), dtype=torch.float64)
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


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the largest expected entry."""
    size = max(float(one.abs().max()) for one in expected)
    worst = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    return worst / size if size else worst


def _called(case: Case, inputs: tuple[Tensor, ...] | None = None) -> Any:
    return _explained(case)(*(inputs or _tuple(case.inputs)), **case.additional_forward_args)


def _explained(case: Case) -> Any:
    return case.forward or case.model


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _state(case: Case) -> dict[str, tuple[int, int]]:
    """Where parameters and buffers lie, and how often they have been written to."""
    state = case.model.state_dict(keep_vars=True)
    return {name: (value.data_ptr(), value._version) for name, value in state.items()}
