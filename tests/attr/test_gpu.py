"""On a GPU: the same maps as on the processor, and compiled ones as CUDA graphs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from captum_transformer_lrp import TransformerAttribution
from captum_transformer_lrp.attr.compiled import Backend
from captum_transformer_lrp.engine.programs.regions import Program
from tests.attr.methods import METHODS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def vit() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_classes=5
    )
    return model.double().eval()


def images(count: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 32, 32, generator=generator, dtype=torch.float64)


def check(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    expected = expected.cpu()
    error = (found.cpu() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance


strict = pytest.mark.filterwarnings("error:compiled without a CUDA graph")


@strict
@pytest.mark.parametrize("name", [one for one in METHODS if one != "flow"])
def test_a_method_and_its_cuda_graph_explain_as_the_processor_does(name: str) -> None:
    expected = METHODS[name](vit()).attribute(images(seed=1), [3, 1])
    method = METHODS[name](vit().cuda())
    found = method.attribute(images(seed=1).cuda(), [3, 1])
    assert found.is_cuda
    check(found, expected, 1e-6)  # some rules are ill-conditioned
    explain = method.compile(images().cuda(), backend="eager")
    check(explain(images(seed=1).cuda(), [3, 1]), found)


@strict
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_no_python_starts_the_kernels_of_a_graph(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = TransformerAttribution(vit().cuda())
    explain = method.compile(images().cuda(), backend=backend)
    explain(images(seed=3).cuda(), 3)  # where another choice of rows is recorded
    monkeypatch.setattr(Program, "__call__", None)
    found = [explain(images(seed=seed).cuda(), seed) for seed in range(3)]
    for seed, one in enumerate(found):  # no call writes into the results of another
        check(one, method.attribute(images(seed=seed).cuda(), seed))


@strict
def test_shapes_take_turns_in_the_same_memory() -> None:
    method = TransformerAttribution(vit().cuda())
    explain = method.compile(images().cuda(), backend="eager")
    given = [images(count, seed).cuda() for seed in range(2) for count in (1, 2, 3)]
    found = [explain(one, 1) for one in given]
    for one, map_ in zip(given, found, strict=True):
        check(map_, method.attribute(one, 1))


@strict
def test_changed_weights_get_a_graph_of_their_own() -> None:
    model = vit().cuda()
    method = TransformerAttribution(model)
    explain = method.compile(images().cuda(), backend="eager")
    before = explain(images().cuda(), 1)
    with torch.no_grad():
        model.get_parameter("blocks.0.mlp.fc1.weight").mul_(2)
    after = explain(images().cuda(), 1)
    assert not torch.allclose(after, before)
    check(after, method.attribute(images().cuda(), 1))


@strict
def test_threads_with_streams_of_their_own_get_their_own_maps() -> None:
    method = TransformerAttribution(vit().cuda())
    explain = method.compile(images().cuda(), backend="eager")
    given = [images(seed=seed).cuda() for seed in range(16)]
    expected = [method.attribute(one, 1) for one in given]
    torch.cuda.synchronize()

    def explained(one: Tensor) -> Tensor:
        with torch.cuda.stream(torch.cuda.Stream()):
            found = explain(one, 1)
            torch.cuda.current_stream().synchronize()
        return found

    with ThreadPoolExecutor(4) as pool:
        for found, map_ in zip(pool.map(explained, given), expected, strict=True):
            check(found, map_)


def test_arguments_on_the_processor_are_no_constants_of_a_graph() -> None:
    class Moves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = vit().cuda()

        def forward(self, images: Tensor, scale: Tensor) -> Tensor:
            logits: Tensor = self.vit(images * scale)  # a number on the processor
            return logits

    method = TransformerAttribution(Moves())
    one, two = (torch.tensor(value, dtype=torch.float64) for value in (1.0, 0.3))
    with pytest.warns(UserWarning, match="without a CUDA graph.* on cpu and cuda:0"):
        explain = method.compile(images().cuda(), one, backend="eager")
    for scale in (one, two):
        expected = method.attribute(images().cuda(), 1, scale)
        check(explain(images().cuda(), 1, scale), expected)


@strict
def test_a_text_model_with_a_mask_is_a_graph() -> None:
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=2, hidden_size=32, num_attention_heads=4,
                        intermediate_size=64, vocab_size=50)  # fmt: skip
    model = BertForSequenceClassification(config).double().eval().cuda()
    ids, others = torch.randint(5, 50, (2, 2, 9), device="cuda")
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    method = TransformerAttribution(model)
    explain = method.compile(ids, mask, backend="eager")
    check(explain(others, 1, mask), method.attribute(others, 1, mask))
    check(explain(others, 0, mask), method.attribute(others, 0, mask))


def test_what_no_graph_can_hold_is_computed_with_a_warning() -> None:
    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = vit().cuda()

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.vit(images)
            return logits.cpu().cuda()

    method = TransformerAttribution(Waits())
    with pytest.warns(UserWarning, match="without a CUDA graph.* on cpu and cuda:0"):
        explain = method.compile(images().cuda(), backend="eager")
    check(explain(images(seed=1).cuda(), 2), method.attribute(images(seed=1).cuda(), 2))
