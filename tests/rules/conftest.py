"""Relevance through one operation, by the engine and by equations written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor, nn

from captum_transformer_lrp.engine.graph.op import Books
from captum_transformer_lrp.engine.graph.tape import Tape
from captum_transformer_lrp.engine.operations import TABLE
from captum_transformer_lrp.engine.phases import Relevance
from captum_transformer_lrp.engine.watch.interception import Interception
from captum_transformer_lrp.rules import SignAwareStabilizer
from captum_transformer_lrp.rules.rule_set import UserRules


@dataclass
class Propagated:
    """One operation's result and what became of the relevance of it."""

    output: Tensor
    inputs: list[Tensor]
    absorbed: Tensor

    @property
    def total(self) -> Tensor:
        """Per example, all relevance that arrived anywhere."""
        return sum((one.flatten(1).sum(1) for one in self.inputs), self.absorbed)


class Equations:
    """What the tests are made from: the engine's answer, and the paper's."""

    @staticmethod
    def propagate(
        operation: Callable[..., Tensor],
        *inputs: Tensor,
        relevance: Tensor | None = None,
        rules: dict[Any, PropagationRule | type[PropagationRule]] | None = None,
        stabilizer: Any = None,
    ) -> Propagated:
        """The engine's answer for ``operation(*inputs)``; examples lie along dimension 0."""
        stabilizer = stabilizer or SignAwareStabilizer()
        tape = Tape(stabilizer, keeps_books=True, phases=[Relevance])
        is_model = isinstance(operation, nn.Module)
        modules = list(operation.named_modules()) if is_model else None
        rule_set = UserRules(rules).over(None)
        watch = Interception(tape, modules, inputs[0].shape[0], rule_set, TABLE)
        leaves = [value.detach().clone().requires_grad_() for value in inputs]
        for place, leaf in enumerate(leaves):
            tape.marks[leaf] = tape.given(watch.context.examples, place)
        with watch:
            output = operation(*leaves)
        output = watch.resolve(output)
        watch.close()
        if relevance is None:
            relevance = Equations.seed(output)
        books = Books()
        phase = Relevance(books)
        found = tape.backward(phase, output, relevance, leaves)
        nothing = torch.zeros(inputs[0].shape[0], dtype=output.dtype)
        absorbed = sum(books.shares.values(), nothing)
        return Propagated(output.detach(), [one.detach() for one in found], absorbed)

    @staticmethod
    def seed(output: Tensor) -> Tensor:
        """Relevance of an output: positive and negative, with sum 1 for each example."""
        generator = torch.Generator().manual_seed(1)
        relevance = torch.randn(output.shape, generator=generator, dtype=output.dtype)
        sums = relevance.reshape(len(output), -1).sum(1).reshape(-1, *[1] * (output.dim() - 1))
        return relevance + (1 - sums) / relevance[0].numel()

    @staticmethod
    def jacobians(operation: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        """∂y_i/∂x_j as a dense matrix (i, j) for each input."""
        found = torch.autograd.functional.jacobian(operation, tuple(inputs))
        rows = operation(*inputs).numel()
        return [one.reshape(rows, -1) for one in found]

    @staticmethod
    def eq_5(operation: Callable[[Tensor], Tensor], x: Tensor, relevance: Tensor) -> Tensor:
        """R_j = Σ_i (x_j w_ji)⁺ / Σ_j' (x_j' w_j'i)⁺ R_i; ``operation`` without its bias."""
        (weights,) = Equations.jacobians(operation, [x])
        products = (weights * x.flatten()).clamp(min=0)
        sums = products.sum(1, keepdim=True)
        shares = torch.where(sums > 0, products / sums, 0.0)
        return (shares * relevance.flatten()[:, None]).sum(0).reshape(x.shape)

    @staticmethod
    def eq_2(
        operation: Callable[..., Tensor], inputs: Sequence[Tensor], relevance: Tensor
    ) -> list[Tensor]:
        """R_j = Σ_i x_j ∂y_i/∂x_j R_i / y_i, for each input."""
        output = operation(*inputs).flatten()
        return [
            (matrix * value.flatten() * (relevance.flatten() / output)[:, None])
            .sum(0)
            .reshape(value.shape)
            for matrix, value in zip(Equations.jacobians(operation, inputs), inputs, strict=True)
        ]

    @staticmethod
    def eq_9_and_10(parts: Sequence[Tensor], relevance: Tensor) -> list[Tensor]:
        """R̄ᵘ = Rᵘ · |ΣRᵘ| / (|ΣRᵘ| + |ΣRᵛ|) · ΣR / ΣRᵘ, and likewise for v."""
        sizes = [part.sum().abs() for part in parts]
        return [
            part * size / sum(sizes) * relevance.sum() / part.sum()
            for part, size in zip(parts, sizes, strict=True)
        ]

    @staticmethod
    def per_example(
        rule: Callable[[list[Tensor], Tensor], Sequence[Tensor]],
        inputs: Sequence[Tensor],
        relevance: Tensor,
    ) -> list[Tensor]:
        """Apply an equation to one example at a time."""
        rows = [
            rule([value[i : i + 1] for value in inputs], relevance[i : i + 1])
            for i in range(len(relevance))
        ]
        return [torch.cat(column) for column in zip(*rows, strict=True)]


@pytest.fixture(scope="session")
def equations() -> type[Equations]:
    return Equations


@pytest.fixture
def noise() -> Callable[..., Tensor]:
    """Normal random numbers in float64, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
