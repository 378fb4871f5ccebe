"""What cannot be explained is said in one sentence, with what to do about it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_transformer_lrp import (
    ExplanationError,
    NoAttentionError,
    TransformerAttribution,
    UnsupportedOperationError,
)

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()


class Classifier(nn.Module):
    """One attention; ``inside`` is applied to the tokens before it."""

    def __init__(self, inside: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.inside = inside
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = self.inside(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))


def classifier(inside: nn.Module | Callable[[Tensor], Tensor] = nn.Identity()) -> Classifier:  # noqa: B008
    torch.manual_seed(0)
    return Classifier(inside).double().eval()


# -- operations without a rule ------------------------------------------------------------------


class SpectralMixing(nn.Module):
    """Mixes tokens by a product that no Transformer rule is about."""

    def forward(self, x: Tensor) -> Tensor:
        shifted = x.roll(1, 1)
        return torch.linalg.cross(x.unflatten(-1, (4, 3)), shifted.unflatten(-1, (4, 3))).flatten(2)


class CumulativeProduct(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumprod(x, 1)


@pytest.mark.parametrize(
    ("module", "call"),
    [(SpectralMixing(), "linalg_cross"), (CumulativeProduct(), "cumprod")],
    ids=["cross product", "cumulative product"],
)
def test_an_operation_without_a_rule_is_named_with_its_module(module: nn.Module, call: str) -> None:
    attribution = TransformerAttribution(classifier(module))
    with pytest.raises(UnsupportedOperationError) as error:
        attribution.attribute(IMAGES, 1)
    message = str(error.value)
    assert call in message
    assert "inside" in message  # the module's name in the model
    assert "register_rule" in message
    assert "module.rule" in message
    assert "strict=False" in message


@pytest.mark.parametrize("module", [SpectralMixing(), CumulativeProduct()], ids=["cross", "prod"])
def test_without_strictness_it_follows_eq_2(module: nn.Module) -> None:
    """Eq. 2 conserves nothing by itself for such operations, but above it all is as ever."""
    attribution = TransformerAttribution(classifier(module), strict=False)
    explanation = attribution.explain(IMAGES, 1)
    assert bool(explanation.attributions.isfinite().all())
    assert bool((explanation.attributions >= 0).all())
    assert explanation.total.isfinite().all()
    with torch.no_grad():
        expected = attribution.forward_func(IMAGES)
    assert torch.allclose(explanation.output, expected, rtol=1e-9, atol=1e-12)


def test_without_strictness_a_degree_one_operation_conserves() -> None:
    """By Euler's theorem eq. 2 conserves where f(λx) = λ f(x), as for a sum over pairs / x."""

    def inside(x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(torch.stack([x, 2 * x]), dim=0)

    attribution = TransformerAttribution(classifier(inside), strict=False)
    total = attribution.explain(IMAGES, 1).total
    assert float((total - 1).abs().max()) < 1e-9


def test_without_strictness_examples_do_not_touch_each_other() -> None:
    """An operation that changes shapes: its mass is shared out for each example by itself."""

    def inside(x: Tensor) -> Tensor:
        return torch.kron(x.contiguous(), torch.ones(1, 1, 2).double())[..., ::2]

    method = TransformerAttribution(classifier(inside), strict=False)
    singles = [method.attribute(IMAGES[one : one + 1], 1) for one in range(len(IMAGES))]
    found = method.attribute(IMAGES, 1)
    assert float((found - torch.cat(singles)).abs().max()) < 1e-9 * float(found.max())


def test_supported_models_need_no_strictness_to_be_off(vit_case: Any) -> None:
    found = TransformerAttribution(vit_case.model, strict=False).attribute(vit_case.inputs, 1)
    assert torch.equal(found, vit_case.attribute())


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(2 * x.detach().numpy())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


class CustomDoubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Doubling.apply(x)


@pytest.mark.parametrize("strict", [True, False])
def test_a_custom_function_that_leaves_pytorch_is_named(strict: bool) -> None:
    """Nobody is told what it computes, so relevance would silently pass it by."""
    attribution = TransformerAttribution(classifier(CustomDoubling()), strict=strict)
    with pytest.raises(UnsupportedOperationError, match=r"Doubling.*PyTorch functions"):
        attribution.attribute(IMAGES, 1)


# -- models -------------------------------------------------------------------------------------


def test_a_model_without_attention_is_sent_elsewhere() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.GELU(), nn.Linear(8, 4))
    with pytest.raises(NoAttentionError, match=r"no softmax attention.*captum"):
        TransformerAttribution(model.double()).attribute(IMAGES, 1)


