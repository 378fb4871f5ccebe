"""From token mass on the tape to attributions: of inputs, of tokens, between tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from captum._utils.common import _format_output, _is_tuple
from torch import Tensor

from captum_transformer_lrp.engine.graph.ancestors import is_of_features
from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.lineage.passes import only_pass, passes
from captum_transformer_lrp.engine.phases import Rollout
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.rules.examples import Examples

Granularity: TypeAlias = Literal["input", "token", "matrix"]
TokenGranularity: TypeAlias = Literal["input", "token"]


@dataclass(frozen=True)
class View:
    """What a user wants of an explanation, as ``attribute`` of the methods has it.

    Args:
        inputs: all of them, whatever piece is explained at a time.
        granularity: ``"input"``, ``"token"`` or ``"matrix"``.
        internal_batch_size: how many examples at a time; None for all.
        show_progress: whether to show a progress bar.
        start_layer: as of :meth:`RolloutAttribution.attribute`.
        row_normalize: likewise.
        keep_identity: likewise.
    """

    inputs: Any
    granularity: Granularity = "input"
    internal_batch_size: int | None = None
    show_progress: bool = False
    start_layer: int = 0
    row_normalize: bool = False
    keep_identity: bool = False

    @property
    def needs_matrices(self) -> bool:
        """Whether matrices between all tokens are multiplied, rather than mass carried down."""
        return self.granularity == "matrix" or self.row_normalize

    def formatted(self, maps: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
        """Maps of the inputs, as a tuple if the inputs are one; or the only map of the tokens."""
        as_tuple = self.granularity == "input" and _is_tuple(self.inputs)
        return _format_output(as_tuple, tuple(one.detach() for one in maps))


def check_choice(name: str, found: object, choices: Any) -> None:
    """Raise unless an argument is one of the texts of a Literal type."""
    if found not in get_args(choices):
        raise ValueError(f"{name} must be one of {get_args(choices)}, found {found!r}")


def input_mass(recording: Recording, origin: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
    """Carry mass from the tensor ``origin`` down to the inputs, around all attentions.

    Returns:
        A map for each input, shaped as it is: for images the mass of the patch grid, bilinearly
        upsampled and spread evenly over the channels; for embeddings spread evenly over their
        features; for token ids (N, S).
    """
    arrived = recording.run(Rollout(), seed, recording.all_leaves, origin=origin)
    return at_inputs(recording, arrived)


def at_inputs(recording: Recording, arrived_at: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Maps of the inputs from the mass at their leaves."""
    kinds = zip(recording.at_inputs(arrived_at), recording.are_ids, strict=True)
    return tuple(mass.sum(-1) if are_ids else mass for mass, are_ids in kinds)


Pass: TypeAlias = Sequence[AttentionStep]
"""The attentions of one pass (see :mod:`captum_transformer_lrp.engine.lineage.passes`)."""


def one_pass(
    recording: Recording,
    steps: Pass | None = None,
    advice: str = 'there is no one row of tokens: use granularity="input"',
) -> Pass:
    """The attentions of a pass, or if none is given those of the only one.

    Raises:
        ExplanationError: if there are several; ``advice`` says what to do.
    """
    return only_pass(recording.tape, recording.output, advice) if steps is None else steps


ONE_AT_A_TIME = (
    "this method is about one pass: give it a function of one input, with the results for the "
    "others as constants"
)
"""What to do where an output is read from several passes."""


def token_stream(recording: Recording, steps: Pass | None = None) -> Tensor:
    """The tokens that a pass's first attention works on: what skips it, in whatever layout.

    Where additions around it are nested, as where queries are added to what they have attended
    to, it is what skips most: what skips less is made of it.
    """
    tape = recording.tape
    reached = sum(step.event for step in one_pass(recording, steps))
    streams = [stream for stream in tape.streams if stream.attentions & reached]
    if not streams:
        raise ExplanationError(
            "no skip connection leads around an attention of this model, so it has no sequence of "
            'tokens to attribute to: use granularity="input"'
        )
    found = streams[0].tensor
    for later in streams[1:]:
        of_found, of_later = tape.mark(found), tape.mark(later.tensor)
        assert of_found is not None
        assert of_later is not None
        around = later.attentions & streams[0].attentions
        if around and of_later.node.events & ~of_found.node.events == 0:
            found = later.tensor
    return found


def token_mass(recording: Recording, seed: Tensor, steps: Pass | None = None) -> Tensor:
    """Mass that the logits send around all attentions to each token below the first, (N, S)."""
    return summed_by_token(recording, at_tokens(recording, recording.output, seed, steps), steps)


def at_tokens(
    recording: Recording,
    origin: Tensor,
    seed: Tensor,
    steps: Pass | None,
) -> Tensor:
    """Carry mass from ``origin`` down to the token stream, through all convolutions above it."""
    rollout = Rollout(reaches_pixels=False)
    return recording.run(rollout, seed, [token_stream(recording, steps)], origin=origin)[0]


def summed_by_token(recording: Recording, values: Tensor, steps: Pass | None = None) -> Tensor:
    """Values at the token stream, summed over each token's features, (N, S)."""
    of_tokens = values.sum(feature_axis(recording, steps), keepdim=True)
    return _examples_first(_stream_mark(recording, steps).examples, of_tokens).flatten(1)


def spread_over_features(recording: Recording, row: Tensor, steps: Pass | None = None) -> Tensor:
    """The inverse of :func:`token_mass`: (N, S) spread evenly over the token stream's features."""
    stream, examples = token_stream(recording, steps), _stream_mark(recording, steps).examples
    features = feature_axis(recording, steps)
    of_tokens = stream.narrow(features, 0, 1)
    # Each token's place in the row tells where its value goes.
    places = torch.arange(of_tokens.numel(), device=row.device).reshape(of_tokens.shape)
    tokens = torch.empty_like(row.flatten())
    tokens[_examples_first(examples, places).flatten()] = row.flatten()
    return (tokens.reshape(of_tokens.shape) / stream.shape[features]).expand_as(stream)


