"""Running a model once, watched, and keeping what the backward phases need."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from captum_transformer_lrp.engine.graph.marks import Pixels
from captum_transformer_lrp.engine.graph.op import Phase
from captum_transformer_lrp.engine.graph.tape import Tape
from captum_transformer_lrp.engine.operations import TABLE
from captum_transformer_lrp.engine.phases import ALL_PHASES, Gradient, Relevance
from captum_transformer_lrp.engine.phases.walk import (
    at_entries,
    backward_together,
    carried,
    keep_what_makes,
)
from captum_transformer_lrp.engine.watch.checks import (
    check_attention,
    check_finite_output,
    check_inputs,
    check_modules,
    check_not_within,
    check_output,
    naming_a_missing_batch,
)
from captum_transformer_lrp.engine.watch.context import Context
from captum_transformer_lrp.engine.watch.eager import as_written, uncompiled
from captum_transformer_lrp.engine.watch.interception import Interception
from captum_transformer_lrp.engine.watch.log import Log
from captum_transformer_lrp.engine.watch.precision import Precision
from captum_transformer_lrp.engine.watch.snapshot import Snapshot
from captum_transformer_lrp.engine.watch.thread_state import ThreadState
from captum_transformer_lrp.engine.watch.token_ids import TokenIds, at_tokens
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.rules.call import Stabilizer
from captum_transformer_lrp.rules.rule_set import RuleSet

EXAMPLES_TOGETHER = 16
"""So many examples fill a processor; beyond, several targets at once cost memory for no time."""

_Request: TypeAlias = tuple[Phase, int, tuple[Tensor, ...]]
"""A phase, the place of a target, and the tensors that are wanted, which are hashed by identity."""


@dataclass
class Recording:
    """One watched forward pass.

    Args:
        tape: the calls.
        output: the model's logits, on the tape.
        leaves: for every explained input the tensors on the tape that stand for it: itself, or for
            integer token ids the embeddings that were looked up for them.
        places: for every input of token ids and each of its leaves the token that each embedding
            was looked up for (see :mod:`captum_transformer_lrp.engine.watch.token_ids`).
        shapes: the shapes of the inputs.
        are_ids: whether each input is token ids.
        dtype: the precision of what came in, float32 or float64, to return results in.
        log: the calls of the forward pass, if they are kept.
        targets: the one-hots of all targets that will be explained, so that several may go
            together.
        ahead: what was found for later targets together with an earlier one.
        together: by the place of a target, its explanation, where all are made together.
        gradient: the gradient phase.
        relevance: the relevance phase.
    """

    tape: Tape
    output: Tensor
    leaves: list[list[Tensor]]
    places: list[list[Tensor]]
    shapes: list[torch.Size]
    are_ids: list[bool]
    dtype: torch.dtype
    log: Log | None = None
    targets: list[Tensor] = field(default_factory=list)
    ahead: dict[_Request, list[list[Tensor]]] = field(default_factory=dict)
    together: dict[int, Any] = field(default_factory=dict)
    gradient: Gradient = field(default_factory=Gradient)
    relevance: Relevance = field(default_factory=Relevance)

    def asked(self, targets: Sequence[Any]) -> list[Any]:
        """Keep of the output only the positions and classes that targets name, if they are few.

        Args:
            targets: as in Captum, for an output (N, …, C).

        Returns:
            The same targets, as they are called in :attr:`output` from now on.

        Raises:
            ExplanationError: for NaN or infinity in what is left of the output.
        """
        sizes = self.output.shape[1:]
        entries = _entries(targets, sizes)
        positions = sorted({one[:-1] for one in entries})
        classes = sorted({one[-1] for one in entries})
        few = 0 < 2 * len(positions) * len(classes) <= sizes.numel()
        if few and not self.is_checkpointed:
            part = at_entries(self.tape, self.output, positions, classes)
            if part is not None:
                self.output = part
                rows = {one: number for number, one in enumerate(positions)}
                kept = classes if part.shape[-1] == len(classes) else range(sizes[-1])
                columns = {one: number for number, one in enumerate(kept)}
                targets = [_renamed(target, sizes, rows, columns) for target in targets]
        check_finite_output(self.output)
        return list(targets)

    @property
    def is_checkpointed(self) -> bool:
        """Whether only what crosses the cuts of the log is held of the forward pass."""
        return self.log is not None and self.log.has_cuts

    @property
    def all_leaves(self) -> list[Tensor]:
        """The leaves of all inputs, in one list."""
        return [leaf for leaves in self.leaves for leaf in leaves]

    def run(
        self, phase: Phase, seed: Tensor, wanted: Sequence[Tensor], *, origin: Tensor | None = None
    ) -> list[Tensor]:
        """Carry something backward, as all methods do.

        Args:
            phase: what is carried.
            seed: what it starts from.
            wanted: tensors of the forward pass.
            origin: where it starts, shaped as the seed; None for the output.

        Returns:
            What arrives at each of ``wanted``; zeros where nothing does.
        """
        if origin is None and phase in (self.gradient, self.relevance):
            return self.run_each(phase, seed, wanted, lambda one_hot: [one_hot])[0]
        return carried(self.tape, phase, self.output if origin is None else origin, seed, wanted)

    def run_each(
        self,
        phase: Phase,
        start: Tensor,
        wanted: Sequence[Tensor],
        seeds_of: Callable[[Tensor], list[Tensor]],
    ) -> list[list[Tensor]]:
        """The same from the output, for each seed of one target.

        If it is one of :attr:`targets`, those after it go down with it in one batch, and what is
        found for them is kept until they are asked for.

        Args:
            phase: :attr:`gradient` or :attr:`relevance`; a rollout's maps are each target's own.
            start: the target's one-hot.
            wanted: tensors of the forward pass.
            seeds_of: what is propagated for a target, given its one-hot; the same for every target
                that is asked for with the same ``wanted``.
        """
        tensors = tuple(wanted)
        place = next((n for n, one in enumerate(self.targets) if one is start), None)
        if place is None:
            return backward_together(self.tape, phase, self.output, seeds_of(start), wanted)
        found = self.ahead.pop((phase, place, tensors), None)
        if found is None:
            together = max(1, EXAMPLES_TOGETHER // self.output.shape[0])
            seeds = [seeds_of(one) for one in self.targets[place : place + together]]
            flat = [seed for of_target in seeds for seed in of_target]
            results = iter(backward_together(self.tape, phase, self.output, flat, wanted))
            for number, of_target in enumerate(seeds, place):
                self.ahead[phase, number, tensors] = [next(results) for _ in of_target]
            found = self.ahead.pop((phase, place, tensors))
        return found

    def read_out(self, value: Tensor) -> Tensor:
        """The logits that the model would read from another output of its last skip connection.

        Args:
            value: in its place, and shaped like it.

        Raises:
            ExplanationError: if they do not follow from it by calls that can be made again.
        """
        assert self.log is not None
        start = self.tape.residuals[-1].output
        self.tape.marks[value] = self.tape.marks[start]
        output = self.log.number(self.output)
        calls = self.log.making(output)
        found = self.log.play(calls, {self.log.number(start): value}, {output})
        if output not in found:
            raise ExplanationError(
                "it is not known how the model reads its answer from its last tokens: the logits "
                "are not made by calls after its last skip connection alone"
            )
        return found[output]

    def at_inputs(self, arrived: Sequence[Tensor]) -> list[Tensor]:
        """What arrived at :attr:`all_leaves`, added up for each input.

        Returns:
            For each input a tensor of its shape; for token ids (N, S, D), or (N, S, 1) if
            embeddings of several sizes are looked up for them.
        """
        values = iter(arrived)
        found = []
        for index, leaves in enumerate(self.leaves):
            of_input = [next(values) for _ in leaves]
            if self.are_ids[index]:
                if len({value.shape[-1] for value in of_input}) > 1:
                    of_input = [value.sum(-1, keepdim=True) for value in of_input]
                shape = self.shapes[index]
                pairs = zip(of_input, self.places[index], strict=True)
                of_input = [at_tokens(value, places, shape) for value, places in pairs]
            found.append(torch.stack(of_input).sum(0))
        return found


def _entries(targets: Sequence[Any], sizes: torch.Size) -> list[tuple[int, ...]]:
    """All entries of an output (N, *sizes) that targets name.

    None at all if any target is no tuple of indices, or there are only classes.
    """
    named = [
        one for target in targets for one in (target if isinstance(target, list) else [target])
    ]
    if len(sizes) < 2 or not all(_is_index(one, sizes) for one in named):
        return []
    return [_counted(one, sizes) for one in named]


def _counted(entry: tuple[int, ...], sizes: torch.Size) -> tuple[int, ...]:
    """Indices counted from the front."""
    return tuple(n % size for n, size in zip(entry, sizes, strict=True))


def _is_index(entry: Any, sizes: torch.Size) -> bool:
    return (
        isinstance(entry, tuple)
        and len(entry) == len(sizes)
        and all(isinstance(n, int) and -m <= n < m for n, m in zip(entry, sizes, strict=True))
    )


def _renamed(
    target: Any,
    sizes: torch.Size,
    rows: Mapping[tuple[int, ...], int],
    columns: Mapping[int, int],
) -> Any:
    """A target of an output (N, *sizes) in one that has these positions and classes alone."""
    if isinstance(target, list):
        return [_renamed(one, sizes, rows, columns) for one in target]
    *position, last = _counted(target, sizes)
    return rows[tuple(position)], columns[last]


@contextlib.contextmanager
def recorded(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    rules: RuleSet,
    stabilizer: Stabilizer,
    keeps_books: bool,
    keeps_readout: bool = False,
    keeps_streams: bool = True,
    dtype: torch.dtype = torch.float32,
    epsilon: float = 0.0,
    needs_attention: bool = True,
    phases: Sequence[type[Phase]] = ALL_PHASES,
    checkpointing: bool = False,
) -> Iterator[Recording]:
    """Run ``forward_func(*inputs, *args, **kwargs)`` on a tape, which lasts for the ``with`` block.

    Neither the model nor the inputs are changed, nor the state of the random number generators.
    Everything is computed in ``dtype``, or in the model's own if that is more precise.  Where
    ``needs_attention``, a model that computes none is an error.  With ``checkpointing`` the calls
    are logged in the place of what they compute.
    """
    check_not_within(Interception)
    check_inputs(inputs)
    forward_func = as_written(forward_func)
    modules = None
    if isinstance(forward_func, nn.Module):
        modules = list(forward_func.named_modules())
    check_modules(modules or ())
    tape = Tape(stabilizer, keeps_books=keeps_books, keeps_streams=keeps_streams or keeps_readout,
                phases=() if checkpointing else phases, epsilon=epsilon)  # fmt: skip
    snapshot = Snapshot(forward_func, inputs, args, kwargs)
    precision = Precision(dtype, inputs[0].device.type)
    interception = Interception(tape, modules, len(inputs[0]), rules, TABLE, precision=precision)
    interception.context.writes.snapshot = snapshot
    plain, state = uncompiled(), ThreadState(inputs[0].device)
    context = interception.context
    try:
        with state, state:
            state.for_recording()
            arguments, leaves = _on_tape(context, inputs)
            if checkpointing or keeps_readout:
                interception.log = Log(context, arguments, has_cuts=checkpointing)
            missing = naming_a_missing_batch(forward_func, inputs, args, kwargs)
            with plain, plain, missing, snapshot, snapshot, interception:
                result = forward_func(*arguments, *args, **kwargs)
            log, interception.log = interception.log, None
            output = interception.resolve(find_logits(result))
            del result
            places = _looked_up(context, leaves)
            check_output(output, tape, inputs, leaves)
            if not checkpointing:
                interception.close()
                keep_what_makes(tape, output)
            tape.phases = phases
            if needs_attention:
                check_attention(tape, output)
            shapes = [value.shape for value in inputs]
            are_ids = [not value.is_floating_point() for value in inputs]
            given = context.precision.given
            yield Recording(tape, output, leaves, places, shapes, are_ids, given, log)
    finally:
        interception.close()
        tape.clear()


def _on_tape(context: Context, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
    """What the model is given in the place of its inputs, and each float input's leaf."""
    arguments: list[Tensor] = []
    leaves: list[list[Tensor]] = []
    for index, value in enumerate(inputs):
        stand_in = value.detach().clone() if value.is_inference() else value.detach()
        if value.is_floating_point():
            stand_in = context.precision.raised(stand_in)
            stand_in.requires_grad_()
            context.rules.input_dims[index] = value.dim()
            mark = context.tape.given(context.examples, index, source=index)
            context.tape.marks[stand_in] = mark.but(pixels=Pixels(stem=value.dim() > 2))
            leaves.append([stand_in])
        else:
            context.look_ups.ids[stand_in] = TokenIds.given(stand_in, index)
            leaves.append([])
        arguments.append(stand_in)
    return arguments, leaves


