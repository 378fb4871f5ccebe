"""ε of eq. 2, and maps without the path that no attention has moved.

What the default promises is measured on trained DeiT-tiny and photos: a map is the same in float32
as in float64, it hardly moves with the pixels' last bits, and it is that of a half-precision copy.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from captum_transformer_lrp import (
    AttentionRollout,
    GenericAttention,
    LibraGradient,
    PartialLRP,
    TransformerAttribution,
    TransformerLRP,
    transformer_rules,
)
from captum_transformer_lrp.rules import (
    DEFAULT_EPSILON,
    AdditiveStabilizer,
    Call,
    MatmulRule,
    PoolingRule,
    SkipAddRule,
    preset,
)
from captum_transformer_lrp.rules.binary import SolveRule
from captum_transformer_lrp.rules.kernels import AutogradKernel, MatmulKernel

METHODS = [TransformerAttribution, PartialLRP, TransformerLRP]

# -- what a user may give -------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf, "0.1", True, torch.tensor([1.0, 2.0])])
def test_an_epsilon_that_is_none_is_refused(method: Any, wrong: Any) -> None:
    with pytest.raises(ValueError, match="epsilon must be a finite number, 0 or more, found"):
        method(nn.Identity(), epsilon=wrong)


def test_presets_and_the_block_for_captum_check_it_too() -> None:
    with pytest.raises(ValueError, match="epsilon must be"):
        preset("paper", epsilon=-1)
    with pytest.raises(ValueError, match="epsilon must be"), transformer_rules(epsilon=-1):
        pass


@pytest.mark.parametrize("method", METHODS)
def test_a_stabilizer_and_an_epsilon_are_one_too_many(method: Any) -> None:
    with pytest.raises(ValueError, match=r"found both stabilizer=.* choose one of them"):
        method(nn.Identity(), epsilon=0.1, stabilizer=AdditiveStabilizer())
    assert method(nn.Identity(), epsilon=0, stabilizer=AdditiveStabilizer()).epsilon == 0
    assert method(nn.Identity(), stabilizer=AdditiveStabilizer()).epsilon == 0


def test_methods_that_propagate_no_relevance_take_none() -> None:
    for method in (AttentionRollout, GenericAttention, LibraGradient):
        with pytest.raises(TypeError, match="epsilon"):
            method(nn.Identity(), epsilon=0.1)


def test_the_method_s_epsilon_goes_before_the_preset_s_and_that_before_the_default() -> None:
    assert TransformerLRP(nn.Identity()).epsilon == DEFAULT_EPSILON
    assert TransformerLRP(nn.Identity(), preset=preset("paper", epsilon=0.5)).epsilon == 0.5
    half = preset("lrp").but(epsilon=0.5)
    assert TransformerLRP(nn.Identity(), preset=half, epsilon=0.25).epsilon == 0.25
    assert TransformerLRP(nn.Identity(), preset="attnlrp").epsilon == 0  # it has an ε of its own


def test_a_dtype_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype must be .* found torch.float16"):
        TransformerAttribution(nn.Identity(), dtype=torch.float16)


# -- the equation ---------------------------------------------------------------------------------


def of(rule: Any, function: Any, kernel: Any, inputs: Any, epsilon: float) -> tuple[Any, float]:
    """The relevance of inputs whose output has relevance 1, and what is absorbed."""
    taken: list[Tensor] = []
    output = kernel.forward(inputs, None)
    call = Call(
        function, kernel, tuple(inputs), output, epsilon=epsilon, keeps_books=True,
        absorb=lambda amount: taken.append(amount()),
    )  # fmt: skip
    found = rule.relevance(call, torch.ones_like(output))
    return found, float(sum(taken, torch.zeros(1)))


def test_a_product_that_cancels_gets_little_and_the_rest_is_reported() -> None:
    """1·3 − 1·2 = 1, and the sizes add up to 5: at ε = 0.2 the denominator is 2."""
    u, v = torch.tensor([[1.0, -1.0]]), torch.tensor([[3.0], [2.0]])
    (of_u, of_v), absorbed = of(MatmulRule(), torch.matmul, MatmulKernel(), (u, v), 0.2)
    assert of_u.tolist() == [[0.75, -0.5]]
    assert of_v.tolist() == [[0.75], [-0.5]]
    assert absorbed == 0.5


def test_a_sum_gets_back_what_epsilon_takes() -> None:
    u, v = torch.tensor([[3.0, 1.0]]), torch.tensor([[-2.0, 1.0]])
    (of_u, of_v), absorbed = of(SkipAddRule(), torch.add, AutogradKernel(torch.add), (u, v), 0.2)
    # Shares 1/2 and 1/2.4, then eq. 9 and 10 to a sum of 2.
    parts = torch.tensor([[3 / 2, 1 / 2.4], [-2 / 2, 1 / 2.4]])
    sums = parts.sum(1)
    factors = 2 * sums.sign() / sums.abs().sum()
    expected = parts * factors[:, None]
    assert torch.allclose(torch.cat([of_u, of_v]), expected)
    assert math.isclose(float((of_u + of_v).sum()), 2, rel_tol=1e-6)
    assert absorbed == 0


def test_what_cannot_be_given_back_is_reported() -> None:
    """Where both sums vanish there is nothing that eq. 9 and 10 could multiply."""
    u, v = torch.tensor([[1.0, -1.0]]), torch.tensor([[-1.0, 1.0]])
    (of_u, of_v), absorbed = of(SkipAddRule(), torch.add, AutogradKernel(torch.add), (u, v), 0.1)
    assert bool(of_u.isfinite().all())
    assert math.isclose(float((of_u + of_v).sum()) + absorbed, 2, rel_tol=1e-6)


def test_a_mean_of_one_sign_keeps_all() -> None:
    def mean(value: Tensor) -> Tensor:
        return value.mean(1)

    alike, mixed = torch.tensor([[1.0, 3.0]]), torch.tensor([[3.0, -1.0]])
    (found,), absorbed = of(PoolingRule(), torch.mean, AutogradKernel(mean), (alike,), 0.5)
    assert found.tolist() == [[0.25, 0.75]]
    assert absorbed == 0
    # The mean is 1, and 1 cancelled: a denominator of 1.5.
    (found,), absorbed = of(PoolingRule(), torch.mean, AutogradKernel(mean), (mixed,), 0.5)
    assert torch.allclose(found, torch.tensor([[1.0, -1 / 3]]))
    assert math.isclose(absorbed, 1 / 3, rel_tol=1e-6)


@pytest.mark.parametrize("epsilon", [0, 0.1, 1])
def test_relevance_is_accounted_for(case: Any, epsilon: float) -> None:
    explanation = TransformerAttribution(case.model, epsilon=epsilon).explain(
        case.inputs, 1, case.kwargs
    )
    assert float((explanation.total - 1).abs().max()) < 1e-6
    layers = {name.rsplit(".", 1)[0] for name in explanation.absorbed}
    named = {maps.name for maps in explanation.attentions}
    assert bool(named & {*layers, *explanation.absorbed}) == (epsilon > 0)


# -- C − I ----------------------------------------------------------------------------------------


class Pooled(nn.Module):
    """A ViT that pools the mean, whose attention moves little."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = timm.create_model("test_vit", num_classes=5, global_pool="avg")
        for block in self.model.blocks:
            block.attn.proj.weight.data *= gain

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits


@pytest.mark.parametrize("granularity", ["input", "token"])
def test_nothing_is_lost_to_the_identity(granularity: Any) -> None:
    """Attention moves 1e-5 of the mass.  In float32 six digits of that come out."""

    class Little(AttentionRollout):
        def _maps(self, recording: Any, start: Tensor, used: Any) -> dict[int, Tensor]:
            maps = super()._maps(recording, start, used)
            return {index: one * 1e-5 for index, one in maps.items()}

    model, images = Pooled(1.0).eval(), torch.randn(2, 3, 160, 160)
    found = Little(model).attribute(images, granularity=granularity)
    exact = Little(copy.deepcopy(model).double()).attribute(
        images.double(), granularity=granularity
    )
    whole = Little(model).attribute(images, granularity=granularity, keep_identity=True)
    assert float(exact.sum()) < 1e-4 * float(whole.sum())
    assert float((found - exact).abs().max()) < 5e-6 * float(exact.max())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_left_out_is_the_same_for_every_class(checkpointing: bool) -> None:
    model, images = Pooled(1e-2).double().eval(), torch.randn(2, 3, 160, 160).double()
    method = TransformerAttribution(model, checkpointing=checkpointing)
    one, other = (
        method.attribute(images, target, keep_identity=True) - method.attribute(images, target)
        for target in (1, 2)
    )
    assert torch.allclose(one, other, rtol=1e-9)
    assert float(one.std(0).max()) < 1e-9


