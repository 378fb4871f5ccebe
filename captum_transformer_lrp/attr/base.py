"""What all methods have in common: one recorded forward pass, and views of the mass on it."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, TypedDict, TypeVar, overload

import torch
from captum._utils.progress import progress
from captum.attr._utils.attribution import Attribution
from captum.attr._utils.lrp_rules import PropagationRule
from captum.log import log_usage
from torch import Tensor
from typing_extensions import Unpack

from captum_transformer_lrp.attr import views
from captum_transformer_lrp.attr.chunks import chunk_of_target, in_chunks, joined
from captum_transformer_lrp.attr.matrices import attention_matrices, rollout_matrix, rollout_parts
from captum_transformer_lrp.attr.reach import check_reach
from captum_transformer_lrp.attr.targets import plain, predicted, seed
from captum_transformer_lrp.engine.graph.arguments import replace_tensors, tensors_in
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.graph.step import Phase
from captum_transformer_lrp.engine.graph.values import is_finite
from captum_transformer_lrp.engine.lineage.passes import beside, passes
from captum_transformer_lrp.engine.phases import ALL_PHASES, Rollout
from captum_transformer_lrp.engine.phases.walk import backward_to_each
from captum_transformer_lrp.engine.recording import Recording, recorded
from captum_transformer_lrp.engine.watch.checks import tensors_of
from captum_transformer_lrp.engine.watch.thread_state import ThreadState
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.rules import Preset, SignAwareStabilizer
from captum_transformer_lrp.rules.call import Stabilizer
from captum_transformer_lrp.rules.presets import (
    checked_epsilon,
    epsilon_of,
    gives_back_sums,
    is_ill_conditioned,
)
from captum_transformer_lrp.rules.registry import Target
from captum_transformer_lrp.rules.rule_set import UserRules

Method = TypeVar("Method", bound=Callable[..., Any])
# As Captum's: a tensor is explained by a tensor, a tuple by a tuple.
Inputs = TypeVar("Inputs", Tensor, tuple[Tensor, ...])


def captum_method(attribute: Method) -> Method:
    """Wrap ``attribute`` as Captum wraps its own.

    ``NoiseTunnel`` and others of Captum's classes call ``attribute.__wrapped__``.
    """
    wrapped: Method = log_usage()(attribute)
    return wrapped


def split_arguments(additional_forward_args: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``additional_forward_args`` as positional and keyword arguments.

    Example:
        >>> split_arguments(1), split_arguments({"mask": 2}), split_arguments(None)
        (((1,), {}), ((), {'mask': 2}), ((), {}))

    Raises:
        TypeError: for a dictionary whose keys are no names.
    """
    if isinstance(additional_forward_args, Mapping):
        kwargs = dict(additional_forward_args)
        if not all(isinstance(name, str) for name in kwargs):
            raise TypeError(
                "a dictionary in additional_forward_args holds keyword arguments by name, "
                f"found the keys {list(kwargs)}: pass a tuple for positional arguments"
            )
        return (), kwargs
    if isinstance(additional_forward_args, tuple):
        return additional_forward_args, {}
    return (() if additional_forward_args is None else (additional_forward_args,)), {}


class Settings(TypedDict, total=False):
    """The arguments that all methods take, which :class:`TransformerAttribution` explains."""

    rules: dict[Target, PropagationRule | type[PropagationRule]] | None
    stabilizer: Stabilizer | None
    strict: bool
    dtype: torch.dtype | None


class AttributeOptions(TypedDict, total=False):
    """What ``attribute`` of all methods takes besides the granularity."""

    internal_batch_size: int | None
    show_progress: bool


class RolloutOptions(AttributeOptions, total=False):
    """What :meth:`RolloutAttribution.attribute` takes besides the granularity."""

    start_layer: int
    row_normalize: bool
    keep_identity: bool


