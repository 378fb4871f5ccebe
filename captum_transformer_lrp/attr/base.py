"""What all methods have in common: one recorded forward pass, and views of the mass on it."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Generic, Literal, TypedDict, overload

import torch
from captum._utils.progress import progress
from captum.attr._utils.attribution import Attribution
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor
from typing_extensions import TypeVar, Unpack

from captum_transformer_lrp.attr import views
from captum_transformer_lrp.attr.arguments import captum_method, split_arguments
from captum_transformer_lrp.attr.chunks import chunk_of_target, in_chunks, joined
from captum_transformer_lrp.attr.compiled import Backend, CompiledAttribution
from captum_transformer_lrp.attr.reach import check_reach
from captum_transformer_lrp.attr.targets import plain, predicted, seed
from captum_transformer_lrp.engine.graph.arguments import replace_tensors, tensors_in
from captum_transformer_lrp.engine.graph.op import Phase
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.graph.values import is_finite
from captum_transformer_lrp.engine.phases import ALL_PHASES
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

# As Captum's: a tensor is explained by a tensor, a tuple by a tuple.
Inputs = TypeVar("Inputs", Tensor, tuple[Tensor, ...])
# What a method has beside maps shaped as the inputs.
Fine = TypeVar("Fine", bound=Literal["token", "matrix"], default=Literal["token"])


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


class RecordedAttribution(Attribution, Generic[Fine]):
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
        granularity: Fine,
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
            granularity: ``"input"`` for maps shaped as the inputs, bilinearly upsampled for
                images, or ``"token"`` for (N, S), special tokens included.  Of methods that take
                one attention's map there is ``"matrix"``, too: its mean over heads, (N, S, S).
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
        granularity: Literal["input"] | Fine = "input",
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

    def compile(
        self,
        example_inputs: Any,
        additional_forward_args: Any = None,
        *,
        backend: Backend = "inductor",
        **options: Any,
    ) -> CompiledAttribution:
        """The same method without Python between its operations, and a program for other processes.

        The explanation of the example inputs is recorded as a graph and compiled.  A call for
        inputs of the same shapes computes the graph; another shape is recorded when it comes.  On a
        GPU it is a CUDA graph, which starts all kernels at once and keeps the memory of a call.

        Args:
            example_inputs: inputs as of ``attribute``.
            additional_forward_args: likewise; what is no tensor among them stays as it is.
            backend: ``"inductor"`` writes machine code by PyTorch's Inductor, which needs a C++
                compiler and takes a minute or two; ``"eager"`` calls the recorded operations one by
                one, which needs a few seconds and saves most of Python's time.
            options: of ``attribute``, such as ``granularity="token"``.

        Returns:
            What is called as ``attribute`` is: ``explain(inputs, target)``.

        Raises:
            ExplanationError: as ``attribute`` does for the example inputs.

        Example:
            >>> import timm, torch
            >>> from captum_transformer_lrp import TransformerAttribution
            >>> _ = torch.manual_seed(0)
            >>> model = timm.create_model("test_vit", num_classes=10).eval()
            >>> images = torch.randn(2, 3, 160, 160)
            >>> method = TransformerAttribution(model)
            >>> explain = method.compile(images, backend="eager")
            >>> torch.equal(explain(images, target=3), method.attribute(images, target=3))
            True
        """
        return CompiledAttribution(
            self, (example_inputs, additional_forward_args), backend, options
        )

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


def gradients(recording: Recording, start: Tensor, steps: Sequence[AttentionStep]) -> list[Tensor]:
    """∇A of each step."""
    wanted = [step.attention for step in steps]
    return recording.run(recording.gradient, start, wanted)


def relevances(recording: Recording, start: Tensor, steps: Sequence[AttentionStep]) -> list[Tensor]:
    """R of each step."""
    wanted = [step.attention for step in steps]
    return recording.run(recording.relevance, start, wanted)


def sum_all(values: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    return torch.stack(list(values)).sum(0)
