"""What a test says: the library's numbers are those of the independent implementation.

Tolerance, 1e-9 of the largest entry of what is compared.  Both sides compute in float64, whose
rounding is 2e-16, and eq. 2 divides by attention scores and by sums that cancel, which magnifies
rounding by Σ|q·k| / |Σ q·k|.  The library's stabiliser adds 2e-16 times the summands to a
denominator, which is magnified alike; the independent implementation has none.  Measured for the
seeds used here: ∇A within 3e-14, R within 2e-11, maps within 2e-14.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_transformer_lrp import Explanation, TransformerAttribution
from captum_transformer_lrp.rules import DEFAULT_EPSILON
from tests.independent.relprop import Value, epsilon, propagate

TOLERANCE = 1e-9

Arrange = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class Truth:
    """The independent implementation's forward pass of one example.

    Args:
        logits: of shape (C,).
        attentions: A of every attention, in the order of the forward pass.
        inputs: images, or what was looked up for token ids.
        gradients: ∇A of every attention.
    """

    logits: Value
    attentions: list[Value]
    inputs: list[Value]
    gradients: Sequence[Tensor] = ()

    def explain(self, target: int) -> None:
        """Fill in R and ∇A."""
        propagate(self.logits, target)
        wanted = [attention.data for attention in self.attentions]
        self.gradients = torch.autograd.grad(self.logits.data[target], wanted, retain_graph=True)

    def weighted(self, index: int) -> Tensor:
        """E_h(∇A ⊙ R)⁺ of eq. 13, with the heads along the axis before the last two."""
        relevance = self.attentions[index].relevance
        assert relevance is not None
        return (self.gradients[index] * relevance).clamp(min=0).mean(-3)


def alive(model: nn.Module) -> nn.Module:
    """Random weights of trained models' size, biases and norms included, in float64."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.2 * parameter[0].numel() ** -0.5)
        else:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean().round()), std=0.2)
    return model.double().eval()


def as_expected(index: int, found: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """The layout of an attention map where the model has it as the independent one."""
    return found.reshape(expected.shape), expected


def compare(
    model: Any,
    inputs: Tensor | tuple[Tensor, ...],
    truths: Sequence[Truth],
    target: int,
    kwargs: dict[str, Any] | None = None,
    arrange: Arrange = as_expected,
) -> Explanation:
    """Explain all examples in one batch, and compare each with its truth, ε being 0 or not.

    In the end the truths are those of the default.

    ``arrange`` takes an attention's number, what was found for one example, flat, and what is
    expected, and returns the two in one layout.
    """
    for value in (0, DEFAULT_EPSILON):
        with epsilon(value):
            explanation = _compare(model, inputs, truths, target, kwargs, arrange, value)
    return explanation


def _compare(
    model: Any,
    inputs: Tensor | tuple[Tensor, ...],
    truths: Sequence[Truth],
    target: int,
    kwargs: dict[str, Any] | None,
    arrange: Arrange,
    value: float,
) -> Explanation:
    explanation = TransformerAttribution(model, epsilon=value).explain(inputs, target, kwargs)
    count = len(truths)
    assert len(explanation.attentions) == len(truths[0].attentions)
    for n, truth in enumerate(truths):
        truth.explain(target)
        close(explanation.output[n], truth.logits.data, "logits", TOLERANCE)
        for index, maps in enumerate(explanation.attentions):
            attention = truth.attentions[index]
            for found, expected, what in (
                (maps.attention, attention.data, "A"),
                (maps.gradient, truth.gradients[index], "∇A"),
                (maps.relevance, attention.relevance, "R"),
            ):
                assert expected is not None
                pair = arrange(index, found.reshape(count, -1)[n], expected)
                close(*pair, f"{what} of attention {index}, {maps.name}")
        found_inputs = [relevance[n] for relevance in explanation.relevances]
        for found, given in zip(found_inputs, truth.inputs, strict=True):
            assert given.relevance is not None
            close(found, given.relevance, "R of the inputs")
    return explanation


def close(found: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Equal up to ``tolerance`` of the largest entry."""
    assert found.shape == expected.shape, f"{what}: {found.shape}, expected {expected.shape}"
    largest = expected.detach().abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    error = float((found - expected.detach()).abs().max() / largest)
    assert error <= tolerance, f"{what} differs by {error:.1e} of its largest entry"
