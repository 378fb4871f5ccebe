"""What the methods have in common whose maps are made of attention maps: of all, or of one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

from torch import Tensor
from typing_extensions import Unpack

from captum_transformer_lrp.attr import views
from captum_transformer_lrp.attr.arguments import captum_method
from captum_transformer_lrp.attr.base import (
    AttributeOptions,
    Inputs,
    RecordedAttribution,
    Settings,
    gradients,
)
from captum_transformer_lrp.attr.matrices import attention_matrices, rollout_matrix, rollout_parts
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.lineage.passes import beside, passes
from captum_transformer_lrp.engine.phases.walk import backward_to_each
from captum_transformer_lrp.engine.recording import Recording


class RolloutOptions(AttributeOptions, total=False):
    """What :meth:`RolloutAttribution.attribute` takes besides the granularity."""

    start_layer: int
    row_normalize: bool
    keep_identity: bool


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
            return views.mass_view(recording, start, view, maps, moved=not view.keep_identity)
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
        return views.row_view(recording, view, lambda _: row)


class SingleAttentionAttribution(RecordedAttribution[Literal["token", "matrix"]]):
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

    def _explained(self, recording: Recording, start: Tensor, view: views.View) -> Any:
        if view.granularity != "input":
            views.one_pass(recording)  # there is but one
        chosen = self._used(recording, view)
        maps = {step.index: self._weighted(recording, start, step) for step in chosen}
        if view.granularity == "matrix":
            return attention_matrices(recording, chosen, maps)[0]
        through = sum(step.event for step in chosen)
        return views.mass_view(recording, start, view, maps, through=through)

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
