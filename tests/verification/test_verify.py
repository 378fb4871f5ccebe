"""``verify`` finds what is wrong: each check passes on a good model and fails on a broken one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from captum_transformer_lrp import (
    AttentionRollout,
    ExplanationError,
    GenericAttention,
    NoAttentionError,
    TransformerAttribution,
    TransformerLRP,
    Verification,
    examples,
    verify,
)
from captum_transformer_lrp.engine import recording
from captum_transformer_lrp.engine.graph.op import Phase
from captum_transformer_lrp.engine.graph.tape import Tape
from captum_transformer_lrp.engine.phases import Gradient, Relevance
from captum_transformer_lrp.verification.occlusion import occlusion
from captum_transformer_lrp.verification.results import Check

NAMES = ["output", "gradient", "relevance", "finite", "shape", "batch", "matrix", "state",
         "classes", "occlusion"]  # fmt: skip
WIDTH, TOKENS, CLASSES = 8, 12, 3


class Small(nn.Module):
    """One block, and a head that reads the mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, CLASSES)
        self.register_buffer("calls", torch.zeros(()))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + (q @ k.mT).softmax(-1) @ v
        logits: Tensor = self.head(x.mean(1))
        return logits


def embeddings(count: int = 3) -> Tensor:
    return torch.randn(count, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


def verdicts(found: Verification) -> dict[str, str]:
    return {check.name: check.verdict for check in found}


def failures(found: Verification) -> list[str]:
    return [check.name for check in found if check.verdict == "failed"]


# -- what passes ---------------------------------------------------------------------------------


def images() -> Verification:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=10).eval()
    return verify(model, torch.randn(2, 3, 160, 160), 3)


def token_ids() -> Verification:
    classifier, tokenizer = examples.sentiment_classifier()
    texts = ["a gorgeous, witty film that moves", "dull", "an awful mess of a film, and long"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    mask = {"attention_mask": batch["attention_mask"]}
    return verify(classifier, batch["input_ids"], additional_forward_args=mask)


def two_inputs() -> Verification:
    model = Small()
    joined = TransformerAttribution(lambda a, b: model(torch.cat([a, b], 1)), dtype=torch.float64)
    x = embeddings()
    return verify(model, (x[:, :5], x[:, 5:]), [0, 1, 2], attribution=joined)


def masked_by_position() -> Verification:
    model = Small()

    def masked(x: Tensor, mask: Tensor) -> Tensor:
        return model(x * mask[..., None])

    mask = (torch.arange(TOKENS) < torch.tensor([[12], [8], [6]])).float()
    return verify(
        model,
        embeddings(),
        1,
        additional_forward_args=mask,
        attribution=TransformerAttribution(masked, dtype=torch.float64),
    )


@pytest.mark.parametrize("build", [images, token_ids, two_inputs, masked_by_position])
def test_a_good_model_passes(build: Callable[[], Verification]) -> None:
    found = build()
    assert [check.name for check in found] == NAMES
    assert found.passed, str(found)
    assert {verdicts(found)[name] for name in NAMES if name != "occlusion"} == {"passed"}
    assert found.attentions


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_computes_in_the_precision_of_the_method(dtype: torch.dtype) -> None:
    model = Small()
    found = verify(model, embeddings(), 1, attribution=TransformerAttribution(model, dtype=dtype))
    assert found.passed
    assert found["relevance"].expected == ("≤ 1e-06" if dtype == torch.float64 else "≤ 1e-03")


def test_in_half_precision_the_plain_run_proves_nothing() -> None:
    model = Small().to(torch.bfloat16)
    found = verify(model, embeddings().to(torch.bfloat16), 1)
    assert verdicts(found)["output"] == verdicts(found)["gradient"] == "does not apply"
    assert "verify model.float()" in found["output"].reason


@pytest.mark.parametrize(
    ("method", "skipped"),
    [
        (TransformerAttribution, set()),
        (GenericAttention, {"relevance"}),
        (TransformerLRP, {"gradient", "matrix"}),
        (AttentionRollout, {"gradient", "relevance", "classes"}),
    ],
)
def test_a_check_that_a_method_has_nothing_for_says_so(method: Any, skipped: set[str]) -> None:
    model = Small()
    found = verify(model, embeddings(), 1, attribution=method(model, dtype=torch.float64))
    assert found.passed, str(found)
    assert {one.name for one in found if one.verdict == "does not apply"} == skipped
    assert all(method.__name__ in found[name].reason for name in skipped)


def test_one_example_one_output_and_few_tokens_say_so() -> None:
    model = Small()
    one_output = TransformerAttribution(lambda x: model(x)[:, 0], dtype=torch.float64)
    found = verify(model, embeddings(1)[:, :3], attribution=one_output)
    assert found["batch"].reason == "there is one example"
    assert found["classes"].reason == "the model has one output"
    assert found["occlusion"].reason == "a map has fewer than 4 places that are not 0"
    assert found.passed


def test_the_matrix_of_a_block_with_two_skips_is_not_compared() -> None:
    """Mass goes by both, and C has one I for each block."""

    class AddsQueries(Small):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.head((x + (q + (q @ k.mT).softmax(-1) @ v)).mean(1))

    found = verify(AddsQueries(), embeddings(), 1)
    assert found.passed, str(found)
    assert "more than one skip connection" in found["matrix"].reason


def test_a_checkpointed_method_is_verified_like_any() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=10).eval()
    method = TransformerAttribution(model, dtype=torch.float64, checkpointing=True)
    assert verify(model, torch.randn(2, 3, 160, 160), 3, attribution=method).passed


