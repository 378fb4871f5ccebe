"""Layer-wise relevance propagation from the output to the input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, overload

import torch
from captum.attr._utils.common import _sum_rows
from torch import Tensor
from typing_extensions import Unpack

from captum_transformer_lrp.attr import views
from captum_transformer_lrp.attr.arguments import captum_method
from captum_transformer_lrp.attr.base import (
    AttributeOptions,
    Inputs,
    RecordedAttribution,
    Settings,
    sum_all,
)
from captum_transformer_lrp.engine.graph.arguments import tensors_in
from captum_transformer_lrp.engine.phases import Relevance, Rollout
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.rules import Preset
from captum_transformer_lrp.rules import preset as named_preset
from captum_transformer_lrp.rules.presets import Start

Contrast: TypeAlias = Literal["clrp", "sglrp"]


class TransformerLRP(RecordedAttribution):
    r"""Relevance all the way to the pixels or the embeddings.

    It needs no attention map, so models with linear attention and without any attention can be
    explained, too.  Entries are of either sign.  They and what is absorbed (by parameters and by ε)
    sum to what relevance starts from, 1 or the logit.

    Args:
        forward_func: as in :class:`TransformerAttribution`.
        preset: the rules, a :class:`~captum_transformer_lrp.rules.Preset` or the name of one:
            ``"paper"`` (eq. 5, 9, 10), ``"lrp"`` (eq. 4 and eq. 2 without normalisation, the
            paper's baseline), ``"epsilon"``, ``"gamma"``, ``"alpha_beta"``, ``"attnlrp"``,
            ``"attnlrp_gamma"``, ``"cp_lrp"`` or ``"libra"``.
        input_range: the lowest and highest value of a pixel for the z\ :sup:`B` rule of the first
            layer, numbers or tensors that broadcast to the inputs, such as
            ``((0 - mean) / std, (1 - mean) / std)``; None takes each example's smallest and
            largest value, as the paper's published code does.
        start: what relevance starts from: ``"one_hot"``, the paper's, whose attributions sum to 1,
            or ``"logit"``, the target's logit, as in :class:`captum.attr.LRP`.  None is what suits
            the preset: the logit for ``"epsilon"``, ``"attnlrp"``, ``"cp_lrp"`` and
            ``"libra"``, so that what speaks against a class is negative whatever sign the logit
            has; 1 for the others.
        contrast: None, or a contrastive seed: ``"clrp"`` subtracts the explanation of all other
            classes with equal weights and keeps what is positive; ``"sglrp"`` weighs the classes
            by the gradient of the target's softmax probability.
        settings: ``rules``, ``stabilizer``, ``strict`` and ``dtype``, as in
            :class:`TransformerAttribution`; ``rules`` go before the
            preset's.

    Reference:
        Sebastian Bach et al., *On Pixel-Wise Explanations for Non-Linear Classifier Decisions by
        Layer-Wise Relevance Propagation*, PLOS ONE 2015; the contrasts are those of Gu et al. 2018
        (CLRP) and Iwana et al. 2019 (SGLRP).

    Example:
        >>> import timm, torch
        >>> from captum_transformer_lrp import TransformerLRP
        >>> _ = torch.manual_seed(0)
        >>> model = timm.create_model("test_vit", num_classes=10).double().eval()
        >>> images = torch.randn(1, 3, 160, 160, dtype=torch.float64)
        >>> method = TransformerLRP(model)
        >>> attributions, delta = method.attribute(
        ...     images, target=3, return_convergence_delta=True)
        >>> round((attributions.sum() + delta).item(), 6)  # delta: what the parameters absorb
        1.0
    """

    needs_attention = False
    propagates_relevance = True
    phases = (Relevance, Rollout)

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        preset: str | Preset = "paper",
        input_range: tuple[float | Tensor, float | Tensor] | None = None,
        start: Start | None = None,
        contrast: Contrast | None = None,
        epsilon: float | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(forward_func, epsilon=epsilon, **settings)
        chosen = named_preset(preset) if isinstance(preset, str) else preset
        if input_range is not None:
            chosen = chosen.with_input_range(*input_range)
        self.preset: Preset = chosen
        if start is not None:
            views.check_choice("start", start, Start)
        if contrast is not None:
            views.check_choice("contrast", contrast, Contrast)
        self.start: Start = chosen.start if start is None else start
        self.contrast = contrast

    @overload
    def attribute(
        self,
        inputs: Inputs,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        return_convergence_delta: Literal[False] = False,
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
        return_convergence_delta: Literal[False] = False,
        granularity: Literal["token"],
        **options: Unpack[AttributeOptions],
    ) -> Tensor: ...
    @overload
    def attribute(
        self,
        inputs: Inputs,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        return_convergence_delta: Literal[True],
        granularity: Literal["input", "token"] = "input",
        **options: Unpack[AttributeOptions],
    ) -> tuple[Inputs | Tensor, Tensor]: ...
    @captum_method
    def attribute(
        self,
        inputs: Inputs,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        return_convergence_delta: bool = False,
        granularity: Literal["input", "token"] = "input",
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Any:
        """Explain one target for each example of a batch.

        Args:
            inputs: float images (N, C, H, W), token ids (N, S), float embeddings (N, S, D), or a
                tuple of such.
            target: the output to explain, in any form that Captum takes; None explains each
                example's predicted class.
            additional_forward_args: as in Captum, or a dictionary of keyword arguments.
            return_convergence_delta: whether to return, too, what the attributions lack of the
                relevance that they started from: the share of parameters and biases.
            granularity: ``"input"`` for relevance shaped as the inputs (token ids: (N, S)),
                ``"token"`` for (N, S), that of every token below the first attention, special
                ones included.
            internal_batch_size: at most so many examples are computed at a time, which bounds the
                memory; None for all at once.  Tensors among ``additional_forward_args`` whose first
                dimension is that of the batch are cut with it.
            show_progress: whether to show a progress bar that counts those parts of the batch.

        Returns:
            Attributions of either sign; with ``return_convergence_delta`` a pair of them and a
            tensor (N,).

        Raises:
            ValueError: for a target or an option that does not fit.
            ExplanationError: for a model that cannot be explained as it is; the message says what
                to do.
        """
        view = views.View(inputs, granularity, internal_batch_size, show_progress)
        [(attributions, started)] = super()._of_targets([target], additional_forward_args, view)
        if not return_convergence_delta:
            return attributions
        return attributions, self.compute_convergence_delta(attributions, started)

    def _of_targets(self, targets: Sequence[Any], additional: Any, view: views.View) -> list[Any]:
        return [maps for maps, _ in super()._of_targets(targets, additional, view)]

    def _of_piece(
        self, inputs: Any, targets: Sequence[Any], additional: Any, view: views.View
    ) -> list[Any]:
        """For each target its map, and the relevance that it starts from."""
        return self._each_target(
            inputs,
            targets,
            additional,
            lambda recording, one_hot: self._propagated(recording, one_hot, view),
            maps_of=lambda found: tensors_in(found[0]),
        )

    def has_convergence_delta(self) -> bool:
        """True: attributions and what parameters absorb add up to the relevance at the output."""
        return True

    def compute_convergence_delta(
        self, attributions: Tensor | tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        """The relevance that the attributions lack.

        Args:
            attributions: what :meth:`attribute` returned.
            output: relevance at the output, (N,): 1, or the target's logit.

        Returns:
            ``output`` less the sum of the attributions, (N,).
        """
        parts = attributions if isinstance(attributions, tuple) else (attributions,)
        return output.flatten() - sum_all([_sum_rows(part) for part in parts])

    def _propagated(
        self, recording: Recording, one_hot: Tensor, view: views.View
    ) -> tuple[Tensor | tuple[Tensor, ...], Tensor]:
        """Relevance of the inputs or tokens, and its sum at the output."""
        output = recording.output.detach()
        if self.contrast is not None and output.dim() != 2:
            raise ValueError(f"contrast={self.contrast!r} needs logits (N, C): {output.shape}")
        if self.contrast is not None and not bool((one_hot.sum(1) == one_hot.amax(1)).all()):
            raise ValueError(f"contrast={self.contrast!r} needs one class as the target")
        first, *others = self._down(recording, one_hot, view.granularity)
        if not others:
            return view.formatted(first), _sum_rows(self._seeds(output, one_hot)[0])
        difference = [one - other for one, other in zip(first, others[0], strict=True)]
        if self.contrast == "clrp":
            difference = [one.clamp(min=0) for one in difference]
        # Where nothing speaks for the target, there is nothing to contrast.
        nothing = torch.stack([(one == 0).flatten(1).all(1) for one in first]).all(0)
        difference = [
            one.masked_fill(nothing.view(-1, *[1] * (one.dim() - 1)), 0) for one in difference
        ]
        return view.formatted(difference), torch.zeros_like(output[:, 0])

    def _seeds(self, output: Tensor, one_hot: Tensor) -> list[Tensor]:
        """What is propagated for a target; of two, the second is what the first is compared to."""
        if self.contrast is None:
            return [one_hot * output if self.start == "logit" else one_hot]
        if self.contrast == "clrp":
            return [one_hot, (1 - one_hot) / max(output.shape[1] - 1, 1)]
        probability = output.softmax(1)
        of_target = (probability * one_hot).sum(1, keepdim=True)
        return [one_hot * of_target * (1 - of_target), (1 - one_hot) * of_target * probability]

    def _arrived(
        self, recording: Recording, one_hot: Tensor, wanted: Sequence[Tensor]
    ) -> list[list[Tensor]]:
        """Relevance of ``wanted``, for each seed of a target."""
        output = recording.output.detach()
        return recording.run_each(
            recording.relevance, one_hot, wanted, lambda one: self._seeds(output, one)
        )

    def _down(
        self, recording: Recording, one_hot: Tensor, granularity: str
    ) -> list[tuple[Tensor, ...]]:
        """Relevance of each input, for each seed of a target."""
        if granularity == "token":
            of_seeds = self._arrived(recording, one_hot, [views.token_stream(recording)])
            return [(views.summed_by_token(recording, found.detach()),) for (found,) in of_seeds]
        return [
            tuple(
                (value.sum(-1) if are_ids else value).detach()
                for value, are_ids in zip(
                    recording.at_inputs(arrived), recording.are_ids, strict=True
                )
            )
            for arrived in self._arrived(recording, one_hot, recording.all_leaves)
        ]
