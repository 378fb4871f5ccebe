"""Explanations as programs: the same maps as the method's, or a warning and the method's."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from captum.attr import NoiseTunnel
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.overrides import _get_current_function_mode_stack
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    SwinConfig,
    SwinForImageClassification,
)

from captum_transformer_lrp import (
    AttentionFlow,
    AttentionRollout,
    ExplanationError,
    TransformerAttribution,
    TransformerLRP,
)
from captum_transformer_lrp.attr.compiled import CompiledAttribution
from captum_transformer_lrp.attr.given import Given
from captum_transformer_lrp.engine.graph.arguments import tensors_in
from captum_transformer_lrp.engine.programs.graphs import copied
from captum_transformer_lrp.engine.programs.regions import Program, as_it_is
from captum_transformer_lrp.rules.decisions import decisions
from tests.attr.methods import METHODS
from tests.sweep import timm_models, transformers_models

MOST_NODES = "captum_transformer_lrp.engine.programs.regions.MOST_NODES"


def vit(depth: int = 2) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=depth, num_classes=5
    )
    return model.double().eval()


def images(*size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(size or (2, 3, 32, 32)), generator=generator, dtype=torch.float64)


def equal(found: Any, expected: Any) -> bool:
    return torch.allclose(found, expected, rtol=1e-10, atol=1e-13)


@pytest.fixture(scope="module")
def method() -> TransformerAttribution:
    return TransformerAttribution(vit())


@pytest.fixture(scope="module")
def explain(method: TransformerAttribution) -> CompiledAttribution:
    return method.compile(images(), backend="eager")


QUICK = ("transformer_attribution", "rollout", "attnlrp")


def quickly(names: Iterable[str], quick: Collection[str]) -> list[Any]:
    """Names, of which all but a few are slow ones."""
    return [pytest.param(one, marks=[] if one in quick else [pytest.mark.slow]) for one in names]


@pytest.mark.parametrize("name", quickly([one for one in METHODS if one != "flow"], QUICK))
def test_a_compiled_method_explains_other_inputs_as_the_method_does(name: str) -> None:
    method = METHODS[name](vit())
    explain = method.compile(images(), backend="eager")
    other = images(seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = explain(other, [3, 1])
    assert equal(found, method.attribute(other, [3, 1]))


@pytest.mark.parametrize("target", [None, 3, -1, [4, 0], torch.tensor([2, 1]), torch.tensor(2)])
def test_targets_are_inputs_of_the_program(
    method: TransformerAttribution, explain: CompiledAttribution, target: Any
) -> None:
    assert equal(explain(images(seed=1), target), method.attribute(images(seed=1), target))


@pytest.mark.parametrize("target", [5, -6, [1, 2, 3], "cat", 1.5])
def test_a_target_that_there_is_not_is_the_method_s_error(
    method: TransformerAttribution, explain: CompiledAttribution, target: Any
) -> None:
    with pytest.raises(ValueError, match="target") as expected:
        method.attribute(images(), target)
    with pytest.raises(ValueError, match="target") as found:
        explain(images(), target)
    assert str(found.value) == str(expected.value)


def test_a_function_is_explained_by_the_method() -> None:
    method = TransformerLRP(vit(), preset="attnlrp")
    explain = method.compile(images(), backend="eager")

    def difference(logits: Tensor) -> Tensor:
        return logits[:, 1] - logits[:, 0]

    assert equal(explain(images(), difference), method.attribute(images(), difference))


@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "token"},
        pytest.param({"granularity": "matrix"}, marks=pytest.mark.slow),
        pytest.param({"keep_identity": True}, marks=pytest.mark.slow),
        pytest.param({"start_layer": 1}, marks=pytest.mark.slow),
        pytest.param({"row_normalize": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_options_are_those_of_attribute(options: dict[str, Any]) -> None:
    method = TransformerAttribution(vit())
    explain = method.compile(images(), backend="eager", **options)
    assert equal(explain(images(seed=1), 1), method.attribute(images(seed=1), 1, **options))


@pytest.mark.slow
def test_a_batch_of_another_size_is_recorded_when_it_comes(
    method: TransformerAttribution, explain: CompiledAttribution
) -> None:
    other = images(3, 3, 32, 32, seed=1)
    assert equal(explain(other, 1), method.attribute(other, 1))


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=20, hidden_size=16, num_labels=3, **sizes)
    return BertForSequenceClassification(config).double().eval()


def test_texts_may_have_other_masks() -> None:
    method = TransformerAttribution(bert())
    ids = torch.tensor([[2, 5, 6, 7], [2, 9, 8, 7]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    explain = method.compile(ids, {"attention_mask": mask}, backend="eager")
    other, of_other = ids.flip(1), {"attention_mask": mask.flip(0)}
    assert equal(explain(other, 1, of_other), method.attribute(other, 1, of_other))


@pytest.mark.slow
def test_a_token_of_a_language_model_is_a_target() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    method = TransformerLRP(GPT2LMHeadModel(config).double().eval(), preset="attnlrp")
    ids = torch.randint(0, 20, (2, 6))
    explain = method.compile(ids, backend="eager")
    for target in [(5, 3), [(2, 0), (-1, -1)]]:
        assert equal(explain(ids.flip(1), target), method.attribute(ids.flip(1), target))


class Branching(nn.Module):
    """A model that reads values in Python."""

    def __init__(self, read: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.model = vit()
        self.read = read

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(pixels * 2 if self.read(pixels) else pixels)
        return logits


READS: dict[str, Callable[[Tensor], bool]] = {
    "bool": lambda x: bool(x.mean() > 0),
    "item": lambda x: (x > 0).sum().item() > x.numel() / 2,
    "tolist": lambda x: sum(x.sign().flatten().tolist()) > 0,
    "numpy": lambda x: bool((x.detach().sign().numpy() > 0).mean() > 0.5),
    "equal": lambda x: not torch.equal(x.mean().sign(), -torch.ones_like(x.mean())),
    "nonzero": lambda x: len((x > 0).nonzero()) > x.numel() / 2,
    "masked": lambda x: len(x[x > 0]) > x.numel() / 2,
    "unique": lambda x: (x.mean() > 0).to(torch.int64).unique().tolist() == [1],
}


@pytest.mark.parametrize("name", quickly(READS, ("bool",)))
def test_an_input_that_takes_another_branch_is_explained_by_the_method(name: str) -> None:
    """Without the check, the graph of the first branch would explain it."""
    method = TransformerAttribution(Branching(READS[name]))
    bright, dark = images() + 1, images() - 1
    explain = method.compile(bright, backend="eager")
    with pytest.warns(UserWarning, match=r"test_compiled.py, line \d+ decides otherwise"):
        found = explain(dark, 1)
    assert equal(found, method.attribute(dark, 1))
    assert not equal(found, method.attribute(bright, 1))


@pytest.mark.slow
def test_another_input_of_the_same_branch_needs_no_warning() -> None:
    method = TransformerAttribution(Branching(READS["bool"]))
    explain = method.compile(images() + 1, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = explain(images(seed=1) + 1, 1)
    assert equal(found, method.attribute(images(seed=1) + 1, 1))


def test_what_is_no_number_is_refused_as_by_the_method(explain: CompiledAttribution) -> None:
    with pytest.warns(UserWarning, match="decides"), pytest.raises(ValueError, match="NaN"):
        explain(images() * torch.nan, 1)


class ReadsMemory(Branching):
    """A model that scales its input by its first value, which it reads in the memory itself."""

    def forward(self, pixels: Tensor) -> Tensor:
        memory = ctypes.string_at(pixels.data_ptr(), pixels.element_size())
        logits: Tensor = self.model(
            pixels * torch.frombuffer(bytearray(memory), dtype=pixels.dtype)
        )
        return logits


def test_what_would_be_a_constant_of_the_graph_shows_with_other_inputs() -> None:
    with pytest.raises(ExplanationError, match="another map than the method"):
        TransformerAttribution(ReadsMemory(bool)).compile(images(), backend="eager")


class Counting(nn.Module):
    """A model that writes into a buffer of its own, and makes a module in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.model = vit()
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, pixels: Tensor) -> Tensor:
        before = pixels + self.calls
        self.calls += 1
        scale = nn.LayerNorm(32).double()
        logits: Tensor = self.model(scale(before * self.calls))
        return logits


