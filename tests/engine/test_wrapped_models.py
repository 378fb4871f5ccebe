"""Models that are compiled, checkpointed or built with flex attention are explained as written."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention import flex_attention
from torch.utils.checkpoint import checkpoint

from captum_transformer_lrp import ExplanationError, TransformerAttribution
from captum_transformer_lrp.engine.watch.eager import uncompiled

PAD = 0
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [PAD, PAD, 12, 13, 14, 15, 16]])
MASK = {"attention_mask": (IDS != PAD).long()}
TARGET = (6, 9)


def language_model(attention: str = "sdpa") -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        pad_token_id=PAD,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.set_attn_implementation(attention)
    return model


@pytest.fixture(scope="module")
def expected() -> Tensor:
    return TransformerAttribution(language_model()).attribute(IDS, TARGET, MASK)


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)  # float32 maps


# -- attention implementations, with padding on the left -----------------------------------------


def test_a_row_that_is_masked_entirely_is_no_nan(expected: Tensor) -> None:
    """The smallest number of float64, which eager code masks by, is infinite in float32."""
    model = language_model("eager")
    assert_same(TransformerAttribution(model).attribute(IDS, TARGET, MASK), expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_on_the_left_changes_nothing(attention: str) -> None:
    method = TransformerAttribution(language_model(attention))
    # Rotations by other angles are others in float32, in which transformers computes them.
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 2, 3, 4]])
    padded = method.attribute(IDS, TARGET, {**MASK, "position_ids": positions})
    alone = method.attribute(IDS[1:, 2:], (4, 9))
    assert_same(padded[1:, 2:], alone)
    assert not padded[1, :2].any()


@pytest.fixture
def flex_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch refuses derivatives of flex attention on a CPU; here they are those of its parts."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)


@pytest.mark.usefixtures("flex_on_any_device")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore:_compile flag")
def test_flex_attention_is_taken_apart(expected: Tensor) -> None:
    model = language_model("flex_attention")
    assert_same(TransformerAttribution(model).attribute(IDS, TARGET, MASK), expected)


class Flex(nn.Module):
    """One block of attention whose scores are changed by ``score_mod`` or the same spelled out."""

    def __init__(self, kind: str, *, spelled_out: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.spelled_out = kind, spelled_out
        self.project, self.head = nn.Linear(8, 24), nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.randn(2, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        if self.spelled_out:
            scores = q @ k.mT * 0.5
            scores = scores.tanh() if self.kind == "cap" else scores + self.bias
            mixed = scores.softmax(-1) @ v
        else:
            mixed = flex_attention.flex_attention(q, k, v, score_mod=self.changed, scale=0.5)
        return self.head((x + mixed.transpose(1, 2).flatten(2)).mean(1))

    def changed(self, score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score.tanh() if self.kind == "cap" else score + self.bias[h, i, j]


@pytest.mark.usefixtures("flex_on_any_device")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", ["cap", "bias"])
def test_what_flex_attention_does_to_scores_is_what_it_says(kind: str) -> None:
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    maps = [
        TransformerAttribution(Flex(kind, spelled_out=one).double().eval()).explain(x, 1)
        for one in (False, True)
    ]
    for found, expected in zip(*(one.attentions for one in maps), strict=True):
        torch.testing.assert_close(found.attention, expected.attention, rtol=1e-10, atol=0)
        torch.testing.assert_close(found.relevance, expected.relevance, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(maps[0].relevances, maps[1].relevances, rtol=1e-8, atol=1e-12)


# -- torch.compile -------------------------------------------------------------------------------


def test_a_compiled_model_is_explained_as_the_model_that_it_was_made_from(
    expected: Tensor,
) -> None:
    explanation = TransformerAttribution(torch.compile(language_model())).explain(IDS, TARGET, MASK)
    assert_same(explanation.attributions, expected)
    assert explanation.attentions[0].name == "model.layers.0.self_attn"


def test_a_module_that_was_compiled_in_place_is_explained(expected: Tensor) -> None:
    model = language_model()
    model.model.layers[0].mlp.compile()
    assert_same(TransformerAttribution(model).attribute(IDS, TARGET, MASK), expected)


def test_compiled_code_inside_a_function_is_explained(expected: Tensor) -> None:
    model = torch.compile(language_model())
    method = TransformerAttribution(lambda ids, attention_mask: model(ids, attention_mask))
    assert_same(method.attribute(IDS, TARGET, MASK), expected)


def stance() -> str:
    from torch._dynamo import eval_frame

    return str(eval_frame._stance.stance)


def test_explanations_in_several_threads_put_the_compiler_back_as_it_was() -> None:
    torch.compile(nn.Identity())  # loads the compiler
    before = stance()
    first_is_in, first_may_leave = threading.Event(), threading.Event()

    def first() -> None:
        with uncompiled():
            first_is_in.set()
            first_may_leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    first_is_in.wait(10)
    with uncompiled():
        first_may_leave.set()
        thread.join()
        assert stance() == "force_eager"
    assert stance() == before


# -- checkpoints ---------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["without reentry", "with reentry"])
def checkpointed(request: pytest.FixtureRequest) -> nn.Module:
    model = language_model().train()  # transformers checkpoints in training mode alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.gradient_checkpointing_enable({"use_reentrant": request.param})
    return model


def test_gradient_checkpointing_changes_no_explanation(
    checkpointed: nn.Module, expected: Tensor
) -> None:
    found = TransformerAttribution(checkpointed).attribute(IDS, TARGET, MASK)
    assert_same(found, expected)
    assert checkpointed.training


def test_a_checkpointed_function_can_still_be_trained_through() -> None:
    """Within an explanation nothing is recomputed; outside of it everything is as before."""
    torch.manual_seed(0)
    model = Flex("bias", spelled_out=True).double().eval()
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return model(x)

    def forward(x: Tensor) -> Tensor:
        return checkpoint(counted, x, use_reentrant=False)

    x = torch.randn(2, 5, 8, dtype=torch.float64)
    expected = TransformerAttribution(model).attribute(x, 1)
    found = TransformerAttribution(forward).attribute(x, 1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert len(calls) == 1
    forward(x.requires_grad_()).sum().backward()
    assert len(calls) == 3
    assert x.grad is not None


def test_an_explanation_may_be_made_where_saved_tensors_are_moved_away() -> None:
    torch.manual_seed(0)
    model = Flex("bias", spelled_out=True).double().eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    expected = TransformerAttribution(model).attribute(x, 1)
    with torch.autograd.graph.save_on_cpu():
        found = TransformerAttribution(model).attribute(x, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


# -- quantised -----------------------------------------------------------------------------------


def test_a_quantised_model_inside_a_function_is_an_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(language_model(), {nn.Linear})
    with pytest.raises(ExplanationError, match="quantised"):
        TransformerAttribution(lambda ids: model(ids)).attribute(IDS, TARGET)