def test_a_softmax_that_is_no_attention_does_not_count() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.Softmax(-1), nn.Linear(8, 4))
    with pytest.raises(NoAttentionError, match=r"no softmax attention"):
        TransformerAttribution(model.double()).attribute(IMAGES, 1)


class WithDropout(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x)


def test_active_dropout_is_an_error() -> None:
    model = classifier(WithDropout(0.1)).train()
    with pytest.raises(
        ExplanationError, match=r"inside\.dropout.*at random.*0\.1.*model\.eval\(\)"
    ):
        TransformerAttribution(model).attribute(IMAGES, 1)
    assert model.training


def test_active_dropout_in_fused_attention_is_an_error() -> None:
    model = classifier().train()
    model.attention.dropout = 0.1
    with pytest.raises(ExplanationError, match=r"attention.*at random.*model\.eval\(\)"):
        TransformerAttribution(model).attribute(IMAGES, 1)


def test_training_mode_without_active_dropout_is_fine() -> None:
    model = classifier(WithDropout(0.0))
    expected = TransformerAttribution(model).attribute(IMAGES, 1)
    found = TransformerAttribution(model.train()).attribute(IMAGES, 1)
    assert torch.equal(found, expected)
    assert model.training


class BatchNormalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


def test_batch_normalisation_in_training_mode_is_an_error_and_counts_nothing() -> None:
    model = classifier(BatchNormalized()).train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ExplanationError, match=r"inside\.norm.*model\.eval\(\)"):
        TransformerAttribution(model).attribute(IMAGES, 1)
    after = model.state_dict()
    assert after["inside.norm.num_batches_tracked"] == 0
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_batch_normalisation_in_eval_mode_conserves() -> None:
    total = TransformerAttribution(classifier(BatchNormalized())).explain(IMAGES, 1).total
    assert float((total - 1).abs().max()) < 1e-9


def test_a_quantised_model_is_an_error() -> None:
    quantization = pytest.importorskip("torch.ao.quantization")
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build of PyTorch has no quantised kernels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = quantization.quantize_dynamic(classifier().float(), {nn.Linear}, torch.qint8)
    with pytest.raises(ExplanationError, match=r"head.*quantised.*floating-point model"):
        TransformerAttribution(model).attribute(IMAGES.float(), 1)


def test_a_torchscript_model_is_an_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.trace(classifier(), IMAGES, check_trace=False)
    with pytest.raises(ExplanationError, match=r"TorchScript"):
        TransformerAttribution(model).attribute(IMAGES, 1)


@pytest.mark.parametrize("decompose", [False, True])
def test_an_exported_program_is_an_error(*, decompose: bool) -> None:
    program = torch.export.export(classifier(), (IMAGES,))
    program = program.run_decompositions() if decompose else program
    with pytest.raises(ExplanationError, match=r"is an exported program"):
        TransformerAttribution(program.module()).attribute(IMAGES, 1)


def test_a_model_that_gives_nan_is_an_error() -> None:
    model = classifier()
    nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(ExplanationError, match=r"output contains NaN"):
        TransformerAttribution(model).attribute(IMAGES, 1)


def test_a_model_that_detaches_is_an_error() -> None:
    model = classifier()
    with pytest.raises(ExplanationError, match=r"does not depend on the inputs.*detached"):
        TransformerAttribution(lambda images: model(images).detach()).attribute(IMAGES, 1)


