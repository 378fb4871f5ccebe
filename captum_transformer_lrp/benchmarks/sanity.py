"""Does a map depend on the weights and on the class, as an explanation must?"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn

from captum_transformer_lrp.benchmarks.maps import Map, entropy_of, rank_correlation
from captum_transformer_lrp.benchmarks.removal import draws

STAGES: Final = 4
"""In how many parts the weights are made random, from the top."""


def parameter_randomisation(found: Map, samples: int = 1, noise: float = 0.1) -> dict[str, float]:
    """Rank correlation with the map of a model whose weights are random from the top: low is good.

    MPRT (Adebayo et al., *Sanity Checks for Saliency Maps*, NeurIPS 2018), after each quarter of
    the modules.  Hedström et al., *Sanity Checks Revisited*, 2023, have two more: sMPRT averages
    both maps over several ``samples`` with noise, and ``"entropy"`` is what eMPRT compares: how
    much, relatively, the entropy of a map rises once all weights are random; high is good.
    """
    whole = found.relevance if samples == 1 else smooth(found, found.model, samples, noise)
    values, one = {}, whole
    for stage, model in enumerate(randomised_from_the_top(found.model, found.pixels), start=1):
        one = smooth(found, model, samples, noise)
        values[f"{100 * stage // STAGES} %"] = rank_correlation(whole, one)
    if samples == 1:
        values["entropy"] = entropy_of(one) / max(entropy_of(whole), 1e-12) - 1
    return values


def smooth(found: Map, model: nn.Module, samples: int, noise: float) -> Tensor:
    """A model's mean map of the photo and of others with noise, a share of the photo's range."""
    if samples == 1:
        return found.again(model=model)
    scale = noise * (found.pixels.max() - found.pixels.min())
    batch = torch.cat([found.pixels, found.pixels + scale * found.noise(samples - 1)])
    return found.of_copies(batch, model).mean(0)


def randomised_from_the_top(model: nn.Module, inputs: Any) -> Iterator[nn.Module]:
    """One copy of a model, after each quarter of its modules has got random weights.

    From the output to the input, in the order in which the modules are called.  Each parameter gets
    normal values of its own mean and standard deviation, the same ones for all methods.
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
    generator = draws(inputs)
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
