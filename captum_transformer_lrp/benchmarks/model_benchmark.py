"""What all benchmarks of methods that explain a model have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from captum_transformer_lrp.benchmark_options import PAPER, Options, options_of, wrong_option
from captum_transformer_lrp.benchmarks.distributed import own_device
from captum_transformer_lrp.benchmarks.errors import BenchmarkError
from captum_transformer_lrp.benchmarks.methods import Method, methods_by_name
from captum_transformer_lrp.benchmarks.runner import Benchmark, Example, weights_digest
from captum_transformer_lrp.engine.recording import find_logits

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class ModelBenchmark(Options, Benchmark[Example]):
    """A benchmark of methods that explain a model.

    Args:
        model: from :mod:`~captum_transformer_lrp.models`, or made by hand.
        data: what the benchmark reads, or where it is.
        methods: names as in :func:`~captum_transformer_lrp.benchmarks.methods.methods_by_name`.

    Raises:
        BenchmarkError: for options, methods and data that do not fit.
    """

    model: Any
    data: Any
    methods: Sequence[str] = PAPER
    by_label: dict[str, Method] = field(init=False, repr=False)
    selected: Sequence[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the options, read what there is of data, and find the methods."""
        if wrong := wrong_option(self):
            raise BenchmarkError(wrong)
        device = torch.device(own_device(str(self.device)))
        by_label = {one.label: one for one in methods_by_name(self.methods)}
        self.put(methods=tuple(by_label), by_label=by_label, device=device)
        self.prepare()
        self.classifier.to(device)
        self.put(selected=evenly_spaced(range(len(self.identifiers())), self.limit))

    def put(self, **values: Any) -> None:
        """Set what follows from the arguments."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def prepare(self) -> None:
        """Read what there is of data, and check that data and model fit."""

    @property
    def classifier(self) -> Any:
        """The module."""
        return self.model.model

    def logits(self, batch: Tensor, **keywords: Any) -> Tensor:
        """The model's logits of a batch, without gradients."""
        with torch.no_grad():
            return find_logits(self.classifier(batch, **keywords))

    def settings(self) -> dict[str, Any]:
        """Everything that the records depend on: the model, and the options."""
        return {
            "model": self.model.name,
            "checkpoint_sha256": weights_digest(self.classifier),
            **{
                one.name: getattr(self, one.name)
                for one, _ in options_of(type(self))
                if one.metadata.get("recorded", True)
            },
            "device": torch.device(self.device).type,
        }


def evenly_spaced(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most ``limit`` of the items, spread over all of them, for photos are sorted by class.

    >>> evenly_spaced("abcdefgh", 3)
    ['a', 'c', 'f']
    """
    if limit is None or limit >= len(items):
        return list(items)
    return [items[number * len(items) // limit] for number in range(limit)]
