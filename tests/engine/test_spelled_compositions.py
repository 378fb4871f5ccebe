"""Calls that are several operations in one are explained as the same function spelled out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_transformer_lrp import TransformerAttribution, TransformerLRP

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
TABLE = torch.randn(5, 12, generator=torch.Generator().manual_seed(1)).double()
FORM = torch.randn(4, 12, 12, generator=torch.Generator().manual_seed(2)).double()
OFFSET = torch.randn(4, generator=torch.Generator().manual_seed(3)).double()
INDEX = torch.tensor([0, 2, 2, 1, 0, 3, 1, 0, 2, 2, 1, 3, 3, 0, 1, 2])

Function = Callable[[Tensor, Tensor], Tensor]


class Pairs(nn.Module):
    """Compares what a Transformer makes of an image with what it makes of its mirror image.

    ``compare`` is given two tensors (N, S, D) and returns one value or more for each example.
    """

    def __init__(self, compare: Function) -> None:
        super().__init__()
        self.compare = compare
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)

    def tokens(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        return x + self.attention(x, x, x)[0]

    def forward(self, images: Tensor) -> Tensor:
        return self.compare(self.tokens(images), self.tokens(images.flip(-1) + 0.5)).flatten(1)


def explained(compare: Function, method: type = TransformerLRP, **options: object) -> Tensor:
    torch.manual_seed(0)
    model = Pairs(compare).double().eval()
    found = method(model, **options).attribute(IMAGES, 0)
    assert isinstance(found, Tensor)
    return found


def total(compare: Function) -> Tensor:
    torch.manual_seed(0)
    return TransformerAttribution(Pairs(compare).double().eval()).explain(IMAGES, 0).total


def unit(x: Tensor, dim: int, eps: float = 1e-8) -> Tensor:
    return x / x.norm(dim=dim, keepdim=True).clamp(min=eps)


def distances(u: Tensor, v: Tensor, p: float = 2.0) -> Tensor:
    return torch.linalg.vector_norm(u.unsqueeze(2) - v.unsqueeze(1), p, -1)


def bilinear(u: Tensor, v: Tensor) -> Tensor:
    return ((u @ FORM.mT.flatten(0, 1).mT).unflatten(-1, (4, 12)) @ v.unsqueeze(-1)).squeeze(-1)


SIMILARITIES: dict[str, tuple[Function, Function]] = {
    "of vectors": (
        lambda u, v: F.cosine_similarity(u.mean(1), v.mean(1)).unsqueeze(1),
        lambda u, v: (F.normalize(u.mean(1)) * F.normalize(v.mean(1))).sum(1, keepdim=True),
    ),
    "of tokens": (
        lambda u, v: F.cosine_similarity(u, v, dim=-1),
        lambda u, v: (unit(u, -1) * unit(v, -1)).sum(-1),
    ),
    "along the default axis": (
        lambda u, v: torch.cosine_similarity(u, v),
        lambda u, v: (unit(u, 1) * unit(v, 1)).sum(1),
    ),
    "of all pairs of tokens": (
        lambda u, v: torch.cosine_similarity(u.unsqueeze(2), v.unsqueeze(1), dim=3),
        lambda u, v: (unit(u.unsqueeze(2), 3) * unit(v.unsqueeze(1), 3)).sum(3),
    ),
    "to the rows of a table": (
        lambda u, v: nn.CosineSimilarity(dim=-1)(u.mean(1, keepdim=True), TABLE),
        lambda u, v: (F.normalize(u.mean(1, keepdim=True), dim=-1) * unit(TABLE, -1)).sum(-1),
    ),
    "with a large eps": (
        lambda u, v: F.cosine_similarity(x1=u, x2=v, dim=2, eps=2.0),
        lambda u, v: (unit(u, 2, 2.0) * unit(v, 2, 2.0)).sum(2),
    ),
}
DISTANCES: dict[str, tuple[Function, Function]] = {
    "pairwise": (
        lambda u, v: F.pairwise_distance(u.mean(1), v.mean(1), keepdim=True),
        lambda u, v: torch.linalg.vector_norm(u.mean(1) - v.mean(1) + 1e-6, dim=-1, keepdim=True),
    ),
    "pairwise by the sum of sizes": (
        lambda u, v: nn.PairwiseDistance(p=1, eps=0.1)(u, v),
        lambda u, v: (u - v + 0.1).norm(1, dim=-1),
    ),
    "pairwise to one row": (
        lambda u, v: F.pairwise_distance(u, TABLE[0]),
        lambda u, v: (u - TABLE[0] + 1e-6).norm(dim=-1),
    ),
    "cdist": (lambda u, v: torch.cdist(u, v), distances),
    "cdist by matrix products": (
        lambda u, v: torch.cdist(u, v, compute_mode="use_mm_for_euclid_dist"), distances
    ),
    "cdist by the largest": (
        lambda u, v: torch.cdist(u, v, p=torch.inf), lambda u, v: distances(u, v, torch.inf)
    ),
    "cdist to a table": (
        lambda u, v: torch.cdist(u, TABLE),
        lambda u, v: (u.unsqueeze(2) - TABLE.unsqueeze(0)).norm(dim=-1),
    ),
}  # fmt: skip
FORMS: dict[str, tuple[Function, Function]] = {
    "bilinear": (
        lambda u, v: F.bilinear(u.mean(1), v.mean(1), FORM),
        lambda u, v: bilinear(u.mean(1), v.mean(1)),
    ),
    "bilinear of tokens": (lambda u, v: F.bilinear(u, v, FORM), bilinear),
    "bilinear with a bias": (
        lambda u, v: F.bilinear(u, v, FORM, OFFSET), lambda u, v: bilinear(u, v) + OFFSET
    ),
    "quadratic": (lambda u, v: F.bilinear(u, u, FORM), lambda u, v: bilinear(u, u)),
    "bilinear by names": (
        lambda u, v: torch.bilinear(input1=v, input2=u, weight=FORM, bias=None),
        lambda u, v: bilinear(v, u),
    ),
    "bilinear with a constant": (
        lambda u, v: F.bilinear(u, TABLE[0].expand_as(u), FORM),
        lambda u, v: bilinear(u, TABLE[0].expand_as(u)),
    ),
}  # fmt: skip


def at(x: Tensor) -> Tensor:
    """The index of each token's place among four, for every feature."""
    return INDEX[:, None].expand(2, 16, 12)