def _stream_mark(recording: Recording, steps: Pass | None) -> Mark:
    """What is known of the token stream."""
    mark = recording.tape.mark(token_stream(recording, steps))
    assert mark is not None
    return mark


def _examples_first(examples: Examples, values: Tensor) -> Tensor:
    """Values with the examples along the first axis, taken out of any that they are folded into."""
    if examples.count == 1:
        return values.unsqueeze(0)
    if examples.axis is None:
        raise ExplanationError(
            "in this model's tokens the examples of the batch cannot be told apart: explain one "
            'example at a time, or use granularity="input"'
        )
    if examples.index is None:
        return values.movedim(examples.axis, 0)
    numbers = torch.tensor(examples.index)
    if (numbers.bincount(minlength=examples.count) * examples.count != len(numbers)).any():
        raise ExplanationError(
            "this model has not as many tokens for each example of the batch: explain one example "
            'at a time, or use granularity="input"'
        )
    order = numbers.argsort(stable=True).to(values.device)
    apart = values.index_select(examples.axis, order)
    return apart.unflatten(examples.axis, (examples.count, -1)).movedim(examples.axis, 0)


def feature_axis(recording: Recording, steps: Pass | None = None) -> int:
    """Which axis of the token stream a token's features lie along: the last, or C of (N, C, H, W).

    The layer that has made the tokens tells, wherever they have been moved since.
    """
    stream, tape = token_stream(recording, steps), recording.tape
    axes = range(-1, -1 - stream.dim(), -1)
    return next((axis for axis in axes if is_of_features(tape, stream, axis)), -1)


def any_positive(like: Tensor) -> Tensor:
    """Numbers between 1 and 2 without a pattern, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    return (1 + torch.rand(like.shape, generator=generator)).to(like)


def batch_axis(recording: Recording, stream: Tensor) -> int | None:
    """Where the examples lie in the token stream; None for a single example, wherever it lies."""
    mark = recording.tape.mark(stream)
    assert mark is not None
    if mark.examples.count == 1:
        return None
    if mark.examples.axis is None or mark.examples.index is not None:
        raise ExplanationError(
            "this model folds its examples and tokens into one dimension: explain one example at "
            'a time, or use granularity="input"'
        )
    return mark.examples.axis


def chosen_layers(layers: Sequence[int] | None, count: int) -> list[int]:
    """The attentions that a user has chosen, counted from the input; None for all.

    Raises:
        ValueError: for one that there is not.
    """
    for layer in layers or ():
        if not -count <= layer < count:
            raise ValueError(
                f"layers must be among the model's {count} attentions, {-count} to {count - 1}; "
                f"found {layer}"
            )
    return list(range(count)) if layers is None else sorted({layer % count for layer in layers})


def mass_view(
    recording: Recording,
    start: Tensor,
    view: View,
    maps: Mapping[int, Tensor],
    *,
    moved: bool = False,
    through: int = 0,
) -> Tensor | tuple[Tensor, ...]:
    """The mass that a seed at the logits sends to tokens or inputs.

    Args:
        recording: the forward pass.
        start: the seed.
        view: which of the two is wanted.
        maps: as of :class:`~captum_transformer_lrp.engine.phases.Rollout`.
        moved: whether to leave out what no attention has moved.
        through: bits of attentions that mass must go through, not around.
    """
    of_tokens = view.granularity == "token"
    wanted = [token_stream(recording)] if of_tokens else recording.all_leaves
    rollout = Rollout(maps, through=through, only_moved=moved, reaches_pixels=not of_tokens)
    arrived = recording.run(rollout, start, wanted)
    if of_tokens:
        return summed_by_token(recording, arrived[0]).detach()
    return view.formatted(at_inputs(recording, arrived))


def row_view(
    recording: Recording, view: View, row_of: Callable[[Pass], Tensor]
) -> Tensor | tuple[Tensor, ...]:
    """A value for every token of a pass, (N, S), as it is or carried on to the inputs.

    Those of several passes add up at the inputs; as they are they have no meaning.
    """
    if view.granularity == "token":
        return row_of(one_pass(recording)).detach()
    of_passes = []
    for steps in passes(recording.tape, recording.output):
        row = row_of(steps).detach()
        stream = token_stream(recording, steps)
        spread = spread_over_features(recording, row, steps)
        of_passes.append(input_mass(recording, stream, spread))
    return view.formatted(
        [torch.stack(of_input).sum(0) for of_input in zip(*of_passes, strict=True)]
    )


def are_same_tokens(recording: Recording, in_blocks: Sequence[Pass]) -> bool:
    """Whether what skips all attentions of a pass is for each token the same token.

    A sequence that another is written into, such as a text with the tokens of an image, has a
    different one; so have tokens that the model moves between two blocks.
    """
    tape, last = recording.tape, in_blocks[-1]
    if len(in_blocks) == 1 or not any(one.attentions & last[0].event for one in tape.streams):
        return True
    tokens = summed_by_token(recording, token_stream(recording, last).detach(), last)
    row = any_positive(tokens)
    seed = spread_over_features(recording, row, last)
    steps = [step for block in in_blocks for step in block]
    mass = at_tokens(recording, token_stream(recording, last), seed, steps)
    found = summed_by_token(recording, mass, steps)
    if found.shape != row.shape:
        return False
    ratio = found / row  # one number for all, such as 2 where two skip connections lead around
    return bool(ratio.max() > 0) and bool(ratio.max() - ratio.min() <= 1e-3 * ratio.max())
