"""Methods by name, with options: ours, Captum's, the paper's ablations, and a random map."""

from __future__ import annotations

import ast
import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import captum.attr
import torch
import torch.nn.functional as F
from captum.attr import Attribution
from torch import Tensor

from captum_transformer_lrp.attr.attention_flow import AttentionFlow
from captum_transformer_lrp.attr.attention_rollout import AttentionRollout
from captum_transformer_lrp.attr.base import RecordedAttribution
from captum_transformer_lrp.attr.comparison import METHODS as COMPARED
from captum_transformer_lrp.attr.comparison import compare, options_apart, reduced
from captum_transformer_lrp.attr.compiled import Backend, CompiledAttribution
from captum_transformer_lrp.attr.norm_rollout import NormRollout
from captum_transformer_lrp.attr.raw_attention import RawAttention
from captum_transformer_lrp.benchmark_options import ABLATIONS, PAPER
from captum_transformer_lrp.benchmarks.errors import BenchmarkError
from captum_transformer_lrp.errors import ExplanationError


class RandomAttribution(Attribution):
    """A map of uniform noise, the control that every method should beat.

    Example:
        >>> RandomAttribution(None).attribute(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 3, 8, 8])
    """

    def attribute(
        self, inputs: Tensor, target: Any = None, additional_forward_args: Any = None
    ) -> Tensor:
        """Noise in the shape of images (N, C, H, W) or embeddings (N, S, D), for any target."""
        axis = 1 if inputs.dim() == 4 else -1
        noise = torch.rand_like(inputs.select(axis, 0).detach(), dtype=torch.float32)
        return noise.unsqueeze(axis).expand_as(inputs) / inputs.shape[axis]


@dataclass(frozen=True)
class Method:
    """A method as a benchmark runs it.

    Args:
        label: what it is called in the result: its name with its options.
        factory: from a model to the attribution object.
        options: for the class or its ``attribute``.
        class_agnostic: whether its map is the same for every target.
        cells: average the map of an image over a grid of so many cells along each side, such as the
            patches that the model reads; None leaves it as it is.
        compiles: a model and a backend: explanations of one class of one image by this very model
            are compiled, where the method can be.
    """

    label: str
    factory: Callable[[Any], Attribution]
    options: Mapping[str, Any] = field(default_factory=dict)
    class_agnostic: bool = False
    cells: int | None = None
    compiles: tuple[Any, Backend] | None = None
    explainers: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def maps(
        self,
        model: Callable[..., Any],
        inputs: Tensor,
        targets: Sequence[Any],
        additional_forward_args: Any = None,
    ) -> list[Tensor]:
        """The map of each target of one example, float64 (H, W) or (S,) on the CPU.

        Args:
            model: as in :func:`~captum_transformer_lrp.compare`.
            inputs: one image (1, C, H, W) or the token ids of one text (1, S).
            targets: classes, or positions with tokens; they may repeat.
            additional_forward_args: as in :func:`~captum_transformer_lrp.compare`.

        Raises:
            ExplanationError: where the method fails.
            ValueError: where the map has NaN or infinite entries.
        """
        wanted = list(dict.fromkeys(targets))[: 1 if self.class_agnostic else None]
        found = self._found(model, inputs, wanted, additional_forward_args)
        return [found[wanted[0] if self.class_agnostic else one][0] for one in targets]

    def of_batch(self, model: Callable[..., Any], inputs: Tensor, target: int) -> Tensor:
        """The maps of many images (N, C, H, W) for one class, float64 (N, H, W) on the CPU."""
        size = 1 if self._compiled(model, inputs[:1]) else _BATCH
        parts = [self._found(model, part, [target])[target] for part in inputs.split(size)]
        return torch.cat(parts)

    def _compiled(self, model: Any, inputs: Tensor) -> CompiledAttribution | None:
        """What explains one image by a compiled graph, where there is such a thing.

        It is recorded with noise, so that no digit depends on which photo comes first.
        """
        if self.compiles is None or model is not self.compiles[0] or len(inputs) > 1:
            return None
        key = inputs.shape, inputs.dtype, inputs.device
        if key not in self.explainers:
            self.explainers[key] = None
            own, rest = options_apart(self.factory, self.options)
            attribution = self.factory(model, **own)
            if isinstance(attribution, RecordedAttribution):
                noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
                how: dict[str, Any] = {"backend": self.compiles[1], **rest}
                try:
                    self.explainers[key] = attribution.compile(noise.to(inputs), **how)
                except ExplanationError as error:
                    warnings.warn(f"{self.label} is not compiled: {error}", stacklevel=2)
        return self.explainers[key]

    def _found(
        self, model: Callable[..., Any], inputs: Tensor, targets: Sequence[Any], more: Any = None
    ) -> dict[Any, Tensor]:
        # The method itself explains several classes by one forward pass.
        explain = self._compiled(model, inputs) if len(targets) == 1 and more is None else None
        if explain is not None:
            found = {targets[0]: reduced(explain(inputs, targets[0]), inputs)}
        else:
            named, methods = {one: one for one in targets}, {self.label: self.factory}
            options = {self.label: self.options}
            (found,) = compare(
                model, inputs, named, methods, additional_forward_args=more, options=options
            ).values()
        ready: dict[Any, Tensor] = {}
        for target in targets:
            maps = found[target].detach().to("cpu", torch.float64)
            if self.cells is not None:
                maps = torch.stack([over_cells(one, self.cells) for one in maps])
            if not bool(maps.isfinite().all()):
                raise ValueError(f"its map of class {target} has NaN or infinite entries")
            ready[target] = maps
        return ready


