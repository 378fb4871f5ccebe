"""A phase is an object: a new one needs no other code, and none changes what another finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer_lrp import TransformerAttribution
from captum_transformer_lrp.engine.graph.op import Keeps, NoPhase, Op, Phase, Saved
from captum_transformer_lrp.engine.graph.role import Product
from captum_transformer_lrp.engine.graph.seen import AttentionStep
from captum_transformer_lrp.engine.phases import Arrivals, Gradient, Relevance, Rollout
from captum_transformer_lrp.engine.recording import Recording
from captum_transformer_lrp.rules.normalization import NormalizationKernel
from captum_transformer_lrp.rules.registry import ACTIVATIONS

WIDTH, TOKENS = 8, 5


class RelP(Gradient):
    """The gradient of a model whose norms and activations are held, and whose products are halved.

    These are the coefficients of Jafari et al., *RelP*, 2025.
    """

    @classmethod
    def needs(cls, op: Op) -> Keeps:
        return Keeps.VALUES

    def pull(self, op: Op, saved: Saved, arrived: Tensor) -> Sequence[Tensor | None]:
        call = op.call(saved)
        if isinstance(op.role, (Product, AttentionStep)):
            return [part / 2 for part in call.vjp(arrived)]
        if isinstance(call.kernel, NormalizationKernel):
            (x,) = call.inputs
            _, derivative = torch.func.vjp(call.kernel.with_deviation_of(x), x)
            return tuple(derivative(arrived))
        if op.function in ACTIVATIONS:
            return (arrived * call.output / call.inputs[0],)
        return super().pull(op, saved, arrived)


class Block(nn.Module):
    """As it is, or with what RelP does written out in detached factors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.projection, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.is_written_out = False

    def normalized(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        if not self.is_written_out:
            found: Tensor = norm(x)
            return found
        deviation = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt().detach()
        return (x - x.mean(-1, keepdim=True)) / deviation * norm.weight + norm.bias

    def activated(self, x: Tensor) -> Tensor:
        return x * (F.gelu(x) / x).detach() if self.is_written_out else F.gelu(x)

    def product(self, u: Tensor, v: Tensor) -> Tensor:
        if self.is_written_out:
            return (u.detach() @ v + u @ v.detach()) / 2
        return u @ v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projection(self.normalized(self.first, x)).chunk(3, -1)
        scores = self.product(q, k.mT) / WIDTH**0.5
        x = x + self.output(self.product(torch.softmax(scores, -1), v))
        x = x + self.down(self.activated(self.up(self.normalized(self.second, x))))
        found: Tensor = self.head(x[:, 0])
        return found


@pytest.fixture
def model() -> Block:
    torch.manual_seed(0)
    return Block().double().eval()


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).double()


class WithRelP(TransformerAttribution):
    phases = (Relevance, Rollout, Gradient, RelP)


@pytest.fixture
def recording(model: Block, inputs: Tensor) -> Iterator[Recording]:
    with WithRelP(model)._recorded(inputs, None) as found:
        yield found


def seed(recording: Recording) -> Tensor:
    one_hot = torch.zeros_like(recording.output)
    one_hot[:, 1] = 1
    return one_hot


def run(recording: Recording, phase: Phase) -> list[Tensor]:
    return recording.run(phase, seed(recording), recording.all_leaves)


def test_a_new_phase_is_a_class(recording: Recording, model: Block, inputs: Tensor) -> None:
    model.is_written_out = True
    leaf = inputs.clone().requires_grad_()
    model(leaf)[:, 1].sum().backward()
    (found,) = run(recording, RelP())
    torch.testing.assert_close(found, leaf.grad, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(found, run(recording, Gradient())[0], rtol=1e-2)


def test_no_walk_changes_what_another_finds(recording: Recording) -> None:
    """The same phases, in another order and between each other's two passes."""
    (step,) = recording.tape.attentions
    maps = {step.index: step.attention.detach()}
    phases = [Gradient(), Relevance(), Rollout(maps), RelP(), Rollout()]
    expected = [run(recording, phase) for phase in phases]
    held_back = Rollout(maps)
    held_back.holds_back = True
    run(recording, held_back)
    run(recording, Rollout(maps, through=step.event, only_moved=True))
    run(recording, Arrivals(0))
    for phase, before in reversed(list(zip(phases, expected, strict=True))):
        assert torch.equal(run(recording, phase)[0], before[0])


def test_a_walk_inside_another_leaves_the_outer_one_as_it_was(recording: Recording) -> None:
    seen = []

    class Asking(Gradient):
        def pull(self, op: Op, saved: Saved, arrived: Tensor) -> Sequence[Tensor | None]:
            run(recording, Relevance())
            seen.append(recording.tape.phase is self)
            return super().pull(op, saved, arrived)

    assert torch.equal(run(recording, Asking())[0], run(recording, Gradient())[0])
    assert seen
    assert all(seen)
    assert isinstance(recording.tape.phase, NoPhase)


def test_a_phase_that_raises_is_under_way_no_longer(recording: Recording) -> None:
    class Failing(Gradient):
        def pull(self, op: Op, saved: Saved, arrived: Tensor) -> Sequence[Tensor | None]:
            raise ArithmeticError("found a number that it does not like")

    with pytest.raises(ArithmeticError, match="does not like"):
        run(recording, Failing())
    assert isinstance(recording.tape.phase, NoPhase)


def test_without_a_phase_nothing_passes_a_call(recording: Recording) -> None:
    (found,) = run(recording, NoPhase())
    assert not found.any()