def test_a_refused_model_is_an_error_as_everywhere() -> None:
    with pytest.raises(NoAttentionError):
        verify(nn.Linear(4, 2), torch.randn(2, 4), 1)
    with pytest.raises(ExplanationError, match="at random"):
        verify(nn.Sequential(Small(), nn.Dropout()).train(), embeddings(), 1)
    with pytest.raises(TypeError, match="method of this library, found"):
        verify(Small(), embeddings(), 1, attribution=nn.Linear(2, 2))  # type: ignore[arg-type]


def test_it_works_under_no_grad_and_in_inference_mode() -> None:
    model = Small()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert verify(model, embeddings(), 1).passed


# -- what fails ----------------------------------------------------------------------------------


def test_a_watched_run_that_differs_fails_the_output() -> None:
    class Watched(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 + 1e-3 * torch.is_grad_enabled())

    assert failures(verify(Watched(), embeddings(), 1)) == ["output"]


@pytest.mark.parametrize(("phase", "check"), [(Gradient, "gradient"), (Relevance, "relevance")])
def test_a_wrong_backward_pass_fails(
    monkeypatch: pytest.MonkeyPatch, phase: type[Phase], check: str
) -> None:
    plain = Tape.backward

    def wrong(self: Tape, one: Phase, *args: Any, **options: Any) -> list[Tensor]:
        found = plain(self, one, *args, **options)
        return [value * 1.001 for value in found] if isinstance(one, phase) else found

    monkeypatch.setattr(Tape, "backward", wrong)
    assert failures(verify(Small(), embeddings(), 1)) == [check]


class Changed(TransformerAttribution):
    """A method whose map is changed by what a test says."""

    change: Callable[[Any, Tensor], Tensor]

    def attribute(self, inputs: Any, *args: Any, **options: Any) -> Any:
        return self.change(super().attribute(inputs, *args, **options))


def of_another_batch(_: Any, found: Tensor) -> Tensor:
    return found * len(found)


def negative(_: Any, found: Tensor) -> Tensor:
    return found - found.amax((1, 2), keepdim=True)


def constant(_: Any, found: Tensor) -> Tensor:
    return found.mean(1, keepdim=True).expand_as(found)


def turned(_: Any, found: Tensor) -> Tensor:
    return found.mT


@pytest.mark.parametrize(
    ("change", "check"),
    [(of_another_batch, "batch"), (negative, "finite"), (constant, "shape"), (turned, "shape")],
)
def test_a_wrong_map_fails(change: Callable[[Any, Tensor], Tensor], check: str) -> None:
    model = Small()
    wrong = type("Wrong", (Changed,), {"change": change})(model, dtype=torch.float64)
    assert failures(verify(model, embeddings(), 1, attribution=wrong)) == [check]


def test_maps_without_their_class_fail() -> None:
    class OfOneClass(TransformerAttribution):
        def attribute(self, inputs: Any, target: Any = None, *args: Any, **options: Any) -> Any:
            return super().attribute(inputs, 1, *args, **options)

    model = Small()
    found = verify(model, embeddings(), 2, attribution=OfOneClass(model, dtype=torch.float64))
    assert failures(found) == ["classes"]


def test_a_token_row_that_is_not_the_matrixs_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = recording.carried

    def wrong(tape: Any, phase: Any, *args: Any) -> list[Tensor]:
        factor = 1.001 if getattr(phase, "only_moved", False) else 1
        return [value * factor for value in plain(tape, phase, *args)]

    monkeypatch.setattr(recording, "carried", wrong)
    assert failures(verify(Small(), embeddings(), 1)) == ["matrix"]


def wrote_a_parameter(model: Small) -> None:
    model.head.weight.data[0, 0] += 1  # no version counter tells


def wrote_a_buffer(model: Small) -> None:
    model.calls += 1


def left_a_hook(model: Small) -> None:
    model.qkv.register_forward_hook(lambda *args: None)


def left_an_attribute(model: Small) -> None:
    model.qkv.rule = "mine"


def left_a_gradient(model: Small) -> None:
    model.head.weight.grad = torch.zeros_like(model.head.weight)


def trained(model: Small) -> None:
    model.qkv.train()