def _looked_up(context: Context, leaves: list[list[Tensor]]) -> list[list[Tensor]]:
    """Add the embeddings that were looked up to the leaves; the places of their tokens."""
    places: list[list[Tensor]] = [[] for _ in leaves]
    for index, leaf, of_leaf in context.look_ups.leaves:
        leaves[index].append(leaf)
        places[index].append(of_leaf)
    return places


def find_logits(result: Any) -> Tensor:
    """The logits in what a model returned: a tensor, a tuple, a dictionary or a ModelOutput."""
    if isinstance(result, Tensor):
        return result
    if isinstance(result, Mapping):
        for name in ("logits", "logits_per_image", "out", "output"):
            if isinstance(result.get(name), Tensor):
                found: Tensor = result[name]
                return found
        names = sorted(map(str, result))
        example = next((name for name in names if isinstance(result[name], Tensor)), "...")
        raise TypeError(
            f"the model returned {type(result).__name__} with {names}, none of which is known to "
            "hold the logits: pass a function that returns what you explain, such as "
            f"lambda *args, **kwargs: model(*args, **kwargs)[{example!r}]"
        )
    if isinstance(result, (tuple, list)):
        for item in result:
            if isinstance(item, Tensor) and item.is_floating_point() and item.dim() > 0:
                return item
    raise TypeError(
        f"the model returned {type(result).__name__}, in which there are no logits: pass a "
        "function that returns them, such as lambda *args: model(*args)[...]"
    )