@pytest.mark.parametrize("method", [AttentionRollout, GenericAttention, TransformerAttribution])
def test_the_row_of_the_matrix_less_the_identity(case: Any, method: Any) -> None:
    found = method(case.model).attribute(case.inputs, 1, case.kwargs, granularity="token")
    matrix = method(case.model).attribute(case.inputs, 1, case.kwargs, granularity="matrix")
    row = case.readout @ (matrix - torch.eye(matrix.shape[-1]).double())
    assert float((found - row).abs().max()) < 1e-9 * float(row.abs().max())


# -- only the rows that are explained -------------------------------------------------------------


class Tagger(nn.Module):
    """One answer for each token."""

    def __init__(self, *, cast: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cast = cast
        self.embed = nn.Embedding(30, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 40)

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.head(self.block(self.embed(ids)))
        return logits * 1 if self.cast else logits  # or no linear layer's output


@pytest.mark.parametrize("method", [*METHODS, GenericAttention])
def test_an_answer_is_explained_from_its_row_alone(method: Any) -> None:
    ids = torch.randint(0, 30, (2, 9))
    one, other = (Tagger(cast=cast).double().eval() for cast in (False, True))
    targets = [(3, 7), [(8, 1), (-2, -1)], (3, 0)]
    for found, expected in zip(
        method(one).attribute_targets(ids, targets),
        method(other).attribute_targets(ids, targets),
        strict=True,
    ):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-15)


class Grouped(Tagger):
    """For each token an answer for each half of its features, by one vector."""

    def forward(self, ids: Tensor) -> Tensor:
        groups = self.block(self.embed(ids)).unflatten(-1, (2, 4))
        vector = self.head.weight[0, :4]
        if self.cast:
            return nn.functional.linear(groups, vector.unsqueeze(0)).squeeze(-1)
        return nn.functional.linear(groups, vector)


class Multiplied(Tagger):
    """The head's matrix is multiplied from the right."""

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.block(self.embed(ids)) @ self.head.weight.T
        return logits * 1 if self.cast else logits


@pytest.mark.parametrize("method", [TransformerAttribution, TransformerLRP, GenericAttention])
@pytest.mark.parametrize("model", [Grouped, Multiplied])
@pytest.mark.parametrize("examples", [1, 2])
def test_so_it_is_with_other_spellings_of_the_last_layer(
    model: type[Tagger], method: Any, examples: int
) -> None:
    ids = torch.randint(0, 30, (examples, 9))
    one, other = (model(cast=cast).double().eval() for cast in (False, True))
    targets = [(3, 1), (8, 0), (5, 1)]
    found = torch.stack(method(one).attribute_targets(ids, targets))
    expected = torch.stack(method(other).attribute_targets(ids, targets))
    assert float(expected.abs().max()) > 0
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-15)


def test_only_that_row_and_class_are_touched() -> None:
    ids = torch.randint(0, 30, (2, 9))
    method = TransformerLRP(Tagger(cast=False).double().eval(), preset="attnlrp")
    with method._recorded(ids, None) as recording:
        assert recording.asked([(3, 7), [(8, 1), (-1, -38)]]) == [(0, 2), [(1, 0), (1, 1)]]
        assert recording.output.shape == (2, 2, 3)
    with method._recorded(ids, None) as recording:  # more than half of the output
        targets = [(place % 9, place % 40) for place in range(30)]
        assert recording.asked(targets) == targets
        assert recording.output.shape == (2, 9, 40)
    method = TransformerLRP(Multiplied(cast=False).double().eval(), preset="attnlrp")
    with method._recorded(ids, None) as recording:  # the classes of this spelling stay
        assert recording.asked([(3, 7), (8, 1)]) == [(0, 7), (1, 1)]
        assert recording.output.shape == (2, 2, 40)


# -- trained weights and photos -------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(imagenet_photos: Tensor) -> Tensor:
    return imagenet_photos


