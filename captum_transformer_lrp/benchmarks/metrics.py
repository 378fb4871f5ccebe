"""What referees ask of a map: is it faithful, does it depend on weights and class, is it sparse?

Each metric is a small function of a map and of what made it; :class:`MapMetrics` runs any of them.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from captum_transformer_lrp.benchmark_options import MetricOptions
from captum_transformer_lrp.benchmarks.errors import BenchmarkError
from captum_transformer_lrp.benchmarks.images import PhotoBenchmark, read_rgb
from captum_transformer_lrp.benchmarks.methods import Method
from captum_transformer_lrp.benchmarks.perturbation import (
    area,
    changed,
    removal_order,
    removed_pixels,
)
from captum_transformer_lrp.benchmarks.quantus import quantus_score
from captum_transformer_lrp.benchmarks.runner import as_function

STEPS: Final = 20
"""The points of a curve of insertion or deletion, beside the first."""

STAGES: Final = 4
"""In how many parts the weights are made random, from the top."""


@dataclass(frozen=True)
class Map:
    """A map of a photo, and what made it.

    Args:
        relevance: float64 (H, W), on the CPU.
        pixels: normalised, (1, 3, H, W).
        target: the explained class.
        model: the classifier.
        logits: those of a batch of pixels, (N, C).
        removed: by a removal's name, what stands in the place of pixels, (1, 3, H, W).
        method: the method.
    """

    relevance: Tensor
    pixels: Tensor
    target: int
    model: nn.Module
    logits: Callable[[Tensor], Tensor]
    removed: Callable[[str], Tensor]
    method: Method

    def probability(self, batch: Tensor) -> Tensor:
        """Of the explained class, float64 (N,)."""
        return self.logits(batch).double().softmax(-1)[:, self.target].cpu()

    def again(self, target: int | None = None, model: nn.Module | None = None) -> Tensor:
        """The map of another class, or of another model."""
        chosen = self.target if target is None else target
        return self.method.maps(model or self.model, self.pixels, [chosen])[0]


def deletion(found: Map, removal: str = "blur") -> dict[str, float]:
    """The area under the class's probability as pixels go, the most relevant first: low is good.

    RISE (Petsiuk et al., BMVC 2018).
    """
    return {"": area(probability_curve(found, found.pixels, found.removed(removal)), 1 / STEPS)}


def insertion(found: Map, removal: str = "blur") -> dict[str, float]:
    """The area under the class's probability as pixels come, the most relevant first: high is good.

    RISE (Petsiuk et al., BMVC 2018).
    """
    return {"": area(probability_curve(found, found.removed(removal), found.pixels), 1 / STEPS)}


def probability_curve(found: Map, start: Tensor, end: Tensor) -> list[float]:
    """The probability after 0, 1/20, … of the pixels, the most relevant first, are changed.

    Args:
        found: the map.
        start: the pixels before, (1, 3, H, W).
        end: the pixels after.
    """
    order = removal_order(found.relevance, "positive")
    counts = [len(order) * step // STEPS for step in range(STEPS + 1)]
    return found.probability(changed(start, end, order, counts)).tolist()


def salience_faithfulness(found: Map, groups: int = 10) -> dict[str, float]:
    """SaCo: do groups of pixels change the probability in the order of their relevance?  At most 1.

    Wu, Kang, Tang, Hong, Yan, *On the Faithfulness of Vision Transformer Explanations*, CVPR 2024,
    algorithm 1.  Pixels of a group take the photo's mean colour.
    """
    parts = removal_order(found.relevance, "positive").tensor_split(groups)
    mean = found.pixels.mean((2, 3), keepdim=True)
    masks = torch.zeros(groups, found.relevance.numel(), dtype=torch.bool)
    for mask, part in zip(masks, parts, strict=True):
        mask[part] = True
    gone = masks.view(groups, 1, *found.relevance.shape).to(found.pixels.device)
    without = found.probability(torch.where(gone, mean, found.pixels))
    drops = found.probability(found.pixels) - without
    flat = found.relevance.flatten()
    return {"": saco([float(flat[part].sum()) for part in parts], drops.tolist())}


def saco(saliences: Sequence[float], drops: Sequence[float]) -> float:
    """The share of the differences in salience that the drops of the probability bear out.

    >>> saco([3, 2, 0], [0.5, 0.1, 0.3])  # 1 + 3 − 2 of 1 + 3 + 2
    0.333...
    >>> saco([1, 1], [0.5, 0.1])
    0.0
    """
    signed = total = 0.0
    for first in range(len(saliences)):
        for second in range(first + 1, len(saliences)):
            weight = saliences[first] - saliences[second]
            signed += weight if drops[first] >= drops[second] else -weight
            total += abs(weight)
    return signed / total if total else 0.0


def sparseness(found: Map) -> dict[str, float]:
    """The Gini index of the absolute values: 0 for a constant map, near 1 for a single pixel.

    Chalasani et al., *Concise Explanations of Neural Networks using Adversarial Training*, ICML
    2020, with the small number that Quantus adds to each value.
    """
    values = found.relevance.abs().flatten().sort().values + 1e-7
    count = len(values)
    weights = 2 * torch.arange(1, count + 1, dtype=values.dtype) - count - 1
    return {"": float((weights * values).sum() / (count * values.sum()))}


def entropy(found: Map) -> dict[str, float]:
    """Of the absolute values' shares, in nats: log(H·W) for a constant map, 0 for a single pixel.

    Bhatt, Weller, Moura, *Evaluating and Aggregating Feature-based Model Explanations*, IJCAI 2020
    ("complexity").
    """
    return {"": entropy_of(found.relevance)}


def entropy_of(relevance: Tensor) -> float:
    """The entropy of a map; one of zeros counts as constant.

    >>> round(entropy_of(torch.tensor([[1.0, -1.0], [0.0, 0.0]])), 4)
    0.6931
    """
    values = relevance.abs().flatten()
    values = values if values.any() else torch.ones_like(values)
    return float(torch.special.entr(values / values.sum()).sum())


def parameter_randomisation(found: Map) -> dict[str, float]:
    """Rank correlation with the map of a model whose weights are random from the top: low is good.

    MPRT (Adebayo et al., *Sanity Checks for Saliency Maps*, NeurIPS 2018), after each quarter of
    the modules.  ``"entropy"`` is what eMPRT (Hedström et al. 2023) compares: how much, relatively,
    the entropy rises once all weights are random; high is good.
    """
    values, one = {}, found.relevance
    for stage, model in enumerate(randomised_from_the_top(found.model, found.pixels), start=1):
        one = found.again(model=model)
        values[f"{100 * stage // STAGES} %"] = rank_correlation(found.relevance, one)
    values["entropy"] = entropy_of(one) / max(entropy_of(found.relevance), 1e-12) - 1
    return values


def randomised_from_the_top(model: nn.Module, inputs: Any) -> Iterator[nn.Module]:
    """One copy of a model, after each quarter of its modules has got random weights.

    From the output to the input, in the order in which the modules are called.  Each parameter gets
    normal values of its own mean and standard deviation, drawn by PyTorch's seed.
    """
    order: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: order.setdefault(name))
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    copied = copy.deepcopy(model)
    modules = {
        name: module
        for name, module in copied.named_modules()
        if any(one.is_floating_point() for one in module.parameters(recurse=False))
    }
    # A module that is never called has its weights used by another one: it counts as the lowest.
    called = [name for name in order if name in modules]
    names = [*reversed(called), *(name for name in modules if name not in order)]
    generator = torch.Generator().manual_seed(torch.initial_seed())
    for stage in range(STAGES):
        first, last = (len(names) * part // STAGES for part in (stage, stage + 1))
        for name in names[first:last]:
            for one in modules[name].parameters(recurse=False):
                values = one.detach().float()
                noise = torch.randn(one.shape, generator=generator).to(values)
                one.data = (values.mean() + values.std(correction=0) * noise).to(one.dtype)
        yield copied


def random_logit(found: Map) -> dict[str, float]:
    """Rank correlation with the map of another class, drawn by the explained one: low is good.

    Sixt, Granz, Landgraf, *When Explanations Lie*, ICML 2020.
    """
    count = found.logits(found.pixels).shape[-1]
    other = random.Random(found.target).randrange(count - 1)
    other += other >= found.target
    return {"": rank_correlation(found.relevance, found.again(other))}


def class_sensitivity(found: Map) -> dict[str, float]:
    """Rank correlation of the maps of the likeliest and the least likely class: low is good.

    Li et al., *An Experimental Study of Quantitative Evaluations on Saliency Methods*, KDD 2021.
    """
    logits = found.logits(found.pixels)[0]
    maps = [found.again(int(one)) for one in (logits.argmax(), logits.argmin())]
    return {"": rank_correlation(*maps)}


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's; 0 where a map is constant, for then there are no ranks.

    >>> rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 4.0, 9.0]))
    1.0
    >>> rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.ones(3))
    0.0
    """
    maps = [one.flatten().numpy() for one in (first, second)]
    if any(one.min() == one.max() for one in maps):
        return 0.0
    return float(spearmanr(*maps).statistic)


