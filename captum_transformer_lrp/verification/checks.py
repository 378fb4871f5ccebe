"""The checks of a model, an input and a method."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.attr import views
from captum_transformer_lrp.attr.arguments import split_arguments
from captum_transformer_lrp.attr.attention_attribution import (
    RolloutAttribution,
    SingleAttentionAttribution,
)
from captum_transformer_lrp.attr.base import RecordedAttribution
from captum_transformer_lrp.attr.chunks import chunk_of_target, in_chunks
from captum_transformer_lrp.attr.matrices import attention_matrices, rollout_parts
from captum_transformer_lrp.attr.targets import plain, predicted, seed
from captum_transformer_lrp.attr.transformer_attribution import TransformerAttribution
from captum_transformer_lrp.engine.graph.op import Books
from captum_transformer_lrp.engine.phases import Gradient, Relevance, Rollout
from captum_transformer_lrp.engine.recording import Recording, find_logits
from captum_transformer_lrp.engine.watch.checks import tensors_of
from captum_transformer_lrp.engine.watch.writes import unchanged
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.verification.gradients import gradients_at_inputs
from captum_transformer_lrp.verification.occlusion import channels_axis, occlusion, varies
from captum_transformer_lrp.verification.results import Check, Verification
from captum_transformer_lrp.verification.state import changes, state_of

TOLERANCES = {"output": 1e-5, "gradient": 1e-4, "relevance": 1e-6, "batch": 1e-6, "matrix": 1e-6}
"""The largest deviations that pass, relative to the largest entry; relevance: \\|Σ R − 1\\|."""

IN_FLOAT32 = {"relevance": 1e-3, "batch": 1e-3, "matrix": 1e-3}
"""The same for a method that computes in float32."""

DIFFERENT = 1e-3
"""The maps of two classes differ by more than this, relative to the largest entry."""


def verify(
    model: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    target: Any = None,
    *,
    additional_forward_args: Any = None,
    attribution: RecordedAttribution | None = None,
) -> Verification:
    r"""Check what this library promises on a model and inputs of yours.

    The checks, one row each.  Differences are relative to the largest entry.

    ``output``
        the logits of the watched model are those of the plain one, within 1e-5.
    ``gradient``
        the gradient of the target at the inputs is autograd's, within 1e-4.  For token ids it is
        taken at the embeddings that are looked up for them.
    ``relevance``
        Σ R, absorbed relevance included, is 1 for every example, within 1e-6 (eq. 3).
    ``finite``
        every attribution is finite.  Those of rollouts are not negative.
    ``shape``
        maps have the shape of the inputs, and are no constant along any axis of them.
    ``batch``
        each example has the same map alone as in the batch, within 1e-6.
    ``matrix``
        the row over all tokens is that of the matrix C − I (eq. 14), within 1e-6.  It applies to
        models whose attentions are all between the same tokens, each within one skip connection.
    ``state``
        parameters, buffers, gradients, hooks and attributes of the model, the inputs and PyTorch's
        random numbers are as they were.  The model has been called once before, so that tables
        that it makes on its first call are there.  What every call of the model changes by itself,
        such as a counter, is left out.
    ``classes``
        maps of two classes differ by more than 1e-3.
    ``occlusion``
        without the tenth of the places that the map ranks first the logit is lower than without
        the tenth that it ranks last.  Images are cut into 10 × 10 cells.  Occluded places get the
        mean of the others, token ids the mean embedding.  The difference is measured in standard
        deviations of what random tenths do, over all examples as one normal number.  It passes
        from 2.  It fails at −2, if the model gives the target at least a probability halfway
        between chance and 1.  Otherwise it is undecided, as it mostly is with random weights: no
        map can be right about a model that has learnt nothing.

    A check that does not apply says why, and so does one that fails.

    **Precision.** The model is neither copied nor converted.  The default method computes in
    float64, raising weights call by call, and is compared with a plain run in the model's own
    precision.  Float32 is precise enough for this.  In half precision ``output`` and ``gradient``
    do not apply: verify ``model.float()``.  A method that computes in float32 gets 1e-3 in the
    place of 1e-6.

    Args:
        model: the model, in eval mode, or a function that calls it.  Of a function's model the
            state cannot be seen: pass the model here, and the function to ``attribution``.
        inputs: as in ``attribute``: float images (N, C, H, W), token ids (N, S), float embeddings
            (N, S, D), or a tuple of such.  Two or more examples, for ``batch``; more of them
            decide ``occlusion``.
        target: as in ``attribute``; None for each example's predicted class.
        additional_forward_args: as in ``attribute``.
        attribution: the method; ``TransformerAttribution(model, dtype=torch.float64)`` if None.
            What it explains is what is run.

    Returns:
        The rows as data; ``print`` shows a table.

    Raises:
        TypeError: if ``attribution`` is no method of this library.
        ValueError: for a target or inputs that do not fit.
        ExplanationError: for a model that cannot be explained as it is.

    Example:
        >>> import timm, torch
        >>> from captum_transformer_lrp import verify
        >>> _ = torch.manual_seed(0)
        >>> model = timm.create_model("test_vit", num_classes=10).eval()
        >>> verification = verify(model, torch.randn(2, 3, 160, 160), target=3)
        >>> verification.passed, verification["relevance"].expected
        (True, '≤ 1e-06')
    """
    if attribution is None:
        attribution = TransformerAttribution(model, dtype=torch.float64)
    if not isinstance(attribution, RecordedAttribution):
        raise TypeError(
            f"attribution must be a method of this library, found {type(attribution).__name__}"
        )
    first = tensors_of(inputs)[0]
    devices = [first.device] if first.is_cuda else []
    with torch.inference_mode(False), torch.random.fork_rng(devices):
        return _Examined(
            model, inputs, plain(target), additional_forward_args, attribution
        ).checked()


class _Examined:
    """A model with everything that it is checked on."""

    def __init__(
        self,
        model: Callable[..., Any],
        inputs: Any,
        target: Any,
        additional: Any,
        attribution: RecordedAttribution,
    ) -> None:
        self.model, self.inputs, self.target = model, inputs, target
        self.additional, self.attribution = additional, attribution
        self.tensors = tensors_of(inputs)
        self.method = type(attribution).__name__
        device = self.tensors[0].device.type
        in_double = attribution.dtype == torch.float64 and device != "mps"
        self.most = {**TOLERANCES, **({} if in_double else IN_FLOAT32)}

    def checked(self) -> Verification:
        with torch.no_grad():
            plain = find_logits(self.called(self.tensors))
        before = state_of(self.model, self.tensors)
        found = self.attribution.attribute(self.inputs, self.target, self.additional)
        self.maps: tuple[Tensor, ...] = found if isinstance(found, tuple) else (found,)
        if self.target is None:
            self.target = predicted(plain)
        engine = copy(self.attribution)
        engine.checkpointing, engine.keeps_streams = False, True
        recorded = engine._recorded(self.inputs, self.additional, keeps_books=True)
        with recorded as recording:
            start = seed(recording.output, self.target)
            output = self.output(recording, plain)
            gradient = self.gradient(recording, start)
            relevance, absorbed = self.relevance(recording, start)
            matrix = self.matrix(recording, start)
            attentions = len(recording.tape.attentions)
        batch, classes = self.batch(), self.classes(plain)
        checks = (output, gradient, relevance, self.finite(), self.shape(), batch, matrix,
                  self.state(before), classes, self.occlusion())  # fmt: skip
        name = type(self.model).__name__
        return Verification(f"{name}, {self.method}", checks, attentions, absorbed)

    def called(self, tensors: tuple[Tensor, ...]) -> Any:
        args, kwargs = split_arguments(self.additional)
        return self.attribution.forward_func(*tensors, *args, **kwargs)

    # -- one row each ----------------------------------------------------------------------------

    def output(self, recording: Recording, plain: Tensor) -> Check:
        name, claim = "output", "watched logits are the plain ones"
        if plain.element_size() < 4:
            return Check.skipped(name, claim, _rounded(plain))
        return self._close(name, claim, [recording.output], [plain])

    def gradient(self, recording: Recording, start: Tensor) -> Check:
        name, claim = "gradient", "gradient at the inputs is autograd's"
        if Gradient not in self.attribution.phases:
            return Check.skipped(name, claim, f"{self.method} uses no gradients")
        try:
            # Reversible layers add to the gradients of parameters in their own backward pass.
            with unchanged(self.model, self.tensors):
                found, expected = gradients_at_inputs(recording, start, self.tensors, self.called)
        except LookupError as error:
            return Check.skipped(name, claim, str(error))
        if any(one.element_size() < 4 for one in expected):
            return Check.skipped(name, claim, _rounded(expected[0]))
        return self._close(name, claim, found, expected)

    def relevance(self, recording: Recording, start: Tensor) -> tuple[Check, dict[str, float]]:
        name, claim = "relevance", "Σ R = 1, absorbed relevance included"
        if not self.attribution.propagates_relevance:
            reason = f"{self.method} propagates no relevance"
            return Check.skipped(name, claim, reason), {}
        books, leaves = Books(), recording.all_leaves
        arrived = recording.run(Relevance(books), start, leaves)
        parts = [one.flatten(1).sum(1) for one in recording.at_inputs(arrived)]
        total = torch.stack([*parts, *books.shares.values()]).sum(0)
        absorbed = {one: float(share.abs().mean()) for one, share in books.shares.items()}
        found = float((total - 1).abs().max())
        return Check.at_most(name, claim, found, self.most[name]), absorbed

    def finite(self) -> Check:
        faults = [] if all(bool(one.isfinite().all()) for one in self.maps) else ["NaN or infinity"]
        claim = "all are finite"
        if isinstance(self.attribution, (RolloutAttribution, SingleAttentionAttribution)):
            claim += ", none is negative"
            faults += ["negative ones"] if any(bool((one < 0).any()) for one in self.maps) else []
        return Check.holds("finite", claim, f"found {' and '.join(faults)}" if faults else "")

    def shape(self) -> Check:
        pairs = zip(self.maps, self.tensors, strict=True)
        faults = [fault for found, value in pairs if (fault := _fault_of_shape(found, value))]
        return Check.holds("shape", "as the inputs, and not constant", "; ".join(faults))

    def batch(self) -> Check:
        name, claim = "batch", "each example alone has the same map"
        count = self.tensors[0].shape[0]
        if count < 2:
            return Check.skipped(name, claim, "there is one example")
        worst = 0.0
        for some, additional, ends in in_chunks(self.inputs, self.additional, 1):
            target = chunk_of_target(self.target, *ends)
            try:
                alone = self.attribution.attribute(some, target, additional)
            except ExplanationError as error:
                return Check.holds(name, claim, f"example {ends[0]} alone is refused: {error}")
            alone = alone if isinstance(alone, tuple) else (alone,)
            together = [one[ends[0] : ends[1]] for one in self.maps]
            worst = max(worst, _difference(together, list(alone)))
        return Check.at_most(name, claim, worst, self.most[name])

    def matrix(self, recording: Recording, start: Tensor) -> Check:
        name, claim = "matrix", "the row over tokens is that of C − I"
        if not isinstance(self.attribution, RolloutAttribution):
            return Check.skipped(name, claim, f"{self.method} has no matrix C")
        used = self.attribution._used(recording, views.View(self.inputs))
        try:
            maps = self.attribution._maps(recording, start, used)
            matrices = attention_matrices(recording, used, maps)
            row: Any = views.mass_view(
                recording, start, views.View(self.inputs, "token"), maps, moved=True
            )
            readout = views.token_mass(recording, start)
        except ExplanationError as error:
            return Check.skipped(name, claim, str(error))
        if not _are_the_only_paths(recording, start):
            reason = "more than one skip connection leads around an attention, and C has one I"
            return Check.skipped(name, claim, reason)
        _, moved = rollout_parts(matrices, row_normalize=False)
        if readout.shape != moved.shape[:2]:
            reason = f"there are {readout.shape[1]} tokens, and {moved.shape[1]} take part in C"
            return Check.skipped(name, claim, reason)
        expected = (readout.unsqueeze(1) @ moved).squeeze(1)
        return self._close(name, claim, [row], [expected])

    def state(self, before: dict[str, Any]) -> Check:
        changed = changes(before, after := state_of(self.model, self.tensors))
        if changed:
            with torch.no_grad():
                self.called(self.tensors)
            by_itself = changes(after, state_of(self.model, self.tensors))
            changed = [name for name in changed if name not in by_itself]
        faults = f"changed: {', '.join(changed[:5])}" if changed else ""
        return Check.holds("state", "model and inputs are as they were", faults)

    def classes(self, output: Tensor) -> Check:
        name, claim = "classes", "maps of two classes differ"
        if tuple(self.attribution.phases) == (Rollout,):
            return Check.skipped(name, claim, f"{self.method} is the same for every class")
        if callable(self.target):
            return Check.skipped(name, claim, "the target is a function, which has no class")
        other = None if output.dim() == 1 else _other_target(self.target, output.shape[-1])
        if other is None:
            return Check.skipped(name, claim, "the model has one output")
        found = self.attribution.attribute(self.inputs, other, self.additional)
        found = found if isinstance(found, tuple) else (found,)
        difference = _difference(list(found), list(self.maps))
        expected = f"> {DIFFERENT:.0e}"
        differ = difference > DIFFERENT
        return Check(name, claim, difference, expected, "passed" if differ else "failed")

    def occlusion(self) -> Check:
        def run(tensors: tuple[Tensor, ...]) -> Tensor:
            return find_logits(self.called(tensors))

        return occlusion(run, self.tensors, self.maps, self.target)

    def _close(self, name: str, claim: str, found: list[Tensor], expected: list[Tensor]) -> Check:
        return Check.at_most(name, claim, _difference(found, expected), self.most[name])


def _are_the_only_paths(recording: Recording, start: Tensor) -> bool:
    """Whether what no attention moves goes by the skip connections around attentions alone."""
    around = [one for one in recording.tape.residuals if one.attentions]
    wanted = [tensor for one in around for tensor in (one.output, one.tensor)]
    found = recording.run(Rollout(reaches_pixels=False), start, wanted)
    masses = [float(one.sum()) for one in found]
    return all(abs(a - b) < 1e-6 for a, b in zip(masses[::2], masses[1::2], strict=True))


def _rounded(value: Tensor) -> str:
    return (
        f"the plain model computes in {str(value.dtype).removeprefix('torch.')}, which is coarser "
        "than any difference: verify model.float()"
    )


def _fault_of_shape(found: Tensor, value: Tensor) -> str:
    """What is wrong with a map's shape, or along which axis of its places it is constant."""
    if found.shape != value.shape:
        return f"a map of shape {tuple(found.shape)} for an input of {tuple(value.shape)}"
    channels = channels_axis(found) if value.is_floating_point() else None
    found = found if channels is None else found.sum(channels)
    axes = [1] if channels is None else list(range(1, found.dim()))
    constant = [axis for axis in axes if found.shape[axis] > 1 and not varies(found, axis)]
    if value.is_floating_point() and value.dim() == 3 and varies(found, 2):
        constant = []  # sound: features and time in either order
    return f"the map is constant along axes {constant}" if constant else ""


def _other_target(target: Any, classes: int) -> Any:
    """The target with another class in each entry; None if there is no other."""
    if classes < 2:
        return None
    if isinstance(target, tuple):
        return (*target[:-1], _other_target(target[-1], classes))
    if isinstance(target, list):
        return [_other_target(one, classes) for one in target]
    return (target + 1) % classes


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the largest expected entry."""
    size = max(float(one.detach().abs().max()) for one in expected)
    pairs = zip(found, expected, strict=True)
    worst = max(float((a.detach().to(b) - b.detach()).abs().max()) for a, b in pairs)
    return worst / size if size else worst