def test_writes_into_a_buffer_are_recorded_and_undone() -> None:
    model = Counting().eval()
    method = TransformerAttribution(model)
    explain = method.compile(images(), backend="eager")
    for _ in range(2):
        assert equal(explain(images(seed=1), 1), method.attribute(images(seed=1), 1))
    assert model.calls == 0


def shaken(graph: GraphModule) -> GraphModule:
    return copied(graph, lambda one: one * 1.5 if one.is_floating_point() else one)


@pytest.mark.parametrize("unstable", [False, True])
@pytest.mark.parametrize("of_ids", [False, True])
def test_a_compiler_is_no_more_precise_than_the_method(
    unstable: bool, of_ids: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What differs is refused, unless the last bit of the weights moves the map as much."""

    def wrong(graph: Any, like: Any) -> Any:
        return lambda *given: [
            one * 1.01 if one.is_floating_point() else one for one in graph(*given)
        ]

    method = TransformerAttribution(bert() if of_ids else vit())
    example = torch.tensor([[2, 5, 6, 7], [2, 9, 8, 7]]) if of_ids else images()
    monkeypatch.setattr("captum_transformer_lrp.attr.compiled.by_inductor", wrong)
    if unstable:
        monkeypatch.setattr("captum_transformer_lrp.attr.compiled.nudged", shaken)
        method.compile(example)
    else:
        with pytest.raises(ExplanationError, match="another map than the method"):
            method.compile(example)


class Unfinished(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError("write me")


def test_an_error_of_the_model_stays_what_it_is() -> None:
    with pytest.raises(NotImplementedError, match="write me"):
        TransformerAttribution(Unfinished()).compile(images(), backend="eager")


@pytest.mark.slow
def test_an_export_leaves_what_is_compiled(explain: CompiledAttribution, tmp_path: Path) -> None:
    explain(images(), 1)
    before = list(explain._recorded.values())
    explain.export(tmp_path / "explainer.pt2")
    assert list(map(id, explain._recorded.values())) == list(map(id, before))


def test_a_model_that_cannot_be_explained_cannot_be_compiled() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3072, 5)).double()
    with pytest.raises(ExplanationError, match="attention"):
        TransformerAttribution(plain).compile(images(), backend="eager")


def trained(model: nn.Module) -> None:
    with torch.no_grad():
        model.head.weight.mul_(-1)


def loaded(model: nn.Module) -> None:
    model.load_state_dict({name: one * 1.1 for name, one in model.state_dict().items()})


def replaced(model: nn.Module) -> None:
    model.head.weight = nn.Parameter(model.head.weight.detach() * 1.5 + 0.1)


def another_head(model: nn.Module) -> None:
    torch.manual_seed(1)
    model.reset_classifier(4)
    model.double()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(trained, marks=pytest.mark.slow),
        loaded,
        pytest.param(replaced, marks=pytest.mark.slow),
        pytest.param(another_head, marks=pytest.mark.slow),
    ],
)
def test_changed_weights_are_seen(change: Callable[[nn.Module], None]) -> None:
    model = vit()
    method = TransformerAttribution(model)
    explain = method.compile(images(), backend="eager")
    before = explain(images(), 1)
    change(model)
    assert equal(explain(images(), 1), method.attribute(images(), 1))
    assert not equal(explain(images(), 1), before)


@pytest.mark.slow
def test_noise_tunnel_takes_it(
    method: TransformerAttribution, explain: CompiledAttribution
) -> None:
    found = []
    for one in (explain, method):
        torch.manual_seed(0)
        found.append(NoiseTunnel(one).attribute(images(), target=1, nt_samples=2, stdevs=0.1))
    assert equal(*found)


def test_nothing_is_left_on_the_model_or_in_the_thread() -> None:
    model = vit()
    before = [(id(one), one._version) for one in model.parameters()]
    explain = TransformerAttribution(model).compile(images(), backend="eager")
    explain(images(), 1)
    assert [(id(one), one._version) for one in model.parameters()] == before
    assert all(one.requires_grad and one.grad is None for one in model.parameters())
    assert decisions() is None
    assert not _get_current_function_mode_stack()


def test_inputs_may_be_laid_out_in_any_way_and_want_a_gradient(
    method: TransformerAttribution, explain: CompiledAttribution
) -> None:
    turned = images(seed=1).transpose(2, 3).requires_grad_()
    found = explain(turned, 1)
    assert equal(found, method.attribute(turned, 1))
    assert not found.requires_grad


@pytest.mark.parametrize(
    "mode", [pytest.param(torch.no_grad, marks=pytest.mark.slow), torch.inference_mode]
)
def test_any_mode_of_autograd_is_fine(mode: Any, method: TransformerAttribution) -> None:
    with mode():
        explain = method.compile(images(), backend="eager")
        found = explain(images(seed=1), 1)
    assert equal(found, method.attribute(images(seed=1), 1))


@pytest.mark.slow
def test_a_model_of_half_precision_is_computed_as_by_the_method() -> None:
    method = TransformerAttribution(vit().bfloat16())
    pixels = images().bfloat16()
    explain = method.compile(pixels, backend="eager")
    found, expected = explain(pixels.flip(0), 1), method.attribute(pixels.flip(0), 1)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [4, 8])
def test_blocks_that_repeat_are_compiled_once(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the depth needs as many compilations."""
    monkeypatch.setattr(MOST_NODES, 0)
    method = TransformerAttribution(vit(depth))
    explain = method.compile(images(), backend="eager")
    recorded = explain._for_shapes(Given.of(images(), None))
    parts: list[int] = []

    def compiler(graph: Any, like: Any) -> Any:
        parts.append(len(graph.graph.nodes))
        return as_it_is(graph, like)

    index = torch.full((len(images()),), -1)
    program = Program(recorded.trace.graph, [images(), index], compiler)
    tensors = [images(seed=1), torch.tensor([1, 2])]
    for found, expected in zip(program(*tensors), recorded.trace.graph(*tensors), strict=True):
        assert torch.equal(found, expected)
    assert 1 < len(parts) <= 12


@pytest.mark.slow
def test_windows_are_compiled_too() -> None:
    torch.manual_seed(0)
    config = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 2],
                        window_size=4, num_labels=5)  # fmt: skip
    method = TransformerAttribution(SwinForImageClassification(config).double().eval())
    explain = method.compile(images(), backend="eager")
    assert equal(explain(images(seed=1), 1), method.attribute(images(seed=1), 1))