METRICS: Final[Mapping[str, Callable[[Map], dict[str, float]]]] = {
    **{f"deletion:{name}": partial(deletion, removal=name) for name in ("blur", "mean", "black")},
    **{f"insertion:{name}": partial(insertion, removal=name) for name in ("blur", "mean", "black")},
    "saco": salience_faithfulness,
    "mprt": parameter_randomisation,
    "random_logit": random_logit,
    "class_sensitivity": class_sensitivity,
    "sparseness": sparseness,
    "entropy": entropy,
}
"""All metrics of our own; ``quantus:NAME`` is one of Quantus."""


@dataclass(frozen=True, eq=False)
class MapMetrics(MetricOptions, PhotoBenchmark[Map]):
    """Measure maps of photos by any of :data:`METRICS`, or of Quantus' metrics.

    The result has the mean over the photos of each metric, under its name.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from captum_transformer_lrp import examples
        >>> from captum_transformer_lrp.benchmarks import LabelledImage, map_metrics
        >>> from captum_transformer_lrp.models import load_image_model
        >>> model = load_image_model("bundled/scenes")
        >>> folder = Path(examples.__file__).parent / "assets" / "scenes"
        >>> label = model.class_names.index("horse")
        >>> photos = [LabelledImage("horse", folder / "horse.png", label)]
        >>> with tempfile.TemporaryDirectory() as output:
        ...     result = map_metrics(model, photos, ["transformer_attribution", "random"],
        ...         metrics=["deletion:blur", "sparseness"], output=output)
        >>> ours = result.figure("transformer_attribution", "deletion:blur").value
        >>> ours < result.figure("random", "deletion:blur").value
        True
    """

    name = "metrics"

    def prepare(self) -> None:
        """Find the photos and the metrics."""
        super().prepare()
        names = [part.strip() for one in self.metrics for part in one.split(",")]
        unknown = [one for one in names if one not in METRICS and not one.startswith("quantus:")]
        if unknown:
            raise BenchmarkError(
                f"there is no metric {unknown[0]!r}; there are {', '.join(METRICS)}, and "
                "quantus:NAME"
            )
        self.put(metrics=tuple(names))

    def load(self, index: int) -> Map:
        """Read a photo and choose the class; the map is still to come."""
        entry = self.data[index]
        pixels = self.seen(read_rgb(entry.file))
        predicted = int(self.logits(pixels)[0].argmax())
        return Map(
            torch.empty(0),
            pixels,
            entry.label if self.explain == "target" else predicted,
            self.classifier,
            self.logits,
            lambda removal: removed_pixels(pixels, self.model, removal),
            next(iter(self.by_label.values())),
        )

    def describe(self, example: Map) -> dict[str, Any]:
        """The explained class."""
        return {"class": example.target}

    def evaluate(self, example: Map, method: str) -> dict[str, Any]:
        """Each metric, by condition."""
        chosen = self.by_label[method]
        (relevance,) = chosen.maps(self.classifier, example.pixels, [example.target])
        found = Map(**{**vars(example), "relevance": relevance, "method": chosen})
        return {
            name: METRICS[name](found) if name in METRICS else {"": quantus_score(name, found)}
            for name in self.metrics
        }


map_metrics = as_function(MapMetrics)
