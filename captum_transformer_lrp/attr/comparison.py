"""Several methods on the same inputs, as maps of one shape."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final, TypeAlias

import captum.attr
import torch
import torch.nn.functional as F
from captum._utils.progress import progress
from captum.attr import Attribution, LayerAttribution, PerturbationAttribution
from torch import Tensor, nn

from captum_transformer_lrp.attr.arguments import split_arguments
from captum_transformer_lrp.attr.attcat import AttCat
from captum_transformer_lrp.attr.attention_flow import AttentionFlow
from captum_transformer_lrp.attr.attention_gradcam import AttentionGradCam
from captum_transformer_lrp.attr.attention_rollout import AttentionRollout
from captum_transformer_lrp.attr.base import RecordedAttribution
from captum_transformer_lrp.attr.bi_attention import BiAttention
from captum_transformer_lrp.attr.embeddings import EmbeddingLookup, FromEmbeddings, FromInputs
from captum_transformer_lrp.attr.generic_attention import GenericAttention
from captum_transformer_lrp.attr.legrad import LeGrad
from captum_transformer_lrp.attr.libra_gradient import LibraGradient
from captum_transformer_lrp.attr.norm_rollout import NormRollout
from captum_transformer_lrp.attr.partial_lrp import PartialLRP
from captum_transformer_lrp.attr.raw_attention import RawAttention
from captum_transformer_lrp.attr.targets import plain, predicted
from captum_transformer_lrp.attr.transformer_attribution import TransformerAttribution
from captum_transformer_lrp.attr.transformer_lrp import TransformerLRP
from captum_transformer_lrp.engine.watch.checks import naming_a_missing_batch, tensors_of
from captum_transformer_lrp.engine.watch.thread_state import ThreadState
from captum_transformer_lrp.engine.watch.writes import unchanged
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.names import OF_THE_PAPER

Method: TypeAlias = str | Attribution | Callable[[Any], Attribution]

METHODS: Final[Mapping[str, Callable[[Any], Attribution]]] = {
    "transformer_attribution": TransformerAttribution,
    "attention_rollout": AttentionRollout,
    "attention_flow": AttentionFlow,
    "raw_attention": RawAttention,
    "attention_gradcam": AttentionGradCam,
    "partial_lrp": PartialLRP,
    "transformer_lrp": TransformerLRP,
    "generic_attention": GenericAttention,
    "attnlrp": partial(TransformerLRP, preset="attnlrp"),
    "cp_lrp": partial(TransformerLRP, preset="cp_lrp"),
    "legrad": LeGrad,
    "attcat": AttCat,
    "libra_gradient": LibraGradient,
    "libra_fullgrad_plus": partial(LibraGradient, aggregation="layers"),
    "bi_attention": BiAttention,
    "norm_rollout": NormRollout,
    "alti": partial(NormRollout, contribution="alti"),
    "saliency": captum.attr.Saliency,
    "input_x_gradient": captum.attr.InputXGradient,
    "integrated_gradients": captum.attr.IntegratedGradients,
    "gradient_shap": captum.attr.GradientShap,
    "deep_lift": captum.attr.DeepLift,
    "deep_lift_shap": captum.attr.DeepLiftShap,
    "occlusion": captum.attr.Occlusion,
    "feature_ablation": captum.attr.FeatureAblation,
    "shapley_value_sampling": captum.attr.ShapleyValueSampling,
    "kernel_shap": captum.attr.KernelShap,
    "lime": captum.attr.Lime,
}
"""The methods that :func:`compare` knows by name."""

# Features along each side of an image, for methods that remove one at a time: a patch of 16 pixels
# for images of 224.
_CELLS = 14
_BATCH = 16


def compare(
    model: Callable[..., Any],
    inputs: Tensor,
    targets: Sequence[Any] | Mapping[str, Any],
    methods: Sequence[Method] | Mapping[str, Method] = OF_THE_PAPER,
    *,
    additional_forward_args: Any = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    show_progress: bool = False,
) -> dict[str, dict[str, Tensor]]:
    """Explain the same targets of the same inputs by several methods, ours and Captum's.

    Captum's gradient and perturbation methods cannot work on token ids.  Here they are given the
    embeddings that the model looks up for them.  The model then takes whatever the method makes of
    these.  Nothing needs to be prepared, and the model stays as it is.

    What Captum's methods need has defaults.  Baselines are black or, if the inputs are normalised,
    mean-coloured images (0).  For token ids they are the embedding of [PAD], or 0 for a model whose
    ``config`` names none.  What is removed at a time is one cell of a grid of 14 x 14 over an
    image, or one token.  ``options`` replaces any of these.

    Args:
        model: the model, or a function that calls it; it may return logits (N, C), a tuple or a
            Hugging Face ``ModelOutput``.
        inputs: float images (N, C, H, W), token ids (N, S) or float embeddings (N, S, D).
        targets: targets by the names that the result is to have for them, such as
            ``{"cat": 281, "dog": 207}``; or a sequence of targets, which are named by ``str``.
            Each as everywhere in Captum; None is each example's predicted class, and a function
            makes of the model's output the value (N,) that is explained.
        methods: any of the names in :data:`METHODS`, of classes, of other functions from a model
            to an ``Attribution`` (``functools.partial(PartialLRP, preset="paper")``,
            ``lambda model: NoiseTunnel(Saliency(model))``) and of ``Attribution`` objects; or a
            mapping to them from the names that the result is to have for them.  Without names of
            their own, methods are named as given or by their class.
        additional_forward_args: as in Captum, or a dictionary of keyword arguments such as
            ``{"attention_mask": mask}``.
        options: by a method's name, keyword arguments for its class or its ``attribute``.
        show_progress: whether to show a progress bar that counts methods.

    Returns:
        For each method, for each target, a detached map: (N, H, W) for images, the sum over the
        channels; (N, S) for tokens, the sum over the embedding dimension.  Where a method says
        what removing a cell or token does, that is the value of all of it.  For one image this is
        what :func:`captum_transformer_lrp.visualization.method_class_grid` takes.

    Raises:
        ValueError: for inputs, targets, names or options that there are none of.
        ExplanationError: where a method fails; the message begins with the method's name, and the
            method's own exception is its cause.

    Example:
        >>> import timm, torch
        >>> from captum_transformer_lrp import compare
        >>> from captum_transformer_lrp.visualization import method_class_grid
        >>> model = timm.create_model("test_vit", num_classes=10).eval()
        >>> image = torch.randn(1, 3, 160, 160)
        >>> maps = compare(model, image, {"cat": 3, "dog": 5},
        ...     ["transformer_attribution", "integrated_gradients"],
        ...     options={"integrated_gradients": {"n_steps": 4}})
        >>> maps["integrated_gradients"]["cat"].shape
        torch.Size([1, 160, 160])
        >>> figure = method_class_grid(maps, image[0].sigmoid())
    """
    _check_inputs(inputs)
    if not callable(model) or isinstance(model, type):
        raise TypeError(f"model must be a model or a function that calls it, found {model!r}")
    named_targets = _named_targets(targets)
    factories = _named_methods(methods)
    options = options or {}
    for label in options:
        if label not in factories:
            raise ValueError(f"options are for {label!r}, but the methods are {list(factories)}")
    state = ThreadState()
    with state, state:
        prepared = _Prepared(model, inputs, additional_forward_args)
        chosen = [
            predicted(prepared.ran[0]) if t is None else plain(t) for t in named_targets.values()
        ]
        labels: Iterable[str] = factories
        if show_progress:
            labels = progress(list(factories), desc="Methods", total=len(factories))
        found = {}
        for label in labels:
            method = factories[label]
            own = getattr(method, "forward_func", None)
            try:
                with unchanged(model, own, inputs, additional_forward_args):
                    maps = _explained(method, prepared, chosen, options.get(label, {}))
            except Exception as error:
                prepared.ran  # noqa: B018 - a model that fails by itself says so
                raise ExplanationError(f"{label}: {error}") from error
            found[label] = dict(zip(named_targets, maps, strict=True))
    return found


@dataclass(frozen=True)
class _Arguments:
    """What a kind of method is constructed with and called with.

    ``defaults`` are for parameters of ``attribute``, where it has them and the user has none.
    """

    model: Callable[..., Any]
    inputs: Tensor
    additional: Any
    defaults: Mapping[str, Any]


class _Prepared:
    """A model with inputs, and the arguments of each kind of method."""

    def __init__(self, model: Callable[..., Any], inputs: Tensor, additional: Any) -> None:
        args, named = split_arguments(additional)
        self.model, self.inputs, self.additional = model, inputs, additional
        self.names, self.values = tuple(named), (*args, *named.values())
        self.from_inputs = FromInputs(model, self.names)

    @cached_property
    def ran(self) -> tuple[Tensor, EmbeddingLookup]:
        """The model's logits, and what it looks up; few targets and methods need them."""
        inputs, lookup = self.inputs, EmbeddingLookup(self.inputs)
        run = lambda one: self.from_inputs(one, *self.values)  # noqa: E731
        with (
            ThreadState(inputs.device),
            unchanged(self.model, inputs, self.additional),
            naming_a_missing_batch(run, [inputs]),
            torch.no_grad(),
            lookup,
        ):
            return run(inputs), lookup

    def arguments(self, attribution: Attribution, *, is_bound: bool) -> _Arguments:
        """Those for an attribution object; some do not suit one that is bound to a model."""
        if isinstance(attribution, RecordedAttribution):
            return _Arguments(self.model, self.inputs, self.additional, {})
        if is_bound and isinstance(self.additional, Mapping):
            raise ValueError(
                "an object of Captum's takes no keyword arguments of the model: give its class, or "
                "additional_forward_args as a tuple"
            )
        if isinstance(attribution, LayerAttribution):
            return _Arguments(self.from_inputs, self.inputs, self.values, {})
        if self.inputs.is_floating_point():
            defaults = _defaults(self.inputs, torch.zeros_like(self.inputs))
            return _Arguments(self.from_inputs, self.inputs, self.values, defaults)
        if is_bound:
            raise ValueError(
                "an object of Captum's is bound to a model that takes token ids, which have no "
                f"gradient: give the class {type(attribution).__name__}, or a function that makes "
                "one for a model that takes embeddings"
            )
        _, lookup = self.ran
        embeddings = lookup.found()
        # The baseline is the embedding of [PAD] at every place, or zeros.
        pad = getattr(getattr(self.model, "config", None), "pad_token_id", None)
        padding = torch.zeros_like(embeddings)
        if isinstance(pad, int) and pad >= 0:
            padding = lookup.weight()[pad].expand_as(embeddings).clone()
        embedded, defaults = FromEmbeddings(self.model, self.names), _defaults(embeddings, padding)
        return _Arguments(embedded, embeddings, (self.inputs, *self.values), defaults)


