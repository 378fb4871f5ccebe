"""Attention perception times reasoning feedback (Chen et al., TMLR 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from captum._utils.common import _format_tensor_into_tuples
from torch import Tensor
from typing_extensions import Unpack

from captum_transformer_lrp.attr import heads, views
from captum_transformer_lrp.attr.arguments import split_arguments
from captum_transformer_lrp.attr.base import (
    RecordedAttribution,
    Settings,
    gradients,
    sum_all,
)
from captum_transformer_lrp.attr.embeddings import FromEmbeddings
from captum_transformer_lrp.attr.matrices import rollout_parts
from captum_transformer_lrp.attr.targets import predicted
from captum_transformer_lrp.attr.token_attribution import by_token, maps_of, one_sequence
from captum_transformer_lrp.attr.transformed_values import transformed_values
from captum_transformer_lrp.engine.graph.seen import AttentionStep, Residual
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.errors import ExplanationError

Perception: TypeAlias = Literal["token", "head"]


class BiAttention(RecordedAttribution):
    r"""How tokens come together in the pooled one, times how the answer depends on them.

    *Attention perception* is a rollout, :math:`P \leftarrow P + \tilde A^{(b)} P` from
    :math:`P = I`, less that I, of

    * ``perception="token"``:
      :math:`\tilde A_{ij} = E_h A^h_{ij}\,\|v_j W^O\|_2 / \|x_j\|_2`, each token weighed by how
      much longer its transformed value is than itself, :math:`x_j` being what goes into the block;
    * ``perception="head"``: :math:`\tilde A = \sum_h I_h A^h` with
      :math:`I_h \propto \sum_{ij} |A_h^\top \nabla A_h|_{ij}`.

    *Reasoning feedback* is the gradient of the target by the last attention map, averaged along
    the way from a black input to the input itself (integrated gradients), its positive part
    averaged over heads,

    .. math::
        F = E_h\Big(\frac 1n \sum_{k=0}^{n-1}
            \nabla A^{(B)}\big(\tfrac{k}{n-1} x\big)\Big)^+

    and the attribution is the row of :math:`F \odot (P - I)` that the model reads its answer from.
    For token ids the way starts from embeddings of zero.  Entries are not negative and have no
    fixed sum.

    Args:
        forward_func: as in :class:`TransformerAttribution`.
        perception: ``"token"`` or ``"head"``, see above.
        n_steps: n, the number of steps from 0 to the inputs; there are n + 2 forward passes in all,
            however many targets there are.
        layers: the attentions that take part in P, counted from the input, negative ones from the
            output; None for all.  The published code leaves out the first ones of ViT-B.
        settings: ``rules``, ``stabilizer``, ``strict`` and ``dtype``, as in
            :class:`TransformerAttribution`.

    Reference:
        Jiamin Chen et al., *Beyond Intuition: Rethinking Token Attributions inside Transformers*,
        TMLR 2023, as in their published code for ViT.

    Example:
        >>> import timm, torch
        >>> from captum_transformer_lrp import BiAttention
        >>> model = timm.create_model("test_vit", num_classes=10).eval()
        >>> images = torch.randn(2, 3, 160, 160)
        >>> BiAttention(model, n_steps=3).attribute(images, target=1).shape
        torch.Size([2, 3, 160, 160])
    """

    keeps_streams = True

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        perception: Perception = "token",
        n_steps: int = 20,
        layers: Sequence[int] | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(forward_func, **settings)
        views.check_choice("perception", perception, Perception)
        if n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, found {n_steps}")
        self.perception = perception
        self.n_steps = n_steps
        self.layers = None if layers is None else tuple(layers)

    def _of_piece(
        self, inputs: Any, targets: Sequence[Any], additional: Any, view: views.View
    ) -> list[Any]:
        embeddings: list[Tensor] = []
        chosen: list[Any] = []

        def look(recording: Recording, start: Tensor) -> Tensor:
            views.one_pass(recording, advice=views.ONE_AT_A_TIME)
            embeddings.extend(_given(recording, inputs))
            if any(target is None for target in targets):
                chosen.append(predicted(recording.output))
            return start

        self._each_target(inputs, targets[:1], additional, look, maps_of=lambda _: ())
        named = [chosen[0] if target is None else target for target in targets]
        feedback = iter(self._feedback(inputs, embeddings, named, additional))

        def explained(recording: Recording, start: Tensor) -> Any:
            perceived = self._perceived(recording, start)
            readout = views.token_mass(recording, start).detach()
            weighed = next(feedback).to(perceived) * perceived
            row = (readout.unsqueeze(1) @ weighed).squeeze(1)
            return views.row_view(recording, view, lambda _: row)

        return self._each_target(inputs, named, additional, explained)

    def _feedback(
        self, inputs: Any, given: Sequence[Tensor], targets: Sequence[Any], additional: Any
    ) -> list[Tensor]:
        """F of every target, (N, S, S)."""
        forward, args = self._from_scaled(inputs, additional)
        way = torch.linspace(0, 1, self.n_steps, dtype=torch.float64).tolist()
        total: list[Tensor] | None = None
        for alpha in way:
            scaled = tuple(value * alpha for value in given)
            method = _LastGradient(forward, dtype=self._dtype)
            found = method.of_targets(scaled, targets, args)
            total = found if total is None else [sum_all(pair) for pair in zip(total, found)]  # noqa: B905
        assert total is not None
        return [(one / self.n_steps).clamp(min=0).mean(1) for one in total]

    def _from_scaled(self, inputs: Any, additional: Any) -> tuple[Callable[..., Any], Any]:
        """What takes scaled inputs, or scaled embeddings of token ids, and its other arguments."""
        values = _format_tensor_into_tuples(inputs)
        if all(value.is_floating_point() for value in values):
            return self.forward_func, additional
        if len(values) > 1:
            raise ExplanationError(
                "BiAttention scales its inputs, and token ids among several inputs cannot be: "
                "give their embeddings"
            )
        args, named = split_arguments(additional)
        forward = FromEmbeddings(self.forward_func, tuple(named))
        return forward, (values[0], *args, *named.values())

    def _perceived(self, recording: Recording, start: Tensor) -> Tensor:
        """P − I, (N, S, S)."""
        pairs = one_sequence(recording)
        used = [pairs[place] for place in views.chosen_layers(self.layers, len(pairs))]
        matrices = []
        if self.perception == "head":
            found = gradients(recording, start, [step for step, _ in used])
            for (step, _), gradient in zip(used, found, strict=True):
                matrices.append(_by_head(maps_of(step), heads.per_head(gradient, step)))
        else:
            matrices = [_by_token(recording, step, residual) for step, residual in used]
        return rollout_parts(matrices, row_normalize=False)[1]


class _LastGradient(RecordedAttribution):
    """The gradient of a target by the last attention map."""

    def of_targets(self, inputs: Any, targets: Sequence[Any], additional: Any) -> list[Tensor]:
        """(N, heads, S, S) for each target."""
        return self._each_target(inputs, targets, additional, self._gradient, maps_of=lambda _: ())

    def _gradient(self, recording: Recording, start: Tensor) -> Tensor:
        step = views.one_pass(recording)[-1]
        (gradient,) = gradients(recording, start, [step])
        return heads.per_head(gradient, step)


def _given(recording: Recording, inputs: Any) -> list[Tensor]:
    """The inputs as floats: themselves, or the embeddings that were looked up for token ids."""
    found = []
    values = _format_tensor_into_tuples(inputs)
    for leaves, value in zip(recording.leaves, values, strict=True):
        if value.is_floating_point():
            found.append(value.detach())
            continue
        if len(leaves) != 1 or leaves[0].numel() % value.numel():
            raise ExplanationError(
                "the model looks its token ids up more than once: give BiAttention embeddings and "
                "a function that takes them"
            )
        found.append(leaves[0].detach().reshape(*value.shape, -1))
    return found


def _by_head(maps: Tensor, gradient: Tensor) -> Tensor:
    """The heads' maps, weighed by how much the answer depends on each, (N, S, S)."""
    importance = (maps.transpose(-1, -2) @ gradient).abs().mean((-2, -1))
    share = importance / importance.sum(1, keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    return torch.einsum("nh,nhqk->nqk", share, maps)


def _by_token(recording: Recording, step: AttentionStep, residual: Residual) -> Tensor:
    """The mean of the maps, each key weighed by its change of length, (N, S, S)."""
    values = transformed_values(recording, step, residual).sum(1)
    stream = by_token(recording, residual.tensor.detach(), residual.tensor)
    before = stream.norm(dim=-1)
    # A token without length, as the embedding of padding is, has none to grow.
    growth = torch.where(before > 0, values.norm(dim=-1) / before, 0)
    return maps_of(step).mean(1) * growth.unsqueeze(1)