@pytest.mark.parametrize(
    "meddle",
    [wrote_a_parameter, wrote_a_buffer, left_a_hook, left_an_attribute, left_a_gradient, trained],
)
def test_a_changed_model_fails_the_state(
    monkeypatch: pytest.MonkeyPatch, meddle: Callable[[Small], None]
) -> None:
    model = Small()
    plain = recording.check_inputs

    def meddling(inputs: tuple[Tensor, ...]) -> None:
        plain(inputs)
        meddle(model)

    monkeypatch.setattr(recording, "check_inputs", meddling)
    assert "state" in failures(verify(model, embeddings(), 1))


def test_what_every_call_changes_by_itself_is_not_the_explanations_doing() -> None:
    class Counts(Small):
        number = 0

        def forward(self, x: Tensor) -> Tensor:
            self.number += 1
            return super().forward(x)

    assert verify(Counts(), embeddings(), 1).passed


# -- occlusion -----------------------------------------------------------------------------------


def test_occlusion_knows_right_from_wrong_and_says_when_it_does_not() -> None:
    """Four of forty tokens count for the first of two answers."""
    counts = torch.zeros(40, 1)
    counts[:4] = 1
    x = 3 * counts + 0.01 * torch.randn(3, 40, 1, generator=torch.Generator().manual_seed(0))

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        logit = (inputs[0] * counts).sum((1, 2))
        return torch.stack([logit, torch.zeros_like(logit)], 1)

    shown = (counts + 1).expand_as(x)
    assert occlusion(run, (x,), [shown], 0).verdict == "passed"
    assert occlusion(run, (x,), [3 - shown], 0).verdict == "failed"
    # An answer that the model does not give is no evidence against the map.
    unlikely = occlusion(lambda inputs: -run(inputs), (x,), [shown], 0)
    assert unlikely.verdict == "undecided"
    assert unlikely.found is not None
    assert unlikely.found < -2
    assert "random weights" in unlikely.reason


def test_one_logit_is_no_certain_class() -> None:
    whole = torch.tensor([[1.0], [2.0]])
    inputs, found = embeddings(2), -embeddings(2).abs()
    run = lambda tensors: tensors[0].abs().mean((1, 2))[:, None] * whole  # noqa: E731
    check = occlusion(run, (inputs,), (found,), 0)
    assert check.found is not None
    assert check.found < -2  # the map is upside down
    assert check.verdict == "undecided"  # but the softmax of one logit is 1, whatever it is


@pytest.mark.parametrize(
    "target",
    [np.int64(1), torch.tensor(1), np.array([1, 1, 1]), torch.tensor([1, 1, 1]), [np.int64(1)] * 3],
)
def test_a_target_is_one_whoever_counts(target: Any) -> None:
    assert str(verify(Small(), embeddings(), target)) == str(verify(Small(), embeddings(), 1))


def test_a_function_is_a_target_without_another_class() -> None:
    found = verify(Small(), embeddings(), lambda logits: logits[:, 1])
    assert found.passed
    assert found["classes"].verdict == "does not apply"


@pytest.mark.parametrize("inputs", ["a film", (), {"input_ids": torch.ones(1, 2)}, None])
def test_what_is_no_tensor_is_named(inputs: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="inputs"):
        verify(Small(), inputs)


def test_padding_is_no_bottom_tenth() -> None:
    asked = []

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        asked.append(inputs[0])
        return inputs[0].sum((1, 2))[:, None].expand(-1, 2)

    x = torch.arange(1.0, 41.0).reshape(1, 40, 1)
    shown = torch.where(torch.arange(40) < 20, torch.arange(40) + 1.0, 0.0).reshape(1, 40, 1)
    occlusion(run, (x,), [shown], 0)
    changed = torch.stack([(one != x).flatten() for one in asked]).any(0)
    assert changed[:20].any()
    assert not changed[20:].any()


# -- data, tables --------------------------------------------------------------------------------


def test_the_table_is_text_html_and_data() -> None:
    checks = (
        Check.at_most("output", "unchanged", 1e-7, 1e-5),
        Check.skipped("batch", "<alone>", "there is one example"),
        Check.holds("state", "as it was", "changed: head.weight"),
    )
    found = Verification("ViT", checks)
    assert not found.passed
    assert found["batch"] is checks[1]
    with pytest.raises(KeyError, match="expected one of output, batch, state"):
        found["relevance"]
    lines = str(found).splitlines()
    assert lines[0] == "ViT"
    assert lines[3].split() == ["output", "unchanged", "1.0e-07", "≤", "1e-05", "passed"]
    assert lines[-1] == "state: changed: head.weight"
    assert "&lt;alone&gt;" in found._repr_html_()
    with pytest.raises(AttributeError):
        found.title = "other"  # type: ignore[misc]


def test_nan_never_passes() -> None:
    assert Check.at_most("output", "", float("nan"), 1.0).verdict == "failed"


def test_the_model_is_as_it_was() -> None:
    model = Small().requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = embeddings()
    kept = x.clone()
    random = torch.get_rng_state()
    verify(model, x, 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, kept)
    assert x.grad is None
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(one.requires_grad for one in model.parameters())