def _defaults(inputs: Tensor, baselines: Tensor) -> dict[str, Any]:
    """What Captum's methods need, by the name of the parameter."""
    count = inputs.shape[0]
    if inputs.dim() == 4:
        _, channels, height, width = inputs.shape
        rows, columns = min(_CELLS, height), min(_CELLS, width)
        row = torch.arange(height, device=inputs.device) * rows // height
        column = torch.arange(width, device=inputs.device) * columns // width
        mask = (row[:, None] * columns + column).expand(1, channels, height, width)
        window: tuple[int, ...] = (channels, -(-height // rows), -(-width // columns))
    else:
        _, length, features = inputs.shape
        mask = torch.arange(length, device=inputs.device)[None, :, None].expand(1, -1, features)
        window = (1, features)
    return {
        "baselines": baselines,
        "feature_mask": mask.contiguous(),
        "sliding_window_shapes": window,
        "strides": window,
        "internal_batch_size": max(_BATCH, count),
        "perturbations_per_eval": _BATCH,
    }


def _explained(
    method: Attribution | Callable[[Any], Attribution],
    prepared: _Prepared,
    targets: Sequence[Any],
    options: Mapping[str, Any],
) -> list[Tensor]:
    """One method's map of every target."""
    attribution, arguments, others = _constructed(method, prepared, options)
    if isinstance(attribution, RecordedAttribution):
        many = attribution.attribute_targets(
            arguments.inputs, targets, arguments.additional, **others
        )
        return [reduced(one, arguments.inputs) for one in many]
    accepted = inspect.signature(attribution.attribute).parameters
    defaults = {name: value for name, value in arguments.defaults.items() if name in accepted}
    if isinstance(attribution, captum.attr.DeepLiftShap):
        # A distribution of baselines, which must have more than one.
        defaults["baselines"] = defaults["baselines"][:1].repeat_interleave(2, 0)
    # They give the effect of removing a group of features to every feature of it.
    fusion = torch.mean if isinstance(attribution, PerturbationAttribution) else torch.sum
    found = []
    for target in targets:
        explaining = attribution
        if callable(target):
            explaining, target = _constructed(method, prepared, options, target)[0], None
        inputs = arguments.inputs
        if inputs.is_floating_point():
            inputs = inputs.detach().clone().requires_grad_()
        attributions = explaining.attribute(
            inputs,
            target=target,
            additional_forward_args=arguments.additional or None,
            **{**defaults, **others},
        )
        found.append(reduced(attributions, arguments.inputs, fusion=fusion))
    return found


class _Answer(nn.Module):
    """What a function makes of a model's output, as a module, which some methods of Captum need."""

    def __init__(self, model: Any, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *args: Any) -> Tensor:
        return self.function(self.model(*args))


def _constructed(
    method: Attribution | Callable[[Any], Attribution],
    prepared: _Prepared,
    options: Mapping[str, Any],
    target: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Attribution, _Arguments, dict[str, Any]]:
    """The attribution object, its arguments, and the options that are left for ``attribute``.

    A target that is a function is what the object explains of the model's output.
    """
    if isinstance(method, Attribution):
        return method, prepared.arguments(method, is_bound=True), dict(options)
    own, rest = options_apart(method, options)
    attribution = method(prepared.model)
    if not isinstance(attribution, Attribution):
        raise TypeError(f"it makes {type(attribution).__name__}, not a captum.attr.Attribution")
    arguments = prepared.arguments(attribution, is_bound=False)
    model = arguments.model if target is None else _Answer(arguments.model, target)
    return method(model, **own), arguments, rest


def options_apart(
    method: Callable[[Any], Attribution], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that what makes a method takes, and those of its ``attribute``."""
    _, *others = inspect.signature(method).parameters
    own = {name: value for name, value in options.items() if name in others}
    return own, {name: value for name, value in options.items() if name not in own}


def reduced(
    attributions: Any, inputs: Tensor, fusion: Callable[[Tensor, int], Tensor] = torch.sum
) -> Tensor:
    """A map (N, H, W) or (N, S), its channels or features fused."""
    if isinstance(attributions, tuple):
        if len(attributions) != 1:
            raise ValueError(
                f"it returned {len(attributions)} things, expected one map: leave out "
                "return_convergence_delta"
            )
        (attributions,) = attributions
    found: Tensor = attributions.detach()
    if inputs.dim() == 4:
        if found.dim() == 4:
            found = fusion(found, 1)
        if found.dim() == 3 and found.shape[1:] != inputs.shape[2:]:
            size = inputs.shape[2:]
            found = F.interpolate(found[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        expected: tuple[int, ...] = (inputs.shape[0], *inputs.shape[2:])
    else:
        found = fusion(found, -1) if found.dim() == 3 else found
        expected = tuple(inputs.shape[:2])
    if found.shape != expected:
        raise ValueError(
            f"its map has shape {tuple(attributions.shape)}, expected one for inputs of shape "
            f"{tuple(inputs.shape)}"
        )
    return found


def _check_inputs(inputs: Any) -> None:
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be one tensor, found {type(inputs).__name__}")
    tensors_of(inputs)
    dimensions = (3, 4) if inputs.is_floating_point() else (2,)
    if inputs.dim() not in dimensions:
        raise ValueError(
            "inputs must be float images (N, C, H, W), float embeddings (N, S, D) or integer token "
            f"ids (N, S), found {inputs.dtype} of shape {tuple(inputs.shape)}"
        )


def _named_targets(targets: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(targets, Mapping):
        named = dict(targets)
    elif isinstance(targets, (list, tuple)):
        named = {"predicted" if t is None else str(t): t for t in targets}
        if len(named) < len(targets):
            raise ValueError(f"targets has duplicates: {list(targets)}")
    else:
        raise TypeError(
            f"targets must be a list, or a mapping from names to targets, found {targets!r}"
        )
    if not named:
        raise ValueError("there are no targets")
    return named


def _named_methods(
    methods: Sequence[Method] | Mapping[str, Method],
) -> dict[str, Attribution | Callable[[Any], Attribution]]:
    if isinstance(methods, Mapping):
        named = dict(methods)
    elif isinstance(methods, (list, tuple)):
        named = {}
        for method in methods:
            label = _label(method)
            if label in named:
                raise ValueError(
                    f"there are two methods called {label!r}: pass a mapping from names to methods"
                )
            named[label] = method
    else:
        raise TypeError(
            f"methods must be a list, or a mapping from names to methods, found {methods!r}"
        )
    if not named:
        raise ValueError("there are no methods")
    return {label: _known(method) for label, method in named.items()}


def _label(method: Method) -> str:
    if isinstance(method, str):
        return method
    if isinstance(method, Attribution):
        return type(method).__name__
    inner = getattr(method, "func", method)  # of a functools.partial
    return str(getattr(inner, "__name__", inner))


def _known(method: Method) -> Attribution | Callable[[Any], Attribution]:
    if not isinstance(method, str):
        if not callable(method) and not isinstance(method, Attribution):
            raise TypeError(
                f"a method is a name, a class or an Attribution object, found {method!r}"
            )
        return method
    if method not in METHODS:
        nearest = difflib.get_close_matches(method, METHODS, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise ValueError(
            f"there is no method {method!r}{hint}; there are {', '.join(METHODS)}, and any class"
        )
    return METHODS[method]
