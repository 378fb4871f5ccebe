"""Matrix products by oneDNN are those of PyTorch, and are used where they may be."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from captum_transformer_lrp.rules import products

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),
    reason="this PyTorch has no MKL or no oneDNN",
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """What oneDNN has multiplied; it multiplies products of every size."""
    found: list[Tensor] = []

    def counted(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        found.append(by_onednn(x, matrix, bias))
        return found[-1]

    by_onednn = products.by_onednn
    monkeypatch.setattr(products, "by_onednn", counted)
    monkeypatch.setattr(products, "FEWEST_MULTIPLICATIONS", 1)
    monkeypatch.setattr(products, "onednn_uses_more", lambda: True)
    with torch.no_grad():
        yield found


@needs_onednn
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (2, 3, 5, 6), (0, 6)])
@pytest.mark.parametrize("turned", [False, True])
def test_onednn_multiplies_as_pytorch_does(
    calls: list[Tensor], shape: tuple[int, ...], turned: bool
) -> None:
    x = torch.randn(shape)
    matrix = torch.randn(7, 6).t() if turned else torch.randn(6, 7)
    found = products.product(x, matrix)
    assert len(calls) == (x.numel() > 0)
    torch.testing.assert_close(found, x @ matrix, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_memory_of_any_layout(calls: list[Tensor]) -> None:
    x = torch.randn(6, 4, 5).transpose(0, 2)[:, 1:]
    matrix = torch.randn(12, 14)[::2, ::2]
    assert products.product(x, matrix).shape == (5, 3, 7)
    torch.testing.assert_close(calls[0], x @ matrix, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_of_numbers_stay_with_pytorch(calls: list[Tensor], dtype: torch.dtype) -> None:
    x, matrix = torch.randn(5, 6, dtype=dtype), torch.randn(6, 7, dtype=dtype)
    assert torch.equal(products.product(x, matrix), x @ matrix)
    assert not calls


def test_two_types_are_pytorchs_error(calls: list[Tensor]) -> None:
    with pytest.raises(RuntimeError, match="dtype"):
        products.product(torch.randn(5, 6).double(), torch.randn(6, 7))
    assert not calls


def test_gradients_several_targets_and_subclasses_stay_with_pytorch(calls: list[Tensor]) -> None:
    x, matrix = torch.randn(5, 6, requires_grad=True), torch.randn(6, 7)
    with torch.enable_grad():
        products.product(x, matrix).sum().backward()
    assert x.grad is not None
    torch.func.vmap(lambda row: products.product(row, matrix))(torch.randn(3, 5, 6))

    class Other(Tensor):
        pass

    products.product(x.detach().as_subclass(Other), matrix)
    assert not calls


@needs_onednn
def test_parameters_are_multiplied(calls: list[Tensor]) -> None:
    products.product(torch.randn(5, 6), nn.Parameter(torch.randn(6, 7)))
    assert len(calls) == 1
    assert not calls[0].requires_grad


def test_small_products_and_a_user_without_onednn_stay_with_pytorch(
    calls: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, matrix = torch.randn(5, 6), torch.randn(6, 7)
    with torch.backends.mkldnn.flags(enabled=False):
        products.product(x, matrix)
    monkeypatch.setattr(products, "FEWEST_MULTIPLICATIONS", 5 * 6 * 7 + 1)
    products.product(x, matrix)
    assert not calls


@pytest.mark.parametrize(
    ("maker", "instructions", "expected"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX2", False),
        ("GenuineIntel", "AVX512", False),
    ],
)
@pytest.mark.parametrize("linux", [True, False])
def test_onednn_is_for_processors_where_mkl_leaves_instructions_out(
    maker: str,
    instructions: str,
    expected: bool,
    linux: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    about = tmp_path / "cpuinfo"
    if linux:
        about.write_text(f"vendor_id : {maker}\n")
    monkeypatch.setattr(products, "Path", lambda _: about)
    monkeypatch.setattr("platform.processor", lambda: "" if linux else f"Family 25, {maker}")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    assert products.onednn_uses_more.__wrapped__() is expected