class RecordedAttribution(Attribution):
    """An attribution method that works on one recorded forward pass of an unmodified model.

    Args:
        forward_func: as in :class:`TransformerAttribution`.
        rules: likewise.
        stabilizer: likewise.
        epsilon: likewise, of methods that propagate relevance; None takes that of the preset.
        strict: likewise.
        dtype: likewise; attributions come back as precise as the inputs.
    """

    multiplies_by_inputs: bool = True
    """Whether contributions of the input are attributed, rather than sensitivities to it."""

    granularities: Any = views.TokenGranularity
    preset: Preset | None = None
    propagates_relevance: bool = False
    needs_attention: bool = True
    keeps_readout: bool = False
    keeps_streams: bool = False
    checkpointing: bool = False
    phases: Sequence[type[Phase]] = ALL_PHASES
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Name each of the settings in the signature, where notebooks and ``compare`` read them."""
        super().__init_subclass__(**keywords)
        _, *own = inspect.signature(cls.__init__).parameters.values()
        named = [one for one in own if one.kind is not one.VAR_KEYWORD]
        if len(named) < len(own):
            everything = inspect.signature(RecordedAttribution).parameters
            names = {one.name for one in named}
            named += [everything[name] for name in Settings.__annotations__ if name not in names]
        cls.__signature__ = inspect.Signature(named)

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        rules: dict[Target, PropagationRule | type[PropagationRule]] | None = None,
        stabilizer: Stabilizer | None = None,
        epsilon: float | None = None,
        strict: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not callable(forward_func) or isinstance(forward_func, type):
            raise TypeError(
                "forward_func must be a model or a function that calls it, found "
                f"{forward_func!r}: load the model first, such as timm.create_model(name)"
            )
        super().__init__(forward_func)
        if dtype not in (None, torch.bfloat16, torch.float32, torch.float64):
            raise ValueError(
                "dtype must be torch.float32, torch.float64, torch.bfloat16 or None, found "
                f"{dtype!r}"
            )
        if epsilon is not None and not self.propagates_relevance:
            raise TypeError(
                f"found epsilon={epsilon!r}, but {type(self).__name__} propagates no relevance "
                "that it could be for: leave it out"
            )
        self._dtype = dtype
        self._epsilon = checked_epsilon(epsilon, stabilizer)
        self._rules = UserRules(rules)
        self._stabilizer = stabilizer
        self._strict = strict

    @property
    def epsilon(self) -> float:
        """ε of eq. 2 that is used."""
        return epsilon_of(self._epsilon, self.preset, self._stabilizer)

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in, unless the model is more precise."""
        if self._dtype is not None:
            return self._dtype
        as_printed = self.propagates_relevance and is_ill_conditioned(self.preset)
        return torch.float64 if as_printed and not self.epsilon else torch.float32

    def has_convergence_delta(self) -> bool:
        """False: the maps of this method have no sum that they must converge to."""
        return False

    def _recorded(
        self,
        inputs: Any,
        additional_forward_args: Any,
        *,
        keeps_books: bool = False,
        again_for: Sequence[type[Phase]] | None = None,
    ) -> AbstractContextManager[Recording]:
        args, kwargs = split_arguments(additional_forward_args)
        return recorded(
            self.forward_func,
            tensors_of(inputs),
            args,
            kwargs,
            rules=self._rules.over(self.preset, strict=self._strict),
            stabilizer=self._stabilizer or SignAwareStabilizer(),
            epsilon=self.epsilon,
            keeps_books=keeps_books,
            keeps_readout=self.keeps_readout,
            keeps_streams=self.keeps_streams,
            dtype=self.dtype,
            needs_attention=self.needs_attention and again_for is None,
            phases=self.phases if again_for is None else again_for,
            checkpointing=self.checkpointing and again_for is None,
        )

    def _check_reach(
        self,
        recording: Recording,
        explained: Sequence[tuple[Any, Sequence[Tensor]]],
        inputs: Any,
        args: Any,
        used: Sequence[AttentionStep],
    ) -> None:
        """Raise for maps that are constants because nothing can arrive."""
        check_reach(
            lambda phases: self._recorded(inputs, args, again_for=phases),
            explained,
            [step.index for step in used] if self.needs_attention else None,
            len(recording.shapes),
        )

    @overload
    def attribute(
        self,
        inputs: Inputs,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        granularity: Literal["input"] = "input",
        **options: Unpack[AttributeOptions],
    ) -> Inputs: ...
    @overload
    def attribute(
        self,
        inputs: Inputs,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        granularity: Literal["token"],
        **options: Unpack[AttributeOptions],
    ) -> Tensor: ...
    @captum_method
    def attribute(
        self,
        inputs: Inputs,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        granularity: views.TokenGranularity = "input",
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Inputs | Tensor:
        """Explain one target for each example of a batch.

        Args:
            inputs: float images (N, C, H, W), token ids (N, S), float embeddings (N, S, D), or a
                tuple of such.
            target: the output to explain, in any form that Captum takes; None explains each
                example's predicted class.
            additional_forward_args: as in Captum, or a dictionary of keyword arguments.
            granularity: ``"input"`` for maps shaped as the inputs, bilinearly upsampled for
                images, or ``"token"`` for (N, S), special tokens included.
            internal_batch_size: at most so many examples are computed at a time, which bounds the
                memory; None for all at once.  Tensors among ``additional_forward_args`` whose first
                dimension is that of the batch are cut with it.
            show_progress: whether to show a progress bar that counts those parts of the batch.

        Returns:
            Attributions, float32 or as precise as the inputs; a tuple if ``inputs`` is one and
            ``granularity`` is ``"input"``.

        Raises:
            ValueError: for a target or an option that does not fit.
            ExplanationError: for a model that cannot be explained as it is; the message says what
                to do.
        """
        view = views.View(inputs, granularity, internal_batch_size, show_progress)
        return self._of_targets([target], additional_forward_args, view)[0]

    def attribute_targets(
        self,
        inputs: Inputs,
        targets: Sequence[Any],
        additional_forward_args: Any = None,
        *,
        granularity: views.TokenGranularity = "input",
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> list[Inputs | Tensor]:
        """Explain several targets of the same inputs from the same forward passes.

        Takes the arguments of :meth:`attribute`, with a list of targets.

        Returns:
            For each target what :meth:`attribute` returns.
        """
        view = views.View(inputs, granularity, internal_batch_size, show_progress)
        return self._of_targets(targets, additional_forward_args, view)

    def _of_targets(self, targets: Sequence[Any], additional: Any, view: views.View) -> list[Any]:
        """Each target's map, of as many examples at a time as the view says."""
        views.check_choice("granularity", view.granularity, self.granularities)
        tensors_of(view.inputs)
        targets = [plain(target) for target in targets]
        pieces = list(in_chunks(view.inputs, additional, view.internal_batch_size))
        shown: Iterable[Any] = pieces
        if view.show_progress and len(pieces) > 1:
            shown = progress(pieces, desc=f"{self.get_name()} attribution", total=len(pieces))
        parts = [
            self._of_piece(some, [chunk_of_target(one, *ends) for one in targets], args, view)
            for some, args, ends in shown
        ]
        return [joined(of_target) for of_target in zip(*parts, strict=True)]

    def _of_piece(
        self, inputs: Any, targets: Sequence[Any], additional: Any, view: views.View
    ) -> list[Any]:
        """Each target's map, of a piece of the batch."""
        return self._each_target(
            inputs,
            targets,
            additional,
            lambda recording, start: self._explained(recording, start, view),
            used=lambda recording: self._used(recording, view),
        )

    @abstractmethod
    def _explained(self, recording: Recording, start: Tensor, view: views.View) -> Any:
        """The map of the target whose seed is ``start``."""

    def _used(self, recording: Recording, view: views.View) -> Sequence[AttentionStep]:
        """The attentions that a map is made of."""
        return recording.tape.attentions

    def _each_target(
        self,
        inputs: Any,
        targets: Sequence[Any],
        additional: Any,
        explained: Callable[[Recording, Tensor], Any],
        *,
        maps_of: Callable[[Any], Sequence[Tensor]] = tensors_in,
        used: Callable[[Recording], Sequence[AttentionStep]] = lambda one: one.tape.attentions,
    ) -> list[Any]:
        """Record once, and call ``explained(recording, seed)`` for every target.

        ``maps_of`` says which tensors of what it returns are attributions, ``used`` which
        attentions they are made of.
        """
        state = ThreadState()
        with state, state, self._recorded(inputs, additional) as recording:
            chosen = recording.asked(
                [predicted(recording.output) if one is None else one for one in targets]
            )
            recording.targets = [seed(recording.output, target) for target in chosen]
            if self.propagates_relevance and gives_back_sums(self.preset):
                _check_signs(recording.targets)
            found, maps = [], []
            for target, start in zip(chosen, recording.targets, strict=True):
                result = explained(recording, start)
                check_finite(result)
                if of_target := maps_of(result):
                    maps.append((target, of_target))
                found.append(replace_tensors(result, lambda value: value.to(recording.dtype)))
            self._check_reach(recording, maps, inputs, additional, used(recording))
            return found


class RolloutAttribution(RecordedAttribution):
    """A method whose map is a rollout: a row of a product of matrices, one for each attention.

    A subclass says in :meth:`_maps` which map each attention takes part with.
    """

    granularities = views.Granularity

    @overload
    def attribute(
        self,
        inputs: Inputs,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        granularity: Literal["input"] = "input",
        **options: Unpack[RolloutOptions],
    ) -> Inputs: ...
    @overload
    def attribute(
        self,
        inputs: Inputs,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        granularity: Literal["token", "matrix"],
        **options: Unpack[RolloutOptions],
    ) -> Tensor: ...
    @captum_method
    def attribute(
        self,
        inputs: Inputs,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        start_layer: int = 0,
        granularity: views.Granularity = "input",
        row_normalize: bool = False,
        keep_identity: bool = False,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Inputs | Tensor:
        """Explain one target for each example of a batch.

        Args:
            inputs: float images (N, C, H, W), token ids (N, S), float embeddings (N, S, D), or a
                tuple of such.
            target: the output to explain, in any form that Captum takes: an int, a tuple for
                outputs of more than two dimensions, or a list or tensor with one for each example.
                None explains each example's predicted class.  A function from the output to a
                value for each example (N,) is a target, too.
            additional_forward_args: further positional arguments of ``forward_func``, as in
                Captum; or a dictionary of keyword arguments, such as
                ``{"attention_mask": mask}``.
            start_layer: the first attention, counted from the input, that takes part in eq. 14.
            granularity: ``"input"`` for maps shaped as the inputs, whose sum over the channels or
                the embedding dimension is the relevance map, bilinearly upsampled for images;
                ``"token"`` for (N, S), the row over all tokens, special ones included;
                ``"matrix"`` for C, (N, S, S).
            row_normalize: divide the rows of each factor of eq. 14 by their sums.
            keep_identity: whether the map is the row of C, rather than that of C − I.  C contains
                the path along which no attention has moved anything.  That path says nothing of
                the target: it adds 1 to the entry of the class token, and the same to every token
                that is pooled.
            internal_batch_size: at most so many examples are computed at a time, which bounds the
                memory; None for all at once.  Tensors among ``additional_forward_args`` whose first
                dimension is that of the batch are cut with it.
            show_progress: whether to show a progress bar that counts those parts of the batch.

        Returns:
            Non-negative attributions, float32 or as precise as the inputs; a tuple if ``inputs``
            is one and ``granularity`` is ``"input"``.  With ``granularity="token"`` they sum to
            the mass that attentions have moved: the row sum of C less 1, and with
            ``keep_identity`` to that of C.  Upsampling to pixels keeps no sum.

        Raises:
            ValueError: for a target or an option that does not fit.
            ExplanationError: for a model that cannot be explained as it is; the message says what
                to do.
        """
        rollout = start_layer, row_normalize, keep_identity
        view = views.View(inputs, granularity, internal_batch_size, show_progress, *rollout)
        return self._of_targets([target], additional_forward_args, view)[0]

    def attribute_targets(
        self,
        inputs: Inputs,
        targets: Sequence[Any],
        additional_forward_args: Any = None,
        *,
        start_layer: int = 0,
        granularity: views.Granularity = "input",
        row_normalize: bool = False,
        keep_identity: bool = False,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> list[Inputs | Tensor]:
        """Explain several targets of the same inputs from one forward pass.

        Takes the arguments of :meth:`attribute`, with a list of targets.

        Returns:
            For each target what :meth:`attribute` returns.
        """
        rollout = start_layer, row_normalize, keep_identity
        view = views.View(inputs, granularity, internal_batch_size, show_progress, *rollout)
        return self._of_targets(targets, additional_forward_args, view)

    @abstractmethod
    def _maps(
        self, recording: Recording, start: Tensor, used: Sequence[AttentionStep]
    ) -> dict[int, Tensor]:
        """The map by which every attention of ``used`` carries mass, by its index."""

    def _used(self, recording: Recording, view: views.View) -> list[AttentionStep]:
        """The attentions that take part: of each pass those from ``start_layer`` on."""
        found = passes(recording.tape, recording.output)
        least = min(map(len, found), default=0)
        if not 0 <= view.start_layer < least:
            raise ValueError(
                f"start_layer must be one of the model's {least} attentions, 0 to "
                f"{least - 1}; found {view.start_layer}"
            )
        chosen = {step.index for steps in found for step in steps[view.start_layer :]}
        return [step for step in recording.tape.attentions if step.index in chosen]

    def _explained(self, recording: Recording, start: Tensor, view: views.View) -> Any:
        used = self._used(recording, view)
        maps = self._maps(recording, start, used)
        if not view.needs_matrices:
            return mass_view(recording, start, view, maps, moved=not view.keep_identity)
        used = [step for step in views.one_pass(recording) if step.index in maps]
        matrices = attention_matrices(recording, used, maps)
        if view.granularity == "matrix":
            return rollout_matrix(matrices, row_normalize=view.row_normalize)
        # Without attention all mass stays where the model reads its answer from.
        readout = views.token_mass(recording, start)
        unmoved, moved = rollout_parts(matrices, row_normalize=view.row_normalize)
        row = (readout.unsqueeze(1) @ moved).squeeze(1)
        if view.keep_identity:
            row = row + readout * unmoved
        return row_view(recording, view, lambda _: row)


class SingleAttentionAttribution(RecordedAttribution):
    """A method whose map is one attention's: the row that the model reads its answer from.

    Args:
        forward_func: as in :class:`RecordedAttribution`.
        layer: which attention, counted from the input as in a list; -1 is nearest the output.
        epsilon: as in :class:`RecordedAttribution`.
        settings: likewise ``rules``, ``stabilizer``, ``strict`` and ``dtype``.
    """

    granularities = views.Granularity

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        layer: int = -1,
        epsilon: float | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(forward_func, epsilon=epsilon, **settings)
        self.layer = layer

    @overload
    def attribute(
        self,
        inputs: Inputs,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        granularity: Literal["input"] = "input",
        **options: Unpack[AttributeOptions],
    ) -> Inputs: ...
    @overload
    def attribute(
        self,
        inputs: Inputs,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        granularity: Literal["token", "matrix"],
        **options: Unpack[AttributeOptions],
    ) -> Tensor: ...
    @captum_method
    def attribute(
        self,
        inputs: Inputs,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        granularity: views.Granularity = "input",
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Inputs | Tensor:
        """Explain one target for each example of a batch.

        Args:
            inputs: float images (N, C, H, W), token ids (N, S), float embeddings (N, S, D), or a
                tuple of such.
            target: the output to explain, in any form that Captum takes; None explains each
                example's predicted class.
            additional_forward_args: as in Captum, or a dictionary of keyword arguments.
            granularity: ``"input"`` for maps shaped as the inputs, ``"token"`` for (N, S),
                ``"matrix"`` for the mean over heads, (N, S, S).
            internal_batch_size: at most so many examples are computed at a time, which bounds the
                memory; None for all at once.  Tensors among ``additional_forward_args`` whose first
                dimension is that of the batch are cut with it.
            show_progress: whether to show a progress bar that counts those parts of the batch.

        Returns:
            Non-negative attributions; a tuple if ``inputs`` is one and ``granularity`` is
            ``"input"``.

        Raises:
            ValueError: for a target or an option that does not fit.
            ExplanationError: for a model that cannot be explained as it is; the message says what
                to do.
        """
        view = views.View(inputs, granularity, internal_batch_size, show_progress)
        return self._of_targets([target], additional_forward_args, view)[0]

    def attribute_targets(
        self,
        inputs: Inputs,
        targets: Sequence[Any],
        additional_forward_args: Any = None,
        *,
        granularity: views.Granularity = "input",
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> list[Inputs | Tensor]:
        """Explain several targets of the same inputs from one forward pass.

        Takes the arguments of :meth:`attribute`, with a list of targets.

        Returns:
            For each target what :meth:`attribute` returns.
        """
        view = views.View(inputs, granularity, internal_batch_size, show_progress)
        return self._of_targets(targets, additional_forward_args, view)

    def _explained(self, recording: Recording, start: Tensor, view: views.View) -> Any:
        if view.granularity != "input":
            views.one_pass(recording)  # there is but one
        chosen = self._used(recording, view)
        maps = {step.index: self._weighted(recording, start, step) for step in chosen}
        if view.granularity == "matrix":
            return attention_matrices(recording, chosen, maps)[0]
        through = sum(step.event for step in chosen)
        return mass_view(recording, start, view, maps, through=through)

    @abstractmethod
    def _weighted(self, recording: Recording, start: Tensor, step: AttentionStep) -> Tensor:
        """The map, shaped as the attention, whose mean over heads is wanted."""

    def _used(self, recording: Recording, view: views.View) -> list[AttentionStep]:
        """The chosen attention of each pass, with those beside it."""
        chosen: dict[int, AttentionStep] = {}
        for steps in passes(recording.tape, recording.output):
            if not -len(steps) <= self.layer < len(steps):
                raise ValueError(
                    f"layer must be one of the model's {len(steps)} attentions, {-len(steps)} to "
                    f"{len(steps) - 1}; found {self.layer}"
                )
            together = beside(recording.tape, steps, steps[self.layer])
            chosen.update((step.index, step) for step in together)
        return list(chosen.values())


def _check_signs(seeds: Sequence[Tensor]) -> None:
    """Raise where relevance would start from sums that cancel: eq. 9–10 share out what is left."""
    if any(bool((one < 0).any()) for one in seeds):
        raise ValueError(
            "the target is a function that falls with some of the model's outputs, and eq. 9–10 "
            "share out sums of relevance, which then cancel: explain each output and take the "
            'difference of the maps, or use TransformerLRP(model, preset="attnlrp")'
        )


def check_finite(result: Any) -> None:
    """Raise rather than return NaN."""
    for value in tensors_in(result):
        if not is_finite(value):
            raise ExplanationError(
                "the attributions contain NaN or infinite values; if the model is in float32, try "
                "model.double(), and please report the model"
            )


def mass_view(
    recording: Recording,
    start: Tensor,
    view: views.View,
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
    wanted = [views.token_stream(recording)] if of_tokens else recording.all_leaves
    rollout = Rollout(maps, through=through, reaches_pixels=not of_tokens)
    arrived = views.carried(recording, rollout, recording.output, start, wanted, moved=moved)
    if of_tokens:
        return views.summed_by_token(recording, arrived[0]).detach()
    return view.formatted(views.at_inputs(recording, arrived))


def row_view(
    recording: Recording, view: views.View, row_of: Callable[[views.Pass], Tensor]
) -> Tensor | tuple[Tensor, ...]:
    """A value for every token of a pass, (N, S), as it is or carried on to the inputs.

    Those of several passes add up at the inputs; as they are they have no meaning.
    """
    if view.granularity == "token":
        return row_of(views.one_pass(recording)).detach()
    of_passes = []
    for steps in passes(recording.tape, recording.output):
        row = row_of(steps).detach()
        stream = views.token_stream(recording, steps)
        spread = views.spread_over_features(recording, row, steps)
        of_passes.append(views.input_mass(recording, stream, spread))
    return view.formatted([sum_all(of_input) for of_input in zip(*of_passes, strict=True)])


def gradients(recording: Recording, start: Tensor, steps: Sequence[AttentionStep]) -> list[Tensor]:
    """∇A of each step."""
    wanted = [step.attention for step in steps]
    return recording.backward(recording.gradient, start, wanted)


def maps_by_gradients(
    recording: Recording,
    start: Tensor,
    steps: Sequence[AttentionStep],
    weighted: Callable[[int, Tensor], Tensor],
) -> dict[int, Tensor]:
    """For every step the map that ``weighted(place, ∇A)`` returns, by its place in ``steps``."""
    maps = {}

    def arrived(place: int, gradient: Tensor) -> None:
        maps[steps[place].index] = weighted(place, gradient)

    if len(recording.targets) > 1:  # they go down together, and what is found is kept for later
        for place, gradient in enumerate(gradients(recording, start, steps)):
            arrived(place, gradient)
    else:
        backward_to_each(
            recording.tape, recording.gradient, recording.output, start, steps, arrived
        )
    return maps


def relevances(recording: Recording, start: Tensor, steps: Sequence[AttentionStep]) -> list[Tensor]:
    """R of each step."""
    wanted = [step.attention for step in steps]
    return recording.backward(recording.relevance, start, wanted)


def sum_all(values: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    return torch.stack(list(values)).sum(0)
