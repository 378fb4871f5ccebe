"""Custom autograd functions: explained by what they compute, derived by their own backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_transformer_lrp import ExplanationError, TransformerAttribution
from captum_transformer_lrp.attr.targets import seed


class Swish(torch.autograd.Function):
    """An activation with a hand-written derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return grads[0] * (gate + x * gate * (1 - gate))


class StraightThrough(torch.autograd.Function):
    """Rounds, and passes gradients as if it did not: its derivative is not that of its values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x * 4) / 4

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class MaskedSoftmax(torch.autograd.Function):
    """Changes in place what it returns, as DeBERTa's did."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        output = torch.softmax(x, -1)
        output.masked_fill_(x > 0, 0)
        ctx.save_for_backward(output, x)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        _, x = ctx.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (found,) = torch.autograd.grad(masked_softmax(leaf), leaf, grads[0])
        return found


def masked_softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, -1).masked_fill(x > 0, 0)


class Recomputing(torch.autograd.Function):
    """Calls a module in its forward pass, and again in its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x)
        result: Tensor = module(x)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        raise AssertionError("nobody may recompute")


class Model(nn.Module):
    """One attention, and an MLP with ``activation`` in it."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.up, self.down, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).mT
        x = x + scores.softmax(-1) @ self.value(x)
        x = x + self.down(self.activation(self.up(x)))
        result: Tensor = self.head(x[:, 0])
        return result


def made(activation: Callable[[Tensor], Tensor]) -> Model:
    torch.manual_seed(0)
    return Model(activation).double().eval()


def tokens() -> Tensor:
    return torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1)).double()


def gradient(model: Model, x: Tensor) -> Tensor:
    """That of the tape at the inputs."""
    method = TransformerAttribution(model)
    with method._recorded(x, None) as recording:
        start = seed(recording.output, 1)
        (found,) = recording.tape.backward(
            recording.gradient, recording.output, start, recording.all_leaves
        )
        return found


def test_a_custom_function_is_explained_by_what_it_computes() -> None:
    x = tokens()
    found = TransformerAttribution(made(Swish.apply)).explain(x, 1)
    expected = TransformerAttribution(made(lambda x: x * torch.sigmoid(x))).explain(x, 1)
    assert torch.allclose(found.relevances[0], expected.relevances[0], atol=1e-9)
    assert torch.allclose(found.attributions, expected.attributions, atol=1e-9)
    assert torch.allclose(found.total, torch.ones(2).double(), atol=1e-6)


def test_what_it_changes_in_place_is_followed() -> None:
    x = tokens()
    model, plain = made(MaskedSoftmax.apply), made(masked_softmax)
    found = TransformerAttribution(model).explain(x, 1)
    expected = TransformerAttribution(plain).explain(x, 1)
    assert torch.equal(found.output, model(x).detach())
    assert torch.allclose(found.relevances[0], expected.relevances[0], atol=1e-9)
    assert torch.allclose(gradient(model, x), gradient(plain, x), atol=1e-12)


def test_its_gradient_is_its_own() -> None:
    """Of a straight-through function: zero by its values, the identity by its backward."""
    model, x = made(StraightThrough.apply), tokens()
    leaf = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    assert torch.allclose(gradient(model, x), plain, atol=1e-12)
    found = TransformerAttribution(model).explain(x, 1)
    assert torch.allclose(found.total, torch.ones(2).double(), atol=1e-6)
    assert torch.equal(found.output, model(x).detach())


def test_a_function_that_would_call_modules_again_is_derived_from_what_it_recorded() -> None:
    inner = nn.Linear(8, 8).double()
    model = made(lambda x: Recomputing.apply(x, inner))
    plain = made(inner)
    x = tokens()
    assert torch.allclose(gradient(model, x), gradient(plain, x), atol=1e-12)
    found = TransformerAttribution(model).explain(x, 1)
    expected = TransformerAttribution(plain).explain(x, 1)
    assert torch.allclose(found.relevances[0], expected.relevances[0], atol=1e-9)


class WithoutDerivative(torch.autograd.Function):
    """The identity, which says that it has no derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        return None


class AttendsWithoutDerivative(Model):
    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).mT
        x = x + WithoutDerivative.apply(scores.softmax(-1) @ self.value(x))
        result: Tensor = self.head(x[:, 0])
        return result


def test_an_attention_that_no_gradient_arrives_at_moves_no_mass() -> None:
    torch.manual_seed(0)
    method = TransformerAttribution(AttendsWithoutDerivative(torch.relu).double().eval())
    with pytest.raises(ExplanationError, match="no gradient of the target arrives"):
        method.attribute(tokens(), 1, granularity="token")
    whole = {"granularity": "token", "keep_identity": True}
    row = method.attribute(tokens(), 1, **whole)
    assert torch.allclose(row, torch.tensor([1.0, 0, 0, 0, 0]).double(), atol=1e-12)
    together = method.attribute_targets(tokens(), [1, 2], **whole)
    assert torch.equal(row, together[0])