def maps_of(model: nn.Module, photos: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """(N, S − 1), without the class token."""
    found = TransformerAttribution(model, **options).attribute(
        photos, targets, granularity="token", internal_batch_size=4
    )
    assert isinstance(found, Tensor)
    return found[:, 1:]


def spread(found: Tensor, expected: Tensor) -> Tensor:
    """For each map the largest difference, relative to its largest entry."""
    return (found - expected).abs().amax(1) / expected.amax(1)


def rank_correlations(one: Tensor, other: Tensor) -> Tensor:
    ranks = [maps.argsort(1).argsort(1).double() for maps in (one, other)]
    centred = [rank - rank.mean(1, keepdim=True) for rank in ranks]
    return (centred[0] * centred[1]).sum(1) / (centred[0].norm(dim=1) * centred[1].norm(dim=1))


@pytest.fixture(scope="module")
def exact(deit: nn.Module, photos: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        targets = deit(photos).argmax(1)
    return targets, maps_of(copy.deepcopy(deit).double(), photos.double(), targets)


@pytest.mark.slow
def test_float32_is_float64(deit: nn.Module, photos: Tensor, exact: Any) -> None:
    targets, expected = exact
    found = spread(maps_of(deit, photos, targets), expected)
    print(f"float32: median {found.median():.1e}, worst {found.max():.1e}")
    assert float(found.max()) <= 1e-4


@pytest.mark.slow
def test_the_last_bits_of_the_pixels_do_not_matter(
    deit: nn.Module, photos: Tensor, exact: Any
) -> None:
    targets, expected = exact
    noise = torch.randn(photos.shape, generator=torch.Generator().manual_seed(0)).double() * 1e-5
    found = spread(maps_of(copy.deepcopy(deit).double(), photos + noise, targets), expected)
    print(f"pixel noise: median {found.median():.1e}, worst {found.max():.1e}")
    assert float(found.median()) <= 1e-3
    assert float(found.max()) <= 2e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "median", "worst"),
    [(torch.bfloat16, 0.99, 0.95), (torch.float16, 0.995, 0.995)],
    ids=str,
)
def test_a_half_precision_copy_has_the_same_map(
    deit: nn.Module, photos: Tensor, exact: Any, dtype: torch.dtype, median: float, worst: float
) -> None:
    targets, expected = exact
    half = copy.deepcopy(deit).to(dtype)
    found = rank_correlations(maps_of(half, photos.to(dtype), targets), expected)
    print(f"{dtype}: median {found.median():.4f}, worst {found.min():.4f}")
    assert float(found.median()) >= median
    assert float(found.min()) >= worst
    if dtype == torch.bfloat16:
        inside = maps_of(half, photos.to(dtype), targets, dtype=torch.bfloat16)
        native = rank_correlations(inside, expected)
        print(f"in bfloat16 throughout: median {native.median():.3f}, worst {native.min():.3f}")
        assert float(native.median()) >= 0.9


@pytest.mark.parametrize("row_normalize", [False, True])
def test_a_rollout_of_b_blocks_sums_to_what_its_docstring_says(
    case: Any, row_normalize: bool
) -> None:
    found = AttentionRollout(case.model).attribute(
        case.inputs, 1, case.kwargs, granularity="token", row_normalize=row_normalize
    )
    blocks = len(case.explain(1).attentions)
    expected = 1 - 2.0**-blocks if row_normalize else 2.0**blocks - 1
    assert torch.allclose(found.sum(1), torch.full((3,), expected).double())


def test_a_solution_that_cancels_is_kept_from_zero() -> None:
    """Y = A⁻¹ B for a triangular A, with s = |A⁻¹| |B|, example by example."""
    torch.manual_seed(0)
    A = torch.randn(2, 4, 4).double().tril() + 3 * torch.eye(4).double()
    right = torch.randn(2, 4, 3).double()

    def solve(matrix: Tensor, values: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(matrix, values, upper=False)

    (of_matrix, of_right), _ = of(SolveRule(), solve, AutogradKernel(solve), (A, right), 0.5)
    solved = torch.linalg.inv(A) @ right
    share = 1 / (solved + 0.5 * solved.sign() * (torch.linalg.inv(A).abs() @ right.abs()))
    # Eq. 2: x ⊙ (∂Y/∂x)ᵀ share, and then eq. 9 and 10 over both examples, which are one here.
    pulled = torch.linalg.inv(A).mT @ share
    parts = [A * (-pulled @ solved.mT).tril(), right * pulled]
    sums = [part.sum() for part in parts]
    total = torch.tensor(float(solved.numel()))
    for found, part, one in zip((of_matrix, of_right), parts, sums, strict=True):
        expected = part * total * one.sign() / (sums[0].abs() + sums[1].abs())
        assert torch.allclose(found, expected)
