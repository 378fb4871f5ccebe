"""The method of *Transformer Interpretability Beyond Attention Visualization* (CVPR 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from torch import Tensor
from typing_extensions import Unpack

from captum_transformer_lrp.attr import heads, views
from captum_transformer_lrp.attr.attention_attribution import RolloutAttribution, maps_by_gradients
from captum_transformer_lrp.attr.attention_maps import AttentionMaps
from captum_transformer_lrp.attr.base import Settings, check_finite, gradients, relevances, sum_all
from captum_transformer_lrp.attr.checkpointed import rolled_out
from captum_transformer_lrp.attr.explanation import Explanation
from captum_transformer_lrp.attr.targets import predicted, seed
from captum_transformer_lrp.engine.graph.arguments import tensors_in
from captum_transformer_lrp.engine.graph.op import Books
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.lineage.passes import passes
from captum_transformer_lrp.engine.phases import Relevance
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.engine.watch.checks import check_finite_output
from captum_transformer_lrp.engine.watch.thread_state import ThreadState

HeadWeighting: TypeAlias = Literal["gradient", "attention", "none"]


class TransformerAttribution(RolloutAttribution):
    r"""Relevance and gradient of every attention map, rolled out over the blocks.

    For target :math:`t` relevance starts as the one-hot of :math:`t` and is propagated by eq. 2–10
    down to the attention map :math:`A^{(b)}` of every block; with the gradient of the logit

    .. math::
        \bar A^{(b)} = I + E_h(\nabla A^{(b)} \odot R^{(n_b)})^+, \qquad
        C = \bar A^{(1)} \cdot \bar A^{(2)} \cdots \bar A^{(B)}
        \qquad \text{(eq. 13, 14)}

    and the attribution is the row of :math:`C - I` that the model reads its answer from: that of
    [CLS], or the mean of all rows under mean pooling.  Subtracting I leaves out what no attention
    has moved, which is the same for every target.  Entries are not negative.  Those of tokens
    sum to the mass that attentions have moved, which has no unit and differs between targets.

    The model is used as it is: any timm, Hugging Face or torchvision Transformer or one of your
    own, in eval mode.  It is watched for one forward pass and left as it was.

    Args:
        forward_func: the model, or a function that calls it and returns logits (N, C), or one
            value for each example (N,).  Hugging Face ``ModelOutput`` and tuples are fine.
        rules: rules that replace the registered ones for this object only, by PyTorch function,
            module class or name of a module.  A ``module.rule`` of the model goes first.
        stabilizer: divides relevance in the place of ``epsilon``; None for ``epsilon``.
        epsilon: ε of eq. 2.  A denominator :math:`y = \sum z_i` becomes
            :math:`y + \varepsilon \sum |z_i|\,\mathrm{sign}\,y`, which rounding cannot bring near
            zero.  None is :data:`~captum_transformer_lrp.rules.DEFAULT_EPSILON`; 0 is the paper's
            equation as printed, computed in float64.
        strict: whether an operation without a rule is an error (the default) or follows eq. 2.
        dtype: what to compute in, if that is more precise than the model: ``torch.float64``,
            ``torch.float32`` (the default but for ``epsilon=0``), or ``torch.bfloat16`` to leave
            models of half precision as they are.
        head_weighting: what R is multiplied by in eq. 13: ``"gradient"`` for ∇A, as the paper has
            it; ``"attention"`` for A, its ablation "w/o ∇A"; ``"none"`` for R alone.
        layers: the attentions that take part in eq. 14, counted from the input, negative ones from
            the output; None for all.  ``[-1]`` is the paper's ablation with the block nearest the
            output alone.
        checkpointing: whether of the forward pass only the tokens between blocks are kept, and each
            block is computed again on the way back: the maps of one block in memory in the place of
            all, for one more forward pass.  For long sequences.

    Reference:
        Hila Chefer, Shir Gur, Lior Wolf, *Transformer Interpretability Beyond Attention
        Visualization*, CVPR 2021.

    Example:
        >>> import timm, torch
        >>> from captum_transformer_lrp import TransformerAttribution
        >>> _ = torch.manual_seed(0)
        >>> model = timm.create_model("test_vit", num_classes=10).eval()
        >>> images = torch.randn(2, 3, 160, 160)
        >>> attributions = TransformerAttribution(model).attribute(images, target=3)
        >>> attributions.shape
        torch.Size([2, 3, 160, 160])
    """

    propagates_relevance = True

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        epsilon: float | None = None,
        head_weighting: HeadWeighting = "gradient",
        layers: Sequence[int] | None = None,
        checkpointing: bool = False,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(forward_func, epsilon=epsilon, **settings)
        views.check_choice("head_weighting", head_weighting, HeadWeighting)
        if layers is not None and not layers:
            raise ValueError("layers must name at least one attention, or be None for all of them")
        self.checkpointing = checkpointing
        self.head_weighting = head_weighting
        self.layers = None if layers is None else tuple(layers)

    def explain(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        start_layer: int = 0,
        granularity: views.Granularity = "input",
        row_normalize: bool = False,
        keep_identity: bool = False,
    ) -> Explanation:
        """Explain one target, and return everything on the way.

        Takes the arguments of :meth:`attribute`.  Relevance is propagated all the way to the
        inputs, which costs more than :meth:`attribute`.

        Example:
            >>> import timm, torch
            >>> from captum_transformer_lrp import TransformerAttribution
            >>> _ = torch.manual_seed(0)
            >>> model = timm.create_model("test_vit", num_classes=10).double().eval()
            >>> images = torch.randn(1, 3, 160, 160, dtype=torch.float64)
            >>> explanation = TransformerAttribution(model).explain(images, target=3)
            >>> explanation.attentions[0].name
            'blocks.0.attn'
            >>> round(explanation.total.item(), 6)
            1.0
            >>> sorted(explanation.absorbed)  # by attentions, what ε takes
            ['blocks.0.attn', ..., 'cls_token', 'pos_embed']
        """
        rollout = start_layer, row_normalize, keep_identity
        view = views.View(inputs, granularity, None, False, *rollout)
        views.check_choice("granularity", granularity, self.granularities)
        if self.checkpointing:
            raise ValueError(
                "explain() returns the maps of all blocks, which checkpointing is not to have in "
                "memory at once: use attribute(), or checkpointing=False"
            )
        watched = self._recorded(inputs, additional_forward_args, keeps_books=True)
        state = ThreadState()
        with state, state, watched as recording:
            tape = recording.tape
            target = predicted(recording.output) if target is None else target
            check_finite_output(recording.output)
            start = seed(recording.output, target)
            attributions = self._explained(recording, start, view)
            gradient_of = gradients(recording, start, tape.attentions)
            steps, books = tape.attentions, Books()
            wanted = [*(step.attention for step in steps), *recording.all_leaves]
            found = recording.run(Relevance(books), start, wanted)
            of_attentions = found[: len(steps)]
            summed = tuple(recording.at_inputs(found[len(steps) :]))
            total = sum_all(
                [value.flatten(1).sum(1) for value in summed] + list(books.shares.values())
            )
            explanation = Explanation(
                attributions=attributions,
                output=recording.output.detach(),
                target=target,
                attentions=tuple(map(self._seen, steps, gradient_of, of_attentions)),
                relevances=summed,
                absorbed=books.found(),
                total=total,
            )
            check_finite(explanation.attributions)
            maps = [(target, tensors_in(attributions))]
            used = self._used(recording, view)
            self._check_reach(recording, maps, inputs, additional_forward_args, used)
            return explanation.to(recording.dtype)

    def _seen(self, step: AttentionStep, gradient: Tensor, relevance: Tensor) -> AttentionMaps:
        maps = step.attention, gradient, relevance, self._combined(step, gradient, relevance)
        return AttentionMaps(step.name, *(heads.per_head(one.detach(), step) for one in maps))

    def _used(self, recording: Recording, view: views.View) -> list[AttentionStep]:
        used = super()._used(recording, view)
        if self.layers is None:
            return used
        chosen = {
            steps[place].index
            for steps in passes(recording.tape, recording.output)
            for place in views.chosen_layers(self.layers, len(steps))
        }
        return [step for step in used if step.index in chosen]

    def _explained(self, recording: Recording, start: Tensor, view: views.View) -> Any:
        if recording.log is None or not recording.is_checkpointed:
            return super()._explained(recording, start, view)
        if view.needs_matrices:
            raise ValueError(
                "matrices between all tokens need the maps of all blocks at once, which "
                'checkpointing is not to keep: use granularity="input" or "token" without '
                "row_normalize, or checkpointing=False"
            )
        # The first target's map is made together with all others', which are kept for later.
        if not recording.together:
            found = rolled_out(
                recording,
                recording.log,
                view,
                {step.index for step in self._used(recording, view)},
                self._combined,
                needs_gradient=self.head_weighting == "gradient",
            )
            recording.together.update(enumerate(found))
        place = next(n for n, one in enumerate(recording.targets) if one is start)
        return recording.together.pop(place)

    def _maps(
        self, recording: Recording, start: Tensor, used: Sequence[AttentionStep]
    ) -> dict[int, Tensor]:
        relevance_of = relevances(recording, start, used)
        if self.head_weighting == "gradient":
            waiting = dict(enumerate(relevance_of))
            relevance_of.clear()  # what has been combined need not be kept
            return maps_by_gradients(
                recording,
                start,
                used,
                lambda place, gradient: self._combined(used[place], gradient, waiting.pop(place)),
            )
        pairs = zip(used, relevance_of, strict=True)
        return {step.index: self._combined(step, None, relevance) for step, relevance in pairs}

    def _combined(self, step: AttentionStep, gradient: Tensor | None, relevance: Tensor) -> Tensor:
        """(∇A ⊙ R)⁺ of eq. 13, or what replaces it in an ablation."""
        if self.head_weighting == "none":
            return relevance.clamp(min=0)
        factor = step.attention.detach() if self.head_weighting == "attention" else gradient
        assert factor is not None
        return (factor * relevance).clamp_(min=0)
