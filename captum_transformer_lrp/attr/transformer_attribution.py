"""The method of *Transformer Interpretability Beyond Attention Visualization* (CVPR 2021)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from captum._utils.common import _format_output, _format_tensor_into_tuples, _is_tuple
from captum.attr._utils.attribution import Attribution
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor

from captum_transformer_lrp.attr import views
from captum_transformer_lrp.attr.explanation import AttentionMaps, Explanation
from captum_transformer_lrp.attr.targets import predicted, seed
from captum_transformer_lrp.engine.recording import Recording, recorded
from captum_transformer_lrp.engine.tape import Phase
from captum_transformer_lrp.rules import SignAwareStabilizer
from captum_transformer_lrp.rules.call import Stabilizer
from captum_transformer_lrp.rules.registry import MODULE_RULES, Target, rule_overrides


class TransformerAttribution(Attribution):
    r"""Relevance and gradient of every attention map, rolled out over the blocks.

    For target :math:`t` relevance starts as the one-hot of :math:`t` and is propagated by eq. 2–10
    down to the attention map :math:`A^{(b)}` of every block; with the gradient of the logit

    .. math::
        \bar A^{(b)} = I + E_h(\nabla A^{(b)} \odot R^{(n_b)})^+, \qquad
        C = \bar A^{(1)} \cdot \bar A^{(2)} \cdots \bar A^{(B)}
        \qquad \text{(eq. 13, 14)}

    and the attribution is the row of :math:`C` that the model reads its answer from: that of
    [CLS], or the mean of all rows under mean pooling.

    The model is used as it is: any timm, Hugging Face or torchvision Transformer or one of your
    own, in eval mode.  It is watched for one forward pass and left as it was.

    Args:
        forward_func: the model, or a function that calls it and returns logits (N, C), or one
            value for each example (N,).  Hugging Face ``ModelOutput`` and tuples are fine.
        rules: rules that replace the registered ones for this object only, by PyTorch function or
            module class.  A ``module.rule`` of the model goes first.
        stabilizer: keeps denominators away from zero.
        strict: whether an operation without a rule is an error (the default) or follows eq. 2.

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

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        rules: dict[Target, PropagationRule | type[PropagationRule]] | None = None,
        stabilizer: Stabilizer | None = None,
        strict: bool = True,
    ) -> None:
        super().__init__(forward_func)
        self._function_rules, self._class_rules = rule_overrides(rules)
        self._stabilizer = stabilizer or SignAwareStabilizer()
        self._strict = strict

    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        start_layer: int = 0,
        granularity: views.Granularity = "input",
        row_normalize: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """Explain one target for each example of a batch.

        Args:
            inputs: float images (N, C, H, W), token ids (N, S), float embeddings (N, S, D), or a
                tuple of such.
            target: the output to explain, in any form that Captum takes: an int, a tuple for
                outputs of more than two dimensions, or a list or tensor with one for each example.
                None explains each example's predicted class.
            additional_forward_args: further positional arguments of ``forward_func``, as in
                Captum; or a dictionary of keyword arguments, such as
                ``{"attention_mask": mask}``.
            start_layer: the first attention, counted from the input, that takes part in eq. 14.
            granularity: ``"input"`` for maps shaped as the inputs, whose sum over the channels or
                the embedding dimension is the relevance map, bilinearly upsampled for images;
                ``"token"`` for (N, S), the row over all tokens, special ones included;
                ``"matrix"`` for C, (N, S, S).
            row_normalize: divide the rows of each factor of eq. 14 by their sums.

        Returns:
            Non-negative attributions, float32 or as precise as the inputs; a tuple if ``inputs``
            is one and ``granularity`` is ``"input"``.

        Raises:
            ValueError: for a target or an option that does not fit.
            ExplanationError: for a model that cannot be explained as it is; the message says what
                to do.
        """
        (explained,) = self._explain(
            inputs, [target], additional_forward_args, start_layer, granularity, row_normalize
        )
        return explained

    def attribute_targets(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        targets: Sequence[Any],
        additional_forward_args: Any = None,
        *,
        start_layer: int = 0,
        granularity: views.Granularity = "input",
        row_normalize: bool = False,
    ) -> list[Tensor | tuple[Tensor, ...]]:
        """Explain several targets of the same inputs from one forward pass.

        Args:
            inputs: as in :meth:`attribute`.
            targets: any number of targets, each as in :meth:`attribute`.
            additional_forward_args: as in :meth:`attribute`.
            start_layer: as in :meth:`attribute`.
            granularity: as in :meth:`attribute`.
            row_normalize: as in :meth:`attribute`.

        Returns:
            For each target what :meth:`attribute` returns.
        """
        return self._explain(
            inputs, targets, additional_forward_args, start_layer, granularity, row_normalize
        )

    def explain(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        start_layer: int = 0,
        granularity: views.Granularity = "input",
        row_normalize: bool = False,
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
            >>> sorted(explanation.absorbed)
            ['cls_token', 'pos_embed']
        """
        options = (start_layer, granularity, row_normalize)
        with self._recorded(inputs, additional_forward_args, keeps_books=True) as recording:
            tape = recording.tape
            target = predicted(recording.output) if target is None else target
            start = seed(recording.output, target)
            attributions = self._attributions(recording, start, inputs, *options)
            steps = tape.attentions
            leaves = [leaf for found in recording.leaves for leaf in found]
            parameters = [leaf for _, leaf, _ in tape.parameter_leaves]
            wanted = [step.attention for step in steps]
            gradients = tape.backward(Phase.GRADIENT, recording.output, start, wanted)
            tape.absorbed = {}
            relevances = tape.backward(
                Phase.RELEVANCE, recording.output, start, [*wanted, *leaves, *parameters]
            )
            of_attentions = relevances[: len(steps)]
            of_leaves = relevances[len(steps) : len(steps) + len(leaves)]
            of_parameters = relevances[len(steps) + len(leaves) :]
            count = recording.output.shape[0]
            for (name, _, mark), value in zip(tape.parameter_leaves, of_parameters, strict=True):
                if count == 1 or mark.examples.known:
                    tape.absorb(name, mark.examples.sum(value))
                else:
                    tape.absorb(name, value.sum().expand(count) / count)
            per_input = iter(of_leaves)
            summed = tuple(sum_all([next(per_input) for _ in one]) for one in recording.leaves)
            total = sum_all(
                [value.flatten(1).sum(1) for value in summed] + list(tape.absorbed.values())
            )
            return Explanation(
                attributions=attributions,
                output=recording.output.detach(),
                target=target,
                attentions=tuple(
                    AttentionMaps(
                        step.name,
                        *(
                            views.per_head(value.detach(), step)
                            for value in (
                                step.attention,
                                gradient,
                                relevance,
                                (gradient * relevance).clamp(min=0),
                            )
                        ),
                    )
                    for step, gradient, relevance in zip(
                        steps, gradients, of_attentions, strict=True
                    )
                ),
                relevances=summed,
                absorbed={n: v for n, v in tape.absorbed.items() if bool(v.any())},
                total=total,
            )

    def has_convergence_delta(self) -> bool:
        """False: the rows of C have no sum that they must converge to."""
        return False

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: relevance is a product with the inputs, not a sensitivity."""
        return True

    def _recorded(self, inputs: Any, additional_forward_args: Any, *, keeps_books: bool) -> Any:
        if isinstance(additional_forward_args, Mapping):
            args, kwargs = (), dict(additional_forward_args)
        elif additional_forward_args is None:
            args, kwargs = (), {}
        else:
            packed = additional_forward_args
            args, kwargs = packed if isinstance(packed, tuple) else (packed,), {}
        return recorded(
            self.forward_func,
            _format_tensor_into_tuples(inputs),
            args,
            kwargs,
            function_rules=self._function_rules,
            class_rules={**MODULE_RULES, **self._class_rules},
            stabilizer=self._stabilizer,
            strict=self._strict,
            keeps_books=keeps_books,
        )

    def _explain(
        self,
        inputs: Any,
        targets: Sequence[Any],
        additional_forward_args: Any,
        start_layer: int,
        granularity: views.Granularity,
        row_normalize: bool,
    ) -> list[Tensor | tuple[Tensor, ...]]:
        if granularity not in views.GRANULARITIES:
            raise ValueError(f"granularity must be one of {views.GRANULARITIES}: {granularity!r}")
        with self._recorded(inputs, additional_forward_args, keeps_books=False) as recording:
            found = []
            for target in targets:
                chosen = predicted(recording.output) if target is None else target
                start = seed(recording.output, chosen)
                found.append(
                    self._attributions(
                        recording, start, inputs, start_layer, granularity, row_normalize
                    )
                )
            return found

    def _attributions(
        self,
        recording: Recording,
        start: Tensor,
        inputs: Any,
        start_layer: int,
        granularity: views.Granularity,
        row_normalize: bool,
    ) -> Tensor | tuple[Tensor, ...]:
        steps = recording.tape.attentions
        if not 0 <= start_layer < len(steps):
            raise ValueError(
                f"start_layer must be one of the model's {len(steps)} attentions, 0 to "
                f"{len(steps) - 1}; found {start_layer}"
            )
        self._weigh(recording, start, start_layer)
        if granularity == "matrix" or row_normalize:
            return self._from_matrix(recording, start, inputs, granularity, row_normalize)
        if granularity == "token":
            return views.token_mass(recording, start).detach()
        maps = views.input_mass(recording, recording.output, start)
        return _format_output(_is_tuple(inputs), tuple(one.detach() for one in maps))

    def _weigh(self, recording: Recording, start: Tensor, start_layer: int) -> None:
        """Give every attention that takes part its weighted map, (∇A ⊙ R)⁺."""
        tape = recording.tape
        used = tape.attentions[start_layer:]
        wanted = [step.attention for step in used]
        gradients = tape.backward(Phase.GRADIENT, recording.output, start, wanted)
        relevances = tape.backward(Phase.RELEVANCE, recording.output, start, wanted)
        for step in tape.attentions:
            step.weighted = None
        for step, gradient, relevance in zip(used, gradients, relevances, strict=True):
            step.weighted = (gradient * relevance).clamp(min=0)

    def _from_matrix(
        self,
        recording: Recording,
        start: Tensor,
        inputs: Any,
        granularity: views.Granularity,
        row_normalize: bool,
    ) -> Tensor | tuple[Tensor, ...]:
        used = [step for step in recording.tape.attentions if step.weighted is not None]
        matrices = views.attention_matrices(used, recording.output.shape[0])
        matrix = views.rollout_matrix(matrices, row_normalize=row_normalize)
        if granularity == "matrix":
            return matrix
        for step in used:
            step.weighted = None
        # Without attention all mass stays where the model reads its answer from.
        readout = views.token_mass(recording, start)
        row = (readout.unsqueeze(1) @ matrix).squeeze(1)
        if granularity == "token":
            return row
        stream = views.token_stream(recording)
        spread = (row.unsqueeze(-1) / stream.shape[-1]).expand_as(stream)
        maps = views.input_mass(recording, stream, spread)
        return _format_output(_is_tuple(inputs), tuple(one.detach() for one in maps))


def sum_all(values: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    return torch.stack(list(values)).sum(0)
