"""Whatever is given in the place of inputs, targets and models: a sentence, or an answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
    XLMConfig,
    XLMWithLMHeadModel,
)

from captum_transformer_lrp import (
    ExplanationError,
    GenericAttention,
    TransformerAttribution,
    TransformerLRP,
    compare,
    explain_continuation,
)
from tests.attr.methods import METHODS, each_once

SOME = ["transformer_attribution", "rollout", "lrp", "legrad"]

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
FAKE = FakeTensorMode()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # prototypes
    NESTED = torch.nested.nested_tensor([IMAGES[0], IMAGES[1]])
    RAGGED = torch.nested.nested_tensor([IDS[0], IDS[1, :3]], layout=torch.jagged)


class Classifier(nn.Module):
    """Two attentions; ``end`` is applied to the logits."""

    def __init__(self, end: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.end = end
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.blocks = nn.ModuleList(nn.MultiheadAttention(12, 2, batch_first=True) for _ in "ab")
        self.head = nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Any:
        x = self.patches(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x, x, x)[0]
        return self.end(self.head(x.mean(1)))


def classifier(end: Callable[[Tensor], Any] = lambda x: x) -> nn.Module:
    torch.manual_seed(0)
    return Classifier(end).double().eval()


def of_texts(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 30}
    config = BertConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, **options)
    return BertForSequenceClassification(config).eval()


# -- inputs ---------------------------------------------------------------------------------------

INPUTS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "None": (lambda: None, TypeError, "found NoneType.*additional_forward_args"),
    "a list of tensors": (lambda: [IMAGES], TypeError, "found list: pass images as float"),
    "a list of ids": (IDS.tolist, TypeError, "found list.*integer tensors"),
    "an array": (IMAGES.numpy, TypeError, "found ndarray: pass"),
    "a dictionary": (lambda: {"images": IMAGES}, TypeError, "found dict: pass"),
    "a text": (lambda: "a witty film", TypeError, "found str: pass"),
    "nothing": (lambda: (), ValueError, "empty tuple, expected at least one"),
    "None in a tuple": (lambda: (IMAGES, None), TypeError, "input 1 must be.*found NoneType"),
    "sparse": (lambda: IMAGES.to_sparse(), TypeError, r"sparse.*sparse_coo.*to_dense"),
    "sparse rows": (lambda: IDS.double().to_sparse_csr(), TypeError, r"sparse_csr.*to_dense"),
    "nested": (lambda: NESTED, TypeError, "nested tensor.*pad.*attention mask"),
    "ragged": (lambda: RAGGED, TypeError, "nested tensor.*pad.*attention mask"),
    "meta": (lambda: IMAGES.to("meta"), TypeError, "meta device.*no values.*load"),
    "meta ids": (lambda: IDS.to("meta"), TypeError, "meta device.*no values.*load"),
    "fake": (lambda: FAKE.from_tensor(IMAGES), TypeError, "FakeTensor.*outside"),
    "quantised": (
        lambda: torch.quantize_per_tensor(IMAGES.float(), 0.1, 0, torch.qint8),
        TypeError,
        r"quantised \(torch.qint8\).*dequantize",
    ),
    "one image": (lambda: IMAGES[0], ValueError, r"\(3, 32, 32\).*unsqueeze\(0\)"),
    "one sequence": (lambda: IDS[0], ValueError, r"\(4,\), expected token ids.*unsqueeze\(0\)"),
    "no example": (lambda: IMAGES[:0], ValueError, r"no examples.*\(0, 3, 32, 32\)"),
    "a number": (lambda: torch.tensor(1.0), ValueError, "no batch dimension"),
    "bytes": (lambda: IMAGES.byte(), TypeError, "integer tensor.*preprocessed floats"),
    "booleans": (lambda: IMAGES > 0, TypeError, "must be float, or integer token ids"),
    "complex": (lambda: torch.complex(IMAGES, IMAGES), TypeError, "must be float, or integer"),
    "not a number": (lambda: IMAGES / 0, ValueError, "NaN or infinite.*clean it"),
}


@pytest.mark.parametrize(("method", "name"), each_once(INPUTS))
def test_inputs_that_are_none_are_told(method: str, name: str) -> None:
    make, kind, message = INPUTS[name]
    with pytest.raises(kind, match=message):
        METHODS[method](classifier()).attribute(make(), 1)


# A comparison takes one tensor, and says which method fails on it.
COMPARED: dict[str, tuple[type[Exception], str]] = {
    name: (TypeError, "^inputs must be one tensor, found " + found)
    for name, found in {
        "None": "NoneType", "a list of tensors": "list", "a list of ids": "list",
        "an array": "ndarray", "a dictionary": "dict", "a text": "str", "nothing": "tuple",
        "None in a tuple": "tuple",
    }.items()
} | {
    name: (ValueError, r"^inputs must be float images .*, found torch\." + found)
    for name, found in {
        "a number": r"float32 of shape \(\)", "bytes": "uint8", "booleans": "bool",
        "complex": "complex128",
    }.items()
} | {
    "no example": (ExplanationError, "^transformer_attribution: inputs has no examples"),
    "not a number": (ExplanationError, "^transformer_attribution: inputs contains NaN or infinite"),
}  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_compare_tells_them_too(name: str) -> None:
    kind, message = COMPARED.get(name, INPUTS[name][1:])
    with pytest.raises(kind, match=message):
        compare(classifier(), INPUTS[name][0](), [1], ["transformer_attribution", "saliency"])


@pytest.mark.parametrize("name", ["None", "an array", "sparse", "meta", "fake", "one image"])
def test_so_do_explain_and_several_targets(name: str) -> None:
    make, kind, message = INPUTS[name]
    with pytest.raises(kind, match=message):
        TransformerAttribution(classifier()).explain(make(), 1)
    with pytest.raises(kind, match=message):
        TransformerAttribution(classifier()).attribute_targets(make(), [1, 2])


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (of_texts, IDS[0]),
        (lambda: nn.Sequential(nn.Conv1d(1, 12, 4, 4), nn.Flatten(), nn.Linear(48, 4)).double(),
         torch.randn(1, 16).double()),
    ],
    ids=["ids", "a signal"],
)  # fmt: skip
def test_a_missing_batch_dimension_is_told(model: Callable[[], nn.Module], given: Tensor) -> None:
    with pytest.raises(ValueError, match=r"batch dimension.*unsqueeze\(0\)"):
        TransformerLRP(model()).attribute(given, 1)


def test_a_model_that_fails_on_a_batch_as_well_fails_with_its_own_words() -> None:
    with pytest.raises(RuntimeError, match=r"expected input.*to have 3 channels"):
        TransformerAttribution(classifier()).attribute(IMAGES[0, :1], 1)


# -- targets --------------------------------------------------------------------------------------

TARGETS: dict[str, tuple[Any, str]] = {
    "a float": (1.5, "must be an int.*found 1.5"),
    "a truth": (True, "must be an int.*found True"),
    "a truth of NumPy": (np.bool_(True), "must be an int"),
    "truths": ([True, False], r"holds True \(bool\), expected integers"),
    "a tensor of truths": (torch.tensor([True, False]), "must be integers.*torch.bool"),
    "an array of floats": (np.array([0.0, 1.0]), "must be an int"),
    "a tensor of floats": (torch.tensor([0.0, 1.0]), "must be integers.*torch.float32"),
    "complex numbers": (torch.tensor([1j, 1]), "must be integers.*complex"),
    "a name": ("cat", "must be an int.*found 'cat'"),
    "names": (["cat", "dog"], r"holds 'cat' \(str\), expected integers"),
    "None for one": ([None, 1], r"holds None \(NoneType\), expected integers"),
    "a range": (range(2), "must be an int"),
    "a set": ({1}, "must be an int"),
    "a dictionary": ({"class": 1}, "must be an int"),
    "too few": ([1], "1 entries, but there are 2 examples"),
    "no index": ((), r"gives 0 index\(es\)"),
    "too large": (4, "out of range.*0 to 3"),
    "too far from the end": (-5, "out of range.*0 to 3"),
    "too far for one": ([0, -5], "out of range.*0 to 3"),
    "meta": (torch.tensor([1, 2], device="meta"), "must be integers.*meta device"),
    "sparse": (torch.tensor([1, 2]).to_sparse(), "must be integers.*sparse"),
    "a column": (torch.tensor([[1], [2]]), r"shape \(2, 1\), but there are 2 examples"),
}


@pytest.mark.parametrize(("method", "name"), each_once(TARGETS))
def test_targets_that_are_none_are_told(method: str, name: str) -> None:
    target, message = TARGETS[name]
    with pytest.raises(ValueError, match=f"^target .*{message}"):
        METHODS[method](classifier()).attribute(IMAGES, target)


@pytest.mark.parametrize("name", TARGETS)
def test_compare_tells_targets_too(name: str) -> None:
    target, message = TARGETS[name]
    with pytest.raises(ExplanationError, match=f"^transformer_attribution: target .*{message}"):
        compare(classifier(), IMAGES, {"it": target}, ["transformer_attribution"])


SAME: dict[str, tuple[Any, Any]] = {
    "an integer of NumPy": (np.int64(2), 2),
    "an unsigned one": (np.uint8(2), 2),
    "a tensor without dimensions": (torch.tensor(2), 2),
    "an array without dimensions": (np.array(2), 2),
    "an array": (np.array([2, 0]), [2, 0]),
    "integers of NumPy": ([np.int64(2), np.int32(0)], [2, 0]),
    "tensors": ([torch.tensor(2), torch.tensor(0)], [2, 0]),
    "a tuple of one": ((np.int64(2),), 2),
    "from the end": (-2, 2),
    "from the end for one": ([-2, 0], [2, 0]),
    "a tensor from the end": (torch.tensor([-2, -4]), [2, 0]),
    "bytes": (torch.tensor([2, 0], dtype=torch.uint8), [2, 0]),
}


@pytest.mark.parametrize(("method", "name"), each_once(SAME, SOME))
def test_targets_that_can_be_taken_are(method: str, name: str) -> None:
    given, meant = SAME[name]
    attribution = METHODS[method](classifier())
    expected = attribution.attribute(IMAGES, meant)
    assert torch.equal(attribution.attribute(IMAGES, given), expected)
    together = attribution.attribute_targets(IMAGES, [1, given])[1]
    assert torch.allclose(together, expected, rtol=1e-9, atol=1e-15)


# -- models ---------------------------------------------------------------------------------------


NO_MODELS = {"None": None, "a name": "vit", "a class": Classifier, "a number": 3, "settings": {}}


@pytest.mark.parametrize(("method", "name"), each_once(NO_MODELS))
def test_what_is_no_model_is_told(method: str, name: str) -> None:
    with pytest.raises(TypeError, match=r"must be a model or a function.*load the model first"):
        METHODS[method](NO_MODELS[name])


@pytest.mark.parametrize("name", NO_MODELS)
def test_compare_tells_what_is_no_model(name: str) -> None:
    with pytest.raises(TypeError, match=r"must be a model or a function"):
        compare(NO_MODELS[name], IMAGES, [1])


ENDS: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "nothing": (lambda x: None, TypeError, "returned NoneType.*logits"),
    "a number": (lambda x: x.sum().item(), TypeError, "returned float.*logits"),
    "one value for all": (lambda x: x.sum(), ValueError, "first dimension must be the batch"),
    "classes": (lambda x: x.argmax(1), ExplanationError, "does not depend on the inputs"),
    "complex": (lambda x: torch.complex(x, x), TypeError, "complex.*real numbers.*abs"),
    "sparse": (lambda x: x.to_sparse(), TypeError, "sparse.*to_dense"),
    "other data": (
        lambda x: setattr(x, "data", torch.zeros(2, 4)) or x, ExplanationError,
        "other memory in the place of an activation.*new tensor",
    ),
    "resized": (lambda x: x.resize_(2, 2), ExplanationError, "other memory.*new tensor"),
}  # fmt: skip


@pytest.mark.parametrize(("method", "name"), each_once(ENDS))
def test_outputs_that_are_none_are_told(method: str, name: str) -> None:
    end, kind, message = ENDS[name]
    with pytest.raises(kind, match=message):
        METHODS[method](classifier(end)).attribute(IMAGES, 1)


@pytest.mark.parametrize("method", METHODS)
def test_weights_without_values_are_told(method: str) -> None:
    with pytest.raises(ExplanationError, match=r"patches.*meta device.*load the weights"):
        METHODS[method](classifier().to("meta")).attribute(IMAGES, 1)


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_not_there_yet_are_told(method: str) -> None:
    model = classifier()
    model.head = nn.LazyLinear(4)
    with pytest.raises(ExplanationError, match=r"head.*not initialised.*run the model once"):
        METHODS[method](model).attribute(IMAGES, 1)


class Packed(Tensor):
    """A stand-in for the weights of torchao and others: values that are kept in another form."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Packed:
        made: Packed = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float64)
        made.inner = inner
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> Packed:
        return Packed(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        raise NotImplementedError(func)


@pytest.mark.parametrize(("method", "given"), each_once(["model", "function"]))
def test_weights_in_a_form_of_their_own_are_told(method: str, given: str) -> None:
    model = classifier()
    packed = Packed(model.head.weight.detach().to(torch.int8))
    model.head.weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(ExplanationError, match=r"weight of head.*Packed.*floating-point weights"):
        METHODS[method](model if given == "model" else model.__call__).attribute(IMAGES, 1)


# -- what a model does inside ---------------------------------------------------------------------

INFERENCE = torch.inference_mode()


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_inference_mode_is_explained_all_the_same(method: str) -> None:
    """As one under ``torch.no_grad()``: both are about training."""
    model = classifier()
    expected = METHODS[method](model).attribute(IMAGES, 1)
    found = METHODS[method](INFERENCE(lambda images: model(images))).attribute(IMAGES, 1)
    assert torch.equal(found, expected)
    with torch.inference_mode():
        assert torch.equal(METHODS[method](model).attribute(IMAGES, 1), expected)


@pytest.mark.parametrize("method", SOME)
def test_a_constant_made_in_inference_mode_is_a_constant(method: str) -> None:
    with torch.inference_mode():
        factor = torch.full((4,), 2.0).double()
    found = METHODS[method](classifier(lambda x: x * factor)).attribute(IMAGES, 1)
    expected = METHODS[method](classifier(lambda x: x * factor.clone())).attribute(IMAGES, 1)
    assert torch.equal(found, expected)


IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "unsqueeze_ and squeeze_": lambda x: x.unsqueeze_(1).squeeze_(1),
    "t_ twice": lambda x: x.t_().t_(),
    "transpose_ twice": lambda x: x.transpose_(0, 1).transpose_(0, 1),
    "swapaxes_ twice": lambda x: x.swapaxes_(0, 1).swapaxes_(0, 1),
    "seen by its old name": lambda x: (x.unsqueeze_(1), x.squeeze(1))[1],
    "its shape is read": lambda x: (x.unsqueeze_(2), x.reshape(x.shape[0], x.shape[1]))[1],
    "and a value is changed": lambda x: x.unsqueeze_(1).mul_(1.0).squeeze_(1),
}


