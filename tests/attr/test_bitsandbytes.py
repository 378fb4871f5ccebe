"""Weights of few bits, as bitsandbytes keeps them: a call dequantises them for itself.

The maps are those of a copy whose weights were dequantised by hand, and near those of the model in
float32.  Where bitsandbytes rounds activations to 8 bits, too, the model's logits differ a little
from the copy's.
"""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from captum_transformer_lrp import (
    ExplanationError,
    TransformerAttribution,
    explain_generation,
)
from tests.attr.sentences import METHODS, SENTENCES, correlations, maps
from tests.letters.data import MODELS, tokenizer, trained

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

FORMS: dict[str, dict[str, Any]] = {
    "nf4": {"quant_type": "nf4"},
    "nf4, scales in float": {"quant_type": "nf4", "compress_statistics": False},
    "nf4, kept as bfloat16": {"quant_type": "nf4", "quant_storage": torch.bfloat16},
    "fp4": {"quant_type": "fp4"},
    "int8": {},
    "int8, outliers apart": {"threshold": 1.0},
}


def quantised(model: nn.Module, form: str, skipped: str = "classifier", bias: bool = True) -> Any:
    """A copy whose linear layers are those of bitsandbytes."""
    found = copy.deepcopy(model)
    options, kind = FORMS[form], "8" if form.startswith("int8") else "4"
    for name, layer in list(found.named_modules()):
        if not isinstance(layer, nn.Linear) or name.endswith(skipped):
            continue
        sizes = layer.in_features, layer.out_features, bias and layer.bias is not None
        values = layer.weight.detach().clone()
        if kind == "8":
            made = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, **options)
            made.weight = bnb.nn.Int8Params(values, requires_grad=False)
        else:
            made = bnb.nn.Linear4bit(*sizes, **options)
            made.weight = bnb.nn.Params4bit(values, requires_grad=False, module=made, **options)
        if sizes[2]:
            made.bias = nn.Parameter(layer.bias.detach().clone())
        found.set_submodule(name, made)
    return kept_as_it_is(found.to("cpu").eval())


def kept_as_it_is(model: Any) -> Any:
    """Where a processor packs weights anew, layers of some sizes fail: they are not packed."""
    for layer in model.modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            fits = layer.out_features % 32 == 0 and layer.in_features % 64 == 0
            layer.support_avx512bf16_for_cpu &= fits
    return model


def dense(layer: Any) -> Tensor:
    """The weight of a layer of bitsandbytes that has not been called."""
    if isinstance(layer, bnb.nn.Linear4bit):
        found = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    else:
        found = bnb.functional.int8_vectorwise_dequant(layer.weight.CB, layer.weight.SCB)
    return found.float()


def by_hand(packed: nn.Module) -> Any:
    found = copy.deepcopy(packed)
    for name, layer in packed.named_modules():
        if isinstance(layer, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)):
            made = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
            made.weight = nn.Parameter(dense(layer))
            if layer.bias is not None:
                made.bias = nn.Parameter(layer.bias.detach().clone())
            found.set_submodule(name, made)
    return found


def assert_same(found: list[Tensor], expected: list[Tensor], within: float = 1e-6) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= within * other.abs().max()


def logits(model: Any, words: Any) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(**words(text, return_tensors="pt")).logits for text in SENTENCES])


QUICK = {("nf4", "transformer_attribution"), ("int8", "attnlrp")}


@pytest.mark.parametrize(
    ("form", "method"),
    [
        pytest.param(*one, marks=() if one in QUICK else pytest.mark.slow)
        for one in itertools.product(FORMS, METHODS)
    ],
)
def test_maps_are_those_of_a_copy_with_dequantised_weights(
    classifier: tuple[Any, Any], form: str, method: str
) -> None:
    model, words = classifier
    packed = quantised(model, form)
    found = maps(packed, words, method)
    assert_same(found, maps(by_hand(packed), words, method))
    ranks = correlations(found, maps(model, words, method))
    print(f"{form}, {method}: median {statistics.median(ranks):.3f}, worst {min(ranks):.3f}")
    assert statistics.median(ranks) >= 0.95


@pytest.mark.parametrize("form", ["nf4", "int8", "int8, outliers apart"])
def test_layers_without_bias_and_the_last_layer_may_be_quantised(
    classifier: tuple[Any, Any], form: str
) -> None:
    model, words = classifier
    packed = quantised(model, form, skipped="pooler.dense", bias=False)
    args = words, "attnlrp", SENTENCES[:2]
    assert_same(maps(packed, *args), maps(by_hand(packed), *args))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["nf4", "fp4", "int8", "int8, outliers apart"])