def test_flow_is_solved_by_no_operation_of_pytorch() -> None:
    with pytest.raises(ExplanationError, match="not made by PyTorch's operations alone"):
        AttentionFlow(vit()).compile(images(), backend="eager")


def test_bad_arguments_are_named(method: TransformerAttribution) -> None:
    with pytest.raises(ValueError, match=r"backend must be one of .*, found 'fast'"):
        method.compile(images(), backend="fast")
    with pytest.raises(TypeError, match="granularty"):
        method.compile(images(), backend="eager", granularty="token")


LOADED = """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
pixels, target = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save((program(pixels, target), program(pixels * torch.nan, target)), sys.argv[2])
print(sorted(name for name in ("captum", "timm", "transformers") if name in sys.modules))
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", [AttentionRollout, TransformerAttribution, TransformerLRP])
def test_an_exported_program_needs_pytorch_alone(method: Any, tmp_path: Path) -> None:
    attribution = method(vit())
    program, values = tmp_path / "explainer.pt2", tmp_path / "values.pt"
    attribution.compile(images()[:1], backend="eager").export(program)
    torch.save((images(seed=1), torch.tensor([4, -1])), values)
    ran = subprocess.run([sys.executable, "-c", LOADED, program, values], capture_output=True,
                         text=True, check=True, cwd=tmp_path)  # fmt: skip
    assert ran.stdout.strip() == "[]"
    found, of_nothing = torch.load(values)
    expected = [attribution.attribute(images(seed=1), target) for target in (4, None)]
    assert equal(found, torch.stack([expected[0][0], expected[1][1]]))
    assert bool(of_nothing.isnan().all())


@pytest.mark.slow
def test_an_exported_program_says_nan_where_python_would_take_another_branch(
    tmp_path: Path,
) -> None:
    method = TransformerAttribution(Branching(READS["bool"]))
    explain = method.compile(images() + 1, backend="eager")
    explain.export(tmp_path / "explainer.pt2", dynamic_batch=False)
    program = torch.export.load(tmp_path / "explainer.pt2").module()
    target = torch.tensor([1, 1])
    bright = program(images(seed=1) + 1, target)
    assert equal(bright, method.attribute(images(seed=1) + 1, 1))
    assert bool(program(images() - 1, target).isnan().all())


@pytest.mark.slow
def test_an_exported_program_takes_batches_of_any_size(tmp_path: Path) -> None:
    method = TransformerAttribution(vit())
    explain = method.compile(images()[:1], backend="eager")
    explain.export(tmp_path / "explainer.pt2")
    program = torch.export.load(tmp_path / "explainer.pt2").module()
    for count in (1, 2, 3, 7):
        pixels = torch.cat([images(seed=seed) for seed in range(4)])[:count]
        found = program(pixels, torch.full((count,), 1))
        assert equal(found, method.attribute(pixels, 1))


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_an_exported_program_takes_shorter_texts(masked: bool, tmp_path: Path) -> None:
    method = TransformerAttribution(bert())

    def text(count: int, length: int) -> tuple[Tensor, Tensor]:
        ids = torch.randint(0, 20, (count, length))
        mask = torch.ones_like(ids)
        mask[0, -2:] = 0
        return ids, mask

    ids, mask = text(2, 9)
    explain = method.compile(ids, mask if masked else None, backend="eager")
    explain.export(tmp_path / "explainer.pt2", dynamic_tokens=True)
    program = torch.export.load(tmp_path / "explainer.pt2").module()
    for count, length in ((1, 5), (3, 8), (2, 9), (4, 3)):
        ids, mask = text(count, length)
        target = torch.full((count,), 1)
        found = program(ids, mask, target) if masked else program(ids, target)
        assert equal(found, method.attribute(ids, 1, mask if masked else None))


BY_SIZE: dict[str, Callable[[Tensor], bool]] = {
    "every size": lambda x: len(x) > 2,
    r"\(4, 3, 32, 32\)": lambda x: len(x) > 3,
    "decides otherwise for inputs of another size": lambda x: bool(
        ((x != 0).sum() - 7500).abs() < 2000  # two or three pictures
    ),
}


@pytest.mark.parametrize("message", BY_SIZE)
def test_a_batch_that_is_explained_otherwise_is_no_batch_of_any_size(
    message: str, tmp_path: Path
) -> None:
    """The branch shows in one of the sizes that are recorded, or in one that is tried."""
    explain = TransformerAttribution(Branching(BY_SIZE[message])).compile(images(), backend="eager")
    with pytest.raises(ExplanationError, match=message):
        explain.export(tmp_path / "explainer.pt2")
    assert not list(tmp_path.iterdir())


class Padding(nn.Module):
    """A model that computes with parts of four tokens each."""

    def __init__(self) -> None:
        super().__init__()
        self.model = bert()

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(nn.functional.pad(ids, (0, -ids.shape[1] % 4)))
        return logits


@pytest.mark.parametrize("length", [8, 9, 10, 11])
def test_a_length_that_is_explained_otherwise_is_no_length_of_any_size(
    length: int, tmp_path: Path
) -> None:
    ids = torch.randint(0, 20, (2, length))
    explain = TransformerAttribution(Padding()).compile(ids, backend="eager")
    with pytest.raises((ExplanationError, RuntimeError)):
        explain.export(tmp_path / "explainer.pt2", dynamic_tokens=True)
    assert not list(tmp_path.iterdir())


def test_pixels_are_no_tokens(explain: CompiledAttribution, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(N, T, D\).*found .* \(2, 3, 32, 32\)"):
        explain.export(tmp_path / "explainer.pt2", dynamic_tokens=True)


def test_onnx_computes_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="ONNX needs onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime runs the file")
    method = TransformerAttribution(vit().float())
    pixels = images().float()
    method.compile(pixels, backend="eager").export(tmp_path / "explainer.onnx")
    session = runtime.InferenceSession(tmp_path / "explainer.onnx")
    for count in (1, 2, 5):
        other = images(seed=1).float()[torch.arange(count) % 2]
        targets = torch.arange(count) % 3
        (found,) = session.run(None, {"input_0": other.numpy(), "target": targets.numpy()})
        expected = method.attribute(other, targets)
        rounding = 1e-5 * expected.abs().max().item()
        assert torch.allclose(torch.tensor(found), expected, atol=rounding)


def test_bad_file_names_are_named(
    explain: CompiledAttribution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"must end in one of .*found .*explainer.pth"):
        explain.export(tmp_path / "explainer.pth")
    monkeypatch.setattr("captum_transformer_lrp.engine.programs.export.find_spec", lambda _: None)
    with pytest.raises(ImportError, match="pip install onnxscript"):
        explain.export(tmp_path / "explainer.onnx")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="Inductor needs a C++ compiler")
@pytest.mark.parametrize(
    "method", [TransformerAttribution, partial(TransformerLRP, preset="attnlrp")]
)
@pytest.mark.parametrize(
    ("fewest", "most"), [(1, 0), (10**9, 10**9)], ids=["oneDNN, in parts", "MKL, whole"]
)
def test_inductor_computes_the_same(
    method: Any, fewest: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captum_transformer_lrp.rules.products.onednn_uses_more", lambda: True)
    monkeypatch.setattr("captum_transformer_lrp.rules.products.FEWEST_MULTIPLICATIONS", fewest)
    monkeypatch.setattr(MOST_NODES, most)
    model = vit(4).float()
    attribution = method(model)
    explain = attribution.compile(images().float())
    other = images(seed=1).float()
    found, expected = explain(other, [1, 2]), attribution.attribute(other, [1, 2])
    assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max().item())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="Inductor needs a C++ compiler")
def test_inductor_computes_a_language_model_with_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache joins keys to an empty tensor, whose layout Inductor computes otherwise."""
    monkeypatch.setattr(MOST_NODES, 0)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=3, n_head=2)
    method = TransformerLRP(GPT2LMHeadModel(config).eval(), preset="attnlrp")
    ids = torch.randint(0, 20, (2, 6))
    explain = method.compile(ids)
    found, expected = explain(ids.flip(1), (5, 3)), method.attribute(ids.flip(1), (5, 3))
    assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max().item())