@pytest.mark.parametrize(("method", "name"), each_once(IN_PLACE, SOME))
def test_shapes_may_be_changed_in_place(method: str, name: str) -> None:
    found = METHODS[method](classifier(IN_PLACE[name])).attribute(IMAGES, 1)
    expected = METHODS[method](classifier()).attribute(IMAGES, 1)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("inner", METHODS)
def test_an_explanation_inside_another_is_told(inner: str) -> None:
    model = classifier()

    def weighted(images: Tensor) -> Any:
        return model(images) * METHODS[inner](model).attribute(IMAGES, 1).sum()

    for method in SOME:
        with pytest.raises(ExplanationError, match=r"in the forward pass.*compute the inner one"):
            METHODS[method](weighted).attribute(IMAGES, 1)


@pytest.mark.parametrize("keys", [{1: 2}, {None: 1}, {("a",): 1}], ids=str)
def test_keyword_arguments_have_names(keys: dict[Any, int]) -> None:
    with pytest.raises(TypeError, match=r"keyword arguments by name.*pass a tuple"):
        TransformerAttribution(of_texts()).attribute(IDS, 1, keys)


# -- continuations --------------------------------------------------------------------------------

PROMPT, NEXT = IDS[:, :3], IDS[:, 3:]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "vocab_size": 30}  # fmt: skip