def put(reduce: str, **options: bool) -> Function:
    return lambda u, v: u[:, :4].scatter_reduce(1, at(v), v, reduce, **options)


def of_group(x: Tensor, group: int) -> Tensor:
    return x[:, group == INDEX]


def by_group(reduce: Callable[[Tensor], Tensor], *, keeps: bool = True) -> Function:
    """The same, one group of tokens after another."""

    def spelled(u: Tensor, v: Tensor) -> Tensor:
        rows = [
            torch.cat([u[:, group : group + 1], of_group(v, group)] if keeps else
                      [of_group(v, group)], 1)
            for group in range(4)
        ]  # fmt: skip
        return torch.stack([reduce(row) for row in rows], 1)

    return spelled


REDUCTIONS: dict[str, tuple[Function, Function]] = {
    "largest": (put("amax"), by_group(lambda x: x.amax(1))),
    "smallest": (put("amin"), by_group(lambda x: x.amin(1))),
    "largest without itself": (
        put("amax", include_self=False), by_group(lambda x: x.amax(1), keeps=False)
    ),
    "largest by rows": (
        lambda u, v: torch.index_reduce(u[:, :4], 1, INDEX, v, "amax"),
        by_group(lambda x: x.amax(1)),
    ),
    "median": (
        lambda u, v: u.median(1).values, lambda u, v: u.sort(1).values[:, 7]
    ),
    "median with its axis": (
        lambda u, v: torch.median(u, dim=2, keepdim=True)[0],
        lambda u, v: u.sort(2).values[..., 5:6],
    ),
    "fifth": (
        lambda u, v: u.kthvalue(5, 1).values, lambda u, v: u.sort(1).values[:, 4]
    ),
    "median of what is a number": (
        lambda u, v: u.nanmedian(1).values, lambda u, v: u.sort(1).values[:, 7]
    ),
}  # fmt: skip
"""Of some elements one is chosen, which takes all."""


def sum_of(part: Callable[[Tensor], Tensor]) -> tuple[Function, Function]:
    """The sum of what is taken out of two tensors, as addition and as a sum of both in one."""
    return (lambda u, v: part(u) + part(v)), (lambda u, v: torch.stack([part(u), part(v)]).sum(0))


