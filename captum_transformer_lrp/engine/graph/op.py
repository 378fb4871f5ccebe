"""One recorded call, and what a phase is that goes backward through it."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from torch import Tensor

from captum_transformer_lrp.engine.graph.marks import Mark
from captum_transformer_lrp.engine.graph.role import Flow, Role
from captum_transformer_lrp.engine.graph.values import Shape, raised, stand_in
from captum_transformer_lrp.rules import Call, Rule
from captum_transformer_lrp.rules.call import Stabilizer
from captum_transformer_lrp.rules.kernels import Kernel


class Keeps(enum.IntEnum):
    """What the switch behind a call keeps of the call's activations."""

    SHAPES = 0
    OUTPUT = 1
    """Its output, and the shapes of its inputs."""
    INPUTS = 2
    """Its inputs, from which its output is computed again."""
    VALUES = 3
    """Its output and its inputs."""


class Saved(Protocol):
    """What the switch behind a call keeps of it.

    Attributes:
        keeps: of its activations.
        shapes: those of its inputs, of its output too if ``keeps`` is ``SHAPES``; empty where they
            are kept themselves.
    """

    keeps: Keeps
    shapes: Sequence[Shape]

    @property
    def saved_tensors(self) -> Sequence[Tensor]:
        """See :class:`torch.autograd.function.FunctionCtx`."""


class Op(NamedTuple):
    """One recorded call, told apart by identity.

    Attributes:
        function: what was called.
        kernel: how it is computed.
        rule: what divides relevance among its inputs.
        role: what it means for token mass.
        mark: what is known of its output.
        name: what its rule absorbs is reported under.
        inputs: how many activations it was called on.
        stabilizer: divides relevance safely.
        epsilon: ε of eq. 2.
        has_graph: whether it has a graph of autograd's, and likewise the others.
    """

    function: Callable[..., Any]
    kernel: Kernel
    rule: Rule
    role: Role
    mark: Mark
    name: str
    inputs: int
    stabilizer: Stabilizer
    epsilon: float
    has_graph: bool
    has_pixels: bool
    has_weight: bool
    has_bias: bool
    has_constant: bool

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return object.__hash__(self)

    def call(self, saved: Saved, **settings: Any) -> Call:
        """The call, put together again from the tensors that autograd kept."""
        tensors = list(saved.saved_tensors)
        if saved.keeps is Keeps.INPUTS:
            tensors.insert(0, self.kernel.forward(tensors[: self.inputs], None))
        elif saved.keeps is not Keeps.VALUES:
            kept = 1 if saved.keeps is Keeps.OUTPUT else 0
            tensors[kept:kept] = map(stand_in, saved.shapes)
        output, beside = tensors[0], tensors[1 + self.inputs :]
        if beside:
            present = self.has_weight, self.has_bias, self.has_constant
            names = compress(("weight", "bias", "constant"), present)
            for name, one in zip(names, beside, strict=True):
                settings[name] = raised(one, output.dtype)
        return Call(
            function=self.function,
            kernel=self.kernel,
            output=output,
            inputs=tuple(tensors[1 : 1 + self.inputs]),
            gate=None if isinstance(self.role, Flow) else getattr(self.role, "gate", None),
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
        carries_mass: whether it carries token mass, by the role of each call.
        books: where relevance is entered that ends on the way; None if it is none, or nobody asks.
    """

    follows_graph: ClassVar[bool] = False
    carries_mass: ClassVar[bool] = False
    books: Books | None = None

    @classmethod
    @abstractmethod
    def needs(cls, op: Op) -> Keeps:
        """What must be kept of a call that is being recorded."""

    @abstractmethod
    def pull(self, op: Op, saved: Saved, arrived: Tensor) -> Sequence[Tensor | None]:
        """Carry what has arrived at a call's output on to its inputs.

        Args:
            op: the call.
            saved: its tensors, for :meth:`Op.call`.
            arrived: shaped as the call's output.

        Returns:
            One for each input, shaped as it is, or None for nothing at all, and if the call has
            pixels (``record`` in ``switch.py``) one for them, if it likes; or :data:`NATIVE`.
        """


class NoPhase(Phase):
    """Nothing is under way: what arrives at a call ends there."""

    @classmethod
    def needs(cls, op: Op) -> Keeps:
        """See :class:`Phase`."""
        return Keeps.SHAPES

    def pull(self, op: Op, saved: Saved, arrived: Tensor) -> Sequence[Tensor | None]:
        """See :class:`Phase`."""
        return (None,) * op.inputs