def causal() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2)).eval()


BOTH_WAYS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: BertLMHeadModel(BertConfig(**SIZES)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZES)),
    "bert in half precision": lambda: BertLMHeadModel(BertConfig(**SIZES)).bfloat16(),
    "xlm": lambda: XLMWithLMHeadModel(
        XLMConfig(vocab_size=30, emb_dim=16, n_layers=2, n_heads=2, causal=False)
    ),
}


@pytest.mark.parametrize("name", BOTH_WAYS)
@pytest.mark.parametrize("method", ["transformer_attribution", "generic", "rollout", "lrp"])
def test_a_model_that_is_not_causal_has_no_continuation(method: str, name: str) -> None:
    torch.manual_seed(0)
    attribution = METHODS[method](BOTH_WAYS[name]().eval())
    with pytest.raises(ExplanationError, match=r"not causal.*is_decoder=True"):
        explain_continuation(attribution, PROMPT, NEXT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_causal_model_is_none_of_these(dtype: torch.dtype) -> None:
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    maps = explain_continuation(
        TransformerAttribution(causal().to(dtype)), PROMPT, NEXT, attention_mask=mask
    )
    assert float(maps.sum()) > 0
    torch.manual_seed(0)
    decoder = BertLMHeadModel(BertConfig(**SIZES, is_decoder=True)).eval()
    assert float(explain_continuation(GenericAttention(decoder), PROMPT, NEXT).sum()) > 0


CONTINUATIONS: dict[str, tuple[Callable[[], tuple[Any, ...]], type[Exception], str]] = {
    "a model": (lambda: (causal(), PROMPT, NEXT), TypeError, "TransformerAttribution.model"),
    "lists": (
        lambda: (TransformerAttribution(causal()), PROMPT.tolist(), NEXT), TypeError,
        "input_ids must be a tensor .N, S., found list",
    ),
    "None": (
        lambda: (TransformerAttribution(causal()), PROMPT, None), TypeError,
        "continuation_ids must be a tensor .N, S., found NoneType",
    ),
    "one sequence": (
        lambda: (TransformerAttribution(causal()), PROMPT[0], NEXT[0]), ValueError,
        "must be token ids .N, S.",
    ),
    "meta": (
        lambda: (TransformerAttribution(causal()), PROMPT.to("meta"), NEXT), TypeError, "meta"
    ),
    "sparse": (
        lambda: (TransformerAttribution(causal()), PROMPT.to_sparse(), NEXT), TypeError, "sparse"
    ),
    "floats": (
        lambda: (TransformerAttribution(causal()), PROMPT.float(), NEXT), ValueError,
        "must be token ids",
    ),
    "a classifier": (
        lambda: (TransformerAttribution(of_texts()), PROMPT, NEXT), ExplanationError,
        "for language models",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTINUATIONS)
def test_continuations_that_are_none_are_told(name: str) -> None:
    make, kind, message = CONTINUATIONS[name]
    with pytest.raises(kind, match=message):
        explain_continuation(*make())


def test_a_mask_that_is_no_tensor_is_told() -> None:
    with pytest.raises(TypeError, match="mask of input_ids must be a tensor"):
        explain_continuation(
            TransformerAttribution(causal()), PROMPT, NEXT, attention_mask=[[1, 1, 1]] * 2
        )