def test_a_model_that_has_been_called_is_explained(classifier: tuple[Any, Any], form: str) -> None:
    """Some processors pack 4-bit weights anew on a call without gradient, scales as bfloat16."""
    model, words = classifier
    packed = quantised(model, form)
    plain = by_hand(packed)
    # Rounded to 8 bits, an activation is off by 1/254 of its row's largest at most.
    assert (logits(packed, words) - logits(plain, words)).abs().max() < 0.01
    args = words, "attnlrp", SENTENCES[:4]
    found, within = maps(packed, *args), 1e-6 if form.startswith("int8") else 2e-2
    assert_same(found, maps(plain, *args), within)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_layers_that_are_in_training_and_weights_in_half_precision_are_explained(
    classifier: tuple[Any, Any], form: str
) -> None:
    model, words = classifier
    args = words, "transformer_attribution", SENTENCES[:2]
    half = quantised(copy.deepcopy(model).half(), form)
    assert statistics.median(correlations(maps(half, *args), maps(model, *args))) >= 0.95
    packed = quantised(model, form)
    expected = maps(packed, *args)
    for layer in packed.modules():
        if isinstance(layer, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)):
            layer.train()
    assert_same(maps(packed, *args), expected)


def test_weights_that_are_quantised_at_each_call_are_explained(classifier: tuple[Any, Any]) -> None:
    model, words = classifier
    packed, plain = copy.deepcopy(model), by_hand(quantised(model, "int8"))
    for name, layer in list(packed.named_modules()):
        if isinstance(layer, nn.Linear) and name != "classifier":
            made = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features)
            made.load_state_dict(layer.state_dict())
            packed.set_submodule(name, made.eval())
    args = words, "transformer_attribution", SENTENCES[:2]
    assert_same(maps(packed, *args), maps(plain, *args))


# -- nothing is altered --------------------------------------------------------------------------


def held(value: Any, seen: set[int]) -> Iterator[Any]:
    """Everything that a model leads to: which object it is, and its values."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield id(value), value.dtype, value.requires_grad, value.data_ptr(), value._version
        yield value.detach().clone().numpy() if value.dtype != torch.bfloat16 else value.shape
    inside = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    for name, one in inside.items():
        yield name, id(one) if not isinstance(one, (bool, float, str)) else one
        yield from held(one, seen)


@pytest.mark.slow
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_an_explanation_leaves_the_model_as_it_is(
    classifier: tuple[Any, Any], form: str, called: bool
) -> None:
    model, words = classifier
    packed = quantised(copy.deepcopy(model).half() if form == "int8" else model, form)
    before_call = logits(packed, words) if called else None
    before = list(held(packed, set()))
    for method in METHODS:
        maps(packed, words, method, SENTENCES[:1])
    after = list(held(packed, set()))
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_equal(other, one)
    if before_call is not None:
        assert torch.equal(logits(packed, words), before_call)


# -- language models, adapters and loaders --------------------------------------------------------


@pytest.mark.parametrize("form", ["nf4", "int8"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_what_a_quantised_language_model_writes_is_explained(kind: str, form: str) -> None:
    model = linear_layers(trained(kind))
    packed = quantised(model, form, skipped="lm_head")
    prompt = "f H g I b e g b ?"
    found, expected = (
        explain_generation(one, tokenizer(), prompt, continuation="H I")
        for one in (packed, by_hand(packed))
    )
    np.testing.assert_allclose(found.maps, expected.maps, atol=1e-6 * np.abs(expected.maps).max())
    places = [row[:9].argmax() for row in found.maps]
    assert places == [1, 3], "where the written capitals stand in the prompt"


def linear_layers(model: Any) -> Any:
    """GPT-2's layers are linear ones whose weight is transposed."""
    for name, layer in list(model.named_modules()):
        if type(layer).__name__ == "Conv1D":
            made = nn.Linear(*layer.weight.shape)
            made.weight = nn.Parameter(layer.weight.detach().t().contiguous())
            made.bias = layer.bias
            model.set_submodule(name, made)
    return model


