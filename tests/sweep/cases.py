"""What a suite of the sweep is: entries, and how each becomes a model with inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """One model of a suite.

    Args:
        name: what it is called in its library, such as ``swin_tiny_patch4_window7_224``.
        family: the module or model type that it belongs to, such as ``swin_transformer``.
        task: what it is used for, such as ``image classification``.
        smallest: whether it is the one that stands for its family.
    """

    name: str
    family: str
    task: str
    smallest: bool = True


@dataclass(frozen=True)
class Case:
    """An entry, built.

    Args:
        model: in eval mode; float64 where it can be.
        inputs: a batch of at least two examples, or a tuple of such.
        target: as of ``attribute``.
        additional_forward_args: as of ``attribute``.  Tensors whose first dimension is the batch
            are cut when examples are explained one by one.
        forward: what to explain, if not the model itself.
    """

    model: nn.Module
    inputs: Tensor | tuple[Tensor, ...]
    target: Any = 1
    additional_forward_args: dict[str, Any] = field(default_factory=dict)
    forward: Callable[..., Any] | None = None


class Suite(Protocol):
    """A module of this package: ``timm_models`` or ``transformers_models``."""

    def entries(self) -> Iterable[Entry]:
        """All entries, in the order in which they are run."""
        ...

    def build(self, entry: Entry) -> Case:
        """Build one entry with random weights; called in a process of its own.

        Raises:
            NotBuilt: where the library itself cannot build it offline.
        """
        ...


class NotBuilt(Exception):  # noqa: N818 - a finding, not a fault
    """The entry's own library cannot build it here; the message says why."""
