"""One recorded call, and what a phase is that goes backward through it."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol

from torch import Tensor

from captum_transformer_lrp.engine.graph.flow import Flow
from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.graph.values import Shape, raised, stand_in
from captum_transformer_lrp.rules import Call, Rule
from captum_transformer_lrp.rules.call import Stabilizer
from captum_transformer_lrp.rules.kernels import Kernel


class Keeps(enum.IntEnum):
    """What the switch behind a call keeps of the call's activations."""

    SHAPES = 0
    OUTPUT = 1
    """Its output, and the shapes of its inputs."""
    VALUES = 2
    """Its output and its inputs."""


class Saved(Protocol):
    """What autograd keeps of a call."""

    @property
    def saved_tensors(self) -> Sequence[Tensor]:
        """See :class:`torch.autograd.function.FunctionCtx`."""


@dataclass(eq=False)
class Step:
    """What the switch behind one call needs to know.

    ``shapes`` are those of the call's inputs, of its output too if ``keeps`` is ``SHAPES``; empty
    where they are kept themselves.
    """

    function: Callable[..., Any]
    kernel: Kernel
    rule: Rule
    flow: Flow
    mark: Mark
    name: str
    inputs: int
    has_graph: bool = True
    has_pixels: bool = False
    has_weight: bool = False
    has_bias: bool = False
    has_constant: bool = False
    gate: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    stabilizer: Stabilizer | None = None
    epsilon: float = 0.0
    keeps: Keeps = Keeps.VALUES
    shapes: Sequence[Shape] = ()

    def call(self, saved: Saved, **settings: Any) -> Call:
        """The call, put together again from the tensors that autograd kept."""
        tensors = saved.saved_tensors
        kept = 1 if self.keeps is Keeps.OUTPUT else 0
        tensors = [*tensors[:kept], *(stand_in(one) for one in self.shapes), *tensors[kept:]]
        rest = [raised(one, tensors[0].dtype) for one in tensors[1 + self.inputs :]]
        return Call(
            function=self.function,
            kernel=self.kernel,
            output=tensors[0],
            inputs=tuple(tensors[1 : 1 + self.inputs]),
            weight=rest.pop(0) if self.has_weight else None,
            bias=rest.pop(0) if self.has_bias else None,
            constant=rest.pop(0) if self.has_constant else None,
            gate=self.gate,
            examples=self.mark.examples,
            stabilizer=self.stabilizer,
            epsilon=self.epsilon,
            **settings,
        )


NATIVE: Final = ()
"""Returned by a phase that leaves the matter to the call's own derivative."""


class Books:
    """Where relevance ends that does not reach the inputs.

    Attributes:
        shares: what each parameter or operation has absorbed, (N,) by name.
    """

    def __init__(self) -> None:
        self.shares: dict[str, Tensor] = {}

    def absorb(self, name: str, amount: Tensor) -> None:
        """Add to the share of a parameter or operation, shape (N,)."""
        before = self.shares.get(name)
        self.shares[name] = amount if before is None else before + amount

    def found(self) -> dict[str, Tensor]:
        """The shares that are not all zero."""
        return {name: share for name, share in self.shares.items() if bool(share.any())}


class Phase(ABC):
    """Something that is carried backward through a forward pass, in one walk or several.

    Attributes:
        follows_graph: whether it goes on in a call's own autograd graph, where there is one.
        carries_mass: whether it carries token mass, by the :class:`Flow` of each call.
        books: where relevance is entered that ends on the way; None if it is none, or nobody asks.
    """

    follows_graph: ClassVar[bool] = False
    carries_mass: ClassVar[bool] = False
    books: Books | None = None

    @classmethod
    @abstractmethod
    def needs(cls, step: Step) -> Keeps:
        """What must be kept of a call that is being recorded."""

    @abstractmethod
    def pull(self, step: Step, saved: Saved, arrived: Tensor) -> Sequence[Tensor | None]:
        """Carry what has arrived at a call's output on to its inputs.

        Args:
            step: the call.
            saved: its tensors, for :meth:`Step.call`.
            arrived: shaped as the call's output.

        Returns:
            One for each input, shaped as it is, or None for nothing at all, and if the call has
            pixels (``record`` in ``switch.py``) one for them, if it likes; or :data:`NATIVE`.
        """


class NoPhase(Phase):
    """Nothing is under way: what arrives at a call ends there."""

    @classmethod
    def needs(cls, step: Step) -> Keeps:
        """See :class:`Phase`."""
        return Keeps.SHAPES

    def pull(self, step: Step, saved: Saved, arrived: Tensor) -> Sequence[Tensor | None]:
        """See :class:`Phase`."""
        return (None,) * step.inputs