@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_an_adapter_over_quantised_weights_is_explained_unmerged(form: str) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    packed = quantised(trained("llama"), form, skipped="lm_head")
    plain = by_hand(packed)
    options = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    adapted, expected = (
        peft.get_peft_model(one, peft.LoraConfig(**options)).eval() for one in (packed, plain)
    )
    adapters = {name: one for name, one in adapted.state_dict().items() if "lora" in name}
    expected.load_state_dict(adapters, strict=False)
    ids = torch.tensor([[2, 9, 3, 10, 5, 6, 3, 4, 1]])
    pair = [METHODS["attnlrp"](one).attribute(ids, target=(8, 9)) for one in (adapted, expected)]
    assert_same(pair[:1], pair[1:])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", list(MODELS))
def test_what_transformers_loads_quantised_is_explained(
    kind: str, bits: int, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    trained(kind).save_pretrained(tmp_path)
    settings: dict[str, Any] = {"load_in_8bit": True}
    if bits == 4:
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        settings["bnb_4bit_use_double_quant"] = True
    packed = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**settings), device_map="cpu",
        dtype=torch.float32,
    )  # fmt: skip
    names = {type(layer).__name__ for layer in packed.modules()}
    assert names & {"Linear4bit", "Linear8bitLt"}
    kept_as_it_is(packed)
    found = explain_generation(packed, tokenizer(), "f H g I b e g b ?", continuation="H I")
    assert [row[:9].argmax() for row in found.maps] == [1, 3]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_maps_of_a_pretrained_model_are_near_those_in_float32(
    shared: Path, form: str, method: str
) -> None:
    folder = shared / "models/bert_movies"
    words = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).float().eval()
    ranks = correlations(maps(quantised(model, form), words, method), maps(model, words, method))
    print(f"{form}, {method}: median {statistics.median(ranks):.3f}, worst {min(ranks):.3f}")
    assert statistics.median(ranks) >= 0.95


# -- what cannot be dequantised ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["EmbeddingNF4", "EmbeddingFP4", "Embedding8bit"])
def test_packed_embeddings_are_refused_by_name(classifier: tuple[Any, Any], kind: str) -> None:
    model = copy.deepcopy(classifier[0])
    model.bert.embeddings.word_embeddings = getattr(bnb.nn, kind)(64, 64).to("cpu")
    with pytest.raises(ExplanationError, match=rf"word_embeddings \({kind}\) is quantised"):
        TransformerAttribution(model).attribute(torch.tensor([[2, 5, 3]]), 1)


class Head(nn.Module):
    """A classifier whose logits another operation changes."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, ids: Tensor) -> Tensor:
        return self.change(self.model(ids).logits)


def rounded(x: Tensor) -> Tensor:
    values, largest, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(x)
    return values.float() * largest[:, None] / 127


def at_another_scale(x: Tensor) -> Tensor:
    values, largest, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(x)
    weight = torch.ones(3, x.shape[-1], dtype=torch.int8)
    found: Tensor = torch.ops.bitsandbytes.int8_scaled_mm.default(
        values, weight, 2 * largest, torch.ones(3)
    )
    return found


def in_blocks(x: Tensor) -> Tensor:
    code = torch.linspace(-1, 1, 256)
    values, largest = torch.ops.bitsandbytes.quantize_blockwise.default(x, code, 64)
    args = values, largest, code, 64, torch.float32
    found: Tensor = torch.ops.bitsandbytes.dequantize_blockwise.default(*args)
    return found


def in_integers(x: Tensor) -> Tensor:
    values, largest, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(x)
    weight = torch.ones(3, 2, dtype=torch.int8)
    product = torch.ops.bitsandbytes.int8_linear_matmul.default(values, weight)
    found: Tensor = torch.ops.bitsandbytes.int8_mm_dequant(product, largest, torch.ones(3))
    return found


def test_activations_that_are_rounded_by_hand_are_themselves(classifier: tuple[Any, Any]) -> None:
    ids = torch.tensor([[2, 5, 9, 7, 3]])
    expected = TransformerAttribution(classifier[0]).attribute(ids, 1)
    found = TransformerAttribution(Head(classifier[0], rounded)).attribute(ids, 1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("change", [at_another_scale, in_blocks, in_integers])
def test_other_operators_are_refused_by_name(
    classifier: tuple[Any, Any], change: Callable[[Tensor], Tensor]
) -> None:
    with pytest.raises(ExplanationError, match="bitsandbytes"):
        TransformerAttribution(Head(classifier[0], change)).attribute(
            torch.tensor([[2, 5, 9, 7, 3]]), 1
        )