def test_a_model_that_switches_gradients_off_is_explained_all_the_same() -> None:
    model = classifier()
    expected = TransformerAttribution(model).attribute(IMAGES, 1)
    found = TransformerAttribution(torch.no_grad()(model.forward)).attribute(IMAGES, 1)
    assert torch.equal(found, expected)


def test_a_model_that_returns_no_logits_is_an_error() -> None:
    model = classifier()
    with pytest.raises(TypeError, match=r"returned.*features.*logits"):
        TransformerAttribution(lambda x: {"features": model(x)}).attribute(IMAGES, 1)
    with pytest.raises(TypeError, match=r"returned str.*logits"):
        TransformerAttribution(lambda x: "cat").attribute(IMAGES, 1)


def test_an_output_without_the_batch_is_an_error() -> None:
    model = classifier()
    with pytest.raises(ValueError, match=r"first dimension must be the batch"):
        TransformerAttribution(lambda x: model(x)[0]).attribute(IMAGES, 1)


@pytest.mark.parametrize(
    "noise",
    [
        torch.randn_like,
        torch.rand_like,
        lambda x: torch.randn(x.shape).double(),
        lambda x: torch.empty_like(x).normal_(),
        lambda x: torch.bernoulli(torch.full(x.shape, 0.5).double()),
    ],
    ids=["randn_like", "rand_like", "randn", "normal_", "bernoulli"],
)
def test_noise_in_the_forward_pass_is_an_error(noise: Callable[[Tensor], Tensor]) -> None:
    model = classifier(lambda x: x + noise(x))
    with pytest.raises(ExplanationError, match=r"random"):
        TransformerAttribution(model).attribute(IMAGES, 1)


# -- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [4, -5, [0, 4], torch.tensor([7, 0]), (4,)], ids=str)
def test_a_target_out_of_range_is_an_error(target: Any) -> None:
    with pytest.raises(ValueError, match=r"out of range.*4 values, 0 to 3"):
        TransformerAttribution(classifier()).attribute(IMAGES, target)


@pytest.mark.parametrize(
    "target", [[1], [1, 2, 3], [], torch.tensor([1, 2, 3]), torch.tensor([[1, 2]])], ids=str
)
def test_a_target_of_the_wrong_length_is_an_error(target: Any) -> None:
    with pytest.raises(ValueError, match=r"2 examples"):
        TransformerAttribution(classifier()).attribute(IMAGES, target)


@pytest.mark.parametrize(
    "target", ["cat", 1.0, True, torch.tensor([0.0, 1.0]), [1.0, 0.0], {"class": 1}], ids=str
)
def test_a_target_of_the_wrong_type_is_an_error(target: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"target"):
        TransformerAttribution(classifier()).attribute(IMAGES, target)


@pytest.mark.parametrize("target", [(1, 2), [(0, 1), (2, 3)]], ids=str)
def test_a_target_of_the_wrong_depth_is_an_error(target: Any) -> None:
    with pytest.raises(ValueError, match=r"2 index.*needs 1 for each example"):
        TransformerAttribution(classifier()).attribute(IMAGES, target)


def test_an_output_of_three_dimensions_needs_a_target() -> None:
    model = classifier()
    attribution = TransformerAttribution(lambda x: model(x).unsqueeze(1))
    with pytest.raises(ValueError, match=r"\(2, 1, 4\).*target=\(position, class_index\)"):
        attribution.attribute(IMAGES)
    with pytest.raises(ValueError, match=r"needs 2 for each example"):
        attribution.attribute(IMAGES, 1)


def test_one_value_for_each_example_has_no_targets() -> None:
    model = classifier()
    with pytest.raises(ValueError, match=r"one value for each example.*no target"):
        TransformerAttribution(lambda x: model(x)[:, 0]).attribute(IMAGES, 1)


def test_every_target_of_several_is_checked() -> None:
    with pytest.raises(ValueError, match=r"out of range"):
        TransformerAttribution(classifier()).attribute_targets(IMAGES, [0, 9])