def over_cells(relevance: Tensor, cells: int) -> Tensor:
    """A map (H, W) with each cell of a grid at its mean; ``cells`` must divide both.

    Example:
        >>> over_cells(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), 1).tolist()
        [[4.0, 4.0], [4.0, 4.0]]
    """
    if relevance.dim() != 2 or any(size % cells for size in relevance.shape):
        raise ValueError(
            f"cells={cells} does not divide a map of {tuple(relevance.shape)}, expected the number "
            "of patches along each side of an image"
        )
    means = F.adaptive_avg_pool2d(relevance[None], cells)
    return F.interpolate(means[None], relevance.shape)[0, 0]


NAMES: Final[Mapping[str, Callable[[Any], Attribution]]] = {
    **COMPARED,
    "guided_backprop": captum.attr.GuidedBackprop,
    "deconvolution": captum.attr.Deconvolution,
    "smooth_grad": lambda model: captum.attr.NoiseTunnel(captum.attr.Saliency(model)),
    "random": RandomAttribution,
}
"""All methods: those of :func:`~captum_transformer_lrp.compare`, with the same settings where the
user gives none, and a few more."""

GROUPS: Final[Mapping[str, Sequence[str]]] = {"paper": PAPER, "ablations": ABLATIONS}
"""Names that stand for several methods."""

_CLASS_AGNOSTIC = (AttentionRollout, RawAttention, AttentionFlow, NormRollout, RandomAttribution)
_BATCH = 8
"""How many images are explained at once: more need more memory, and are hardly faster."""
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def methods_by_name(names: Sequence[str]) -> list[Method]:
    """Methods from what a user types.

    Args:
        names: names of :data:`NAMES`, each with any number of options after colons, such as
            ``"transformer_attribution:start_layer=1"`` or ``"integrated_gradients:n_steps=20"``;
            ``cells``, of every method, averages the map of an image over a grid (see
            :func:`over_cells`); and the names of :data:`GROUPS`.

    Raises:
        BenchmarkError: for unknown names, doubled ones and options that cannot be read.

    Example:
        >>> [one.label for one in methods_by_name(["random", "attention_rollout:start_layer=1"])]
        ['random', 'attention_rollout:start_layer=1']
        >>> len(methods_by_name(["paper", "ablations"]))
        9
        >>> methods_by_name(["partial_lpr"])
        Traceback (most recent call last):
        ...
        captum_transformer_lrp.benchmarks.errors.BenchmarkError: there is no method 'partial_lpr'
        (did you mean 'partial_lrp'?); there are transformer_attribution, ...
    """
    labels = [label for name in names for label in GROUPS.get(name, (name,))]
    if not labels:
        raise BenchmarkError("found no methods, expected at least one")
    doubled = {label for label in labels if labels.count(label) > 1}
    if doubled:
        raise BenchmarkError(f"found {', '.join(sorted(doubled))} twice, expected each method once")
    return [_method(label) for label in labels]


def _method(label: str) -> Method:
    name, *parts = label.split(":")
    if name not in NAMES:
        nearest = difflib.get_close_matches(name, [*NAMES, *GROUPS], n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise BenchmarkError(
            f"there is no method {name!r}{hint}; there are {', '.join(NAMES)}; "
            f"{' and '.join(GROUPS)} stand for several"
        )
    factory = NAMES[name]
    options = dict(option_of(part, label) for part in parts)
    cells = options.pop("cells", None)
    if cells is not None and (not isinstance(cells, int) or cells < 1):
        raise BenchmarkError(f"found cells={cells} in {label!r}, expected a number of at least 1")
    return Method(
        label=label,
        factory=factory,
        options=options,
        class_agnostic=getattr(factory, "func", factory) in _CLASS_AGNOSTIC,
        cells=cells,
    )


def option_of(text: str, label: str) -> tuple[str, Any]:
    """What ``option=value`` in a name stands for."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise BenchmarkError(f"cannot read {text!r} in {label!r}, expected name:option=value")
    if name == "dtype" and value in _DTYPES:
        return name, _DTYPES[value]
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a word, such as preset=lrp