SUMS_OF_PARTS: dict[str, tuple[Function, Function]] = {
    "sorted": sum_of(lambda x: x.sort(1).values[:, :4]),
    "sorted downwards": sum_of(lambda x: torch.sort(x, dim=1, descending=True)[0][:, :4]),
    "sorted features": sum_of(lambda x: x.sort().values),
    "largest": sum_of(lambda x: x.topk(3, 1).values),
    "smallest": sum_of(lambda x: x.topk(3, 1, largest=False)[0]),
    "padded with ones": sum_of(lambda x: F.pad(x, (0, 0, 0, 2), value=1.0)),
    "padded with numbers": sum_of(lambda x: torch.constant_pad_nd(x, (0, 2), 0.5)),
}
"""Parts whose sum is no part of the sum of the whole."""

pytestmark = pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
SPELLINGS = {**SIMILARITIES, **DISTANCES, **FORMS, **REDUCTIONS, **SUMS_OF_PARTS}


@pytest.mark.parametrize("name", SPELLINGS)
def test_values_are_as_ever(name: str) -> None:
    """Exactly those of the call, up to the order of additions in float64."""
    one, spelled = SPELLINGS[name]
    torch.manual_seed(0)
    model = Pairs(one).double().eval()
    with torch.no_grad():
        expected = model(IMAGES)
        model.compare = spelled
        assert torch.allclose(model(IMAGES), expected, rtol=1e-9)
    model.compare = one
    found = TransformerAttribution(model).explain(IMAGES, 0).output
    assert torch.allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", SPELLINGS)
def test_relevance_is_that_of_the_spelled_out_function(name: str) -> None:
    one, spelled = SPELLINGS[name]
    expected = explained(spelled)
    assert float((explained(one) - expected).abs().max()) < 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize("name", SPELLINGS)
def test_so_is_the_map_of_the_paper(name: str) -> None:
    one, spelled = SPELLINGS[name]
    expected = explained(spelled, TransformerAttribution)
    found = explained(one, TransformerAttribution)
    assert float((found - expected).abs().max()) <= 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize("name", SPELLINGS)
def test_relevance_is_conserved(name: str) -> None:
    assert float((total(SPELLINGS[name][0]) - 1).abs().max()) < 1e-9


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("includes_self", [True, False])
def test_scattered_sums_conserve_and_follow_eq_2(reduce: str, includes_self: bool) -> None:
    """A sum over the tokens of a group, which the same sum written as a matrix product has."""

    def one(u: Tensor, v: Tensor) -> Tensor:
        return u[:, :4].scatter_reduce(1, at(v), v, reduce, include_self=includes_self)

    groups = F.one_hot(INDEX).double().T  # (4, 16)
    count = groups.sum(1)[:, None] + includes_self if reduce == "mean" else 1

    def spelled(u: Tensor, v: Tensor) -> Tensor:
        both = torch.cat([v, u[:, :4]], 1).unsqueeze(1)
        own = torch.eye(4).double() * includes_self
        return (both * torch.cat([groups, own], 1)[..., None]).sum(2) / count

    assert float((total(one) - 1).abs().max()) < 1e-9
    expected = explained(spelled)
    assert float((explained(one) - expected).abs().max()) < 1e-9 * float(expected.abs().max())


def test_a_scattered_product_is_refused_with_its_reduction() -> None:
    with pytest.raises(RuntimeError, match=r"scatter_reduce.*reduce='prod'"):
        explained(put("prod"))


@pytest.mark.parametrize("function", [torch.sign, torch.sgn, Tensor.sign])
def test_signs_are_constants(function: Callable[[Tensor], Tensor]) -> None:
    """Their derivative is 0, so that x · sign x = |x| goes to x alone."""
    found = explained(lambda u, v: (u * function(u)).mean(1))
    expected = explained(lambda u, v: u.abs().mean(1))
    assert float((found - expected).abs().max()) < 1e-9 * float(expected.abs().max())


def test_the_median_of_all_of_an_example() -> None:
    """The examples of a batch are not known behind it, so that there is one."""
    found, expected = (
        TransformerLRP(Pairs(compare).double().eval()).attribute(IMAGES[:1], 0)
        for compare in (_median, lambda u, v: u.flatten(1).sort(1).values[:, 95:96])
        if torch.manual_seed(0)
    )
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def _median(u: Tensor, v: Tensor) -> Tensor:
    return u[0].median().reshape(1, 1)