# -- inputs -------------------------------------------------------------------------------------


def test_integer_images_are_an_error() -> None:
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"image\.float\(\) / 255"):
        TransformerAttribution(classifier()).attribute(images, 1)


def test_a_batch_of_zero_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no examples.*\(0, 3, 32, 32\)"):
        TransformerAttribution(classifier()).attribute(IMAGES[:0], 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite_are_an_error(value: float) -> None:
    images = IMAGES.clone()
    images[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match=r"inputs contains NaN or infinite values"):
        TransformerAttribution(classifier()).attribute(images, 1)


def test_inputs_that_are_no_tensor_are_an_error() -> None:
    with pytest.raises((TypeError, AssertionError), match=r"(?i)tensor"):
        TransformerAttribution(classifier()).attribute(IMAGES.numpy(), 1)


def test_a_scalar_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no batch dimension.*unsqueeze"):
        TransformerAttribution(classifier()).attribute(torch.tensor(1.0), 1)


def test_inputs_of_different_batches_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"input 1 has 1 examples, but input 0 has 2"):
        TransformerAttribution(classifier()).attribute((IMAGES, IMAGES[:1]), 1)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64], ids=str)
def test_inputs_of_a_dtype_that_has_no_relevance_are_an_error(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"must be float, or integer token ids"):
        TransformerAttribution(classifier()).attribute(IMAGES.to(dtype), 1)


def test_an_integer_input_that_no_embedding_looks_up_is_an_error() -> None:
    model = classifier()

    def forward(images: Tensor, offset: Tensor) -> Tensor:
        return model(images) + offset

    inputs = (IMAGES, torch.ones(2, 1, dtype=torch.long))
    with pytest.raises(ExplanationError, match=r"input 1.*additional_forward_args"):
        TransformerAttribution(forward).attribute(inputs, 1)


# -- models that change themselves --------------------------------------------------------------


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(2, 16, 12).double())

    def forward(self, x: Tensor) -> Tensor:
        self.last.copy_(x)
        return x


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("module", [Counting, Remembering], ids=["count", "activation"])
def test_a_model_that_writes_its_buffers_is_explained_and_left_as_it_is(
    module: Callable[[], nn.Module], strict: bool
) -> None:
    model = classifier(module())
    before = copy.deepcopy(model.state_dict())
    found = TransformerAttribution(model, strict=strict).attribute(IMAGES, 1)
    assert torch.equal(
        found, TransformerAttribution(classifier(nn.Identity())).attribute(IMAGES, 1)
    )
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_view_that_has_gone_stale_is_an_error() -> None:
    """Of a tensor whose memory is not in the order of its elements."""

    def inside(x: Tensor) -> Tensor:
        x = x.mT.contiguous().mT.exp()
        first = x[:, :4]
        x += 1.0
        return torch.cat([first, x[:, 4:]], 1)

    with pytest.raises(ExplanationError, match=r"view.*changed in place.*copy"):
        TransformerAttribution(classifier(inside)).attribute(IMAGES, 1)


def test_writing_into_a_given_tensor_is_an_error() -> None:
    def inside(x: Tensor) -> Tensor:
        return torch.add(x, 1.0, out=torch.empty_like(x))

    with pytest.raises(ExplanationError, match=r"out="):
        TransformerAttribution(classifier(inside)).attribute(IMAGES, 1)


# -- errors are the user's own too --------------------------------------------------------------


def test_an_error_of_the_model_arrives_as_it_is() -> None:
    def inside(x: Tensor) -> Tensor:
        raise LookupError("the model's own words")

    with pytest.raises(LookupError, match="the model's own words"):
        TransformerAttribution(classifier(inside)).attribute(IMAGES, 1)


def test_every_error_is_an_explanation_error() -> None:
    assert issubclass(UnsupportedOperationError, ExplanationError)
    assert issubclass(NoAttentionError, ExplanationError)
    assert issubclass(ExplanationError, RuntimeError)