@pytest.mark.slow
def test_inductor_needs_a_compiler() -> None:
    from torch._inductor import config
    from torch._inductor.utils import fresh_cache

    with (
        fresh_cache(),
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ExplanationError, match=r"No working C\+\+ compiler.*backend=\"eager\""),
    ):
        AttentionRollout(vit(1)).compile(images())


ARCHITECTURES = [
    *((timm_models, name)
      for name in ("test_vit", "test_vit3", "pit_ti_224", "xcit_nano_12_p16_224", "levit_128s",
                   "cait_xxs24_224", "swin_tiny_patch4_window7_224")),
    *((transformers_models, name)
      for name in ("albert", "bert", "deberta-v2", "distilbert", "clip: image classification",
                   "gpt2", "llama", "qwen2", "t5", "swin: image classification",
                   "segformer: image classification")),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("suite", "name"), ARCHITECTURES)
def test_architectures_compile(suite: Any, name: str) -> None:
    """The graph of one input is that of another; what is random in a float is drawn again."""
    entry = next(one for one in suite.entries() if one.name == name)
    torch.manual_seed(0)
    case = suite.build(entry)
    method = TransformerAttribution(case.forward or case.model)
    given = case.inputs if isinstance(case.inputs, tuple) else (case.inputs,)
    other = tuple(torch.randn_like(one) if one.is_floating_point() else one for one in given)
    inputs = other if isinstance(case.inputs, tuple) else other[0]
    explain = method.compile(case.inputs, case.additional_forward_args, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = explain(inputs, case.target, case.additional_forward_args)
    expected = method.attribute(inputs, case.target, case.additional_forward_args)
    for one, of_method in zip(tensors_in(found), tensors_in(expected), strict=True):
        assert equal(one, of_method)
