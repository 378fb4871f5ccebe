"""Our classes keep Captum's contract, and keep their own promises, on every kind of model.

float64 throughout: 1e-9 of the largest entry leaves room for rounding only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import DataLoaderAttribution, LayerAttribution, NoiseTunnel
from captum.attr import visualization as viz
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor, nn

from captum_transformer_lrp import (
    AttentionGradCam,
    AttentionRollout,
    BiAttention,
    ExplanationError,
    LibraGradient,
    NormRollout,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
    TransformerLRP,
    compare,
)
from tests.attr.conftest import BUILDERS
from tests.attr.methods import METHODS, each_once

CLASSES = {
    name: method
    for name, method in METHODS.items()
    if name not in ("checkpointed", "baseline", "gamma", "clrp", "sglrp")
}
ATTENTION_ONLY = {"rollout", "flow", "raw", "norm_rollout", "alti"}
CONVERGING = {"lrp", "attnlrp", "cp_lrp", "libra", "libra_layers"}
SENSITIVITIES = {"legrad"}


@pytest.fixture(params=CLASSES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


ON_EACH_MODEL = pytest.mark.parametrize(
    ("name", "case"), each_once(BUILDERS, CLASSES), indirect=True
)


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


# -- every class --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "case"), each_once(BUILDERS, CLASSES, times=2), indirect=True)
def test_a_batch_is_its_examples_one_by_one(case: Any, name: str) -> None:
    method, targets = CLASSES[name](case.model), [0, 1, 2]
    for granularity in ("input", "token"):
        batch = method.attribute(case.inputs, targets, case.kwargs, granularity=granularity)
        for index, target in enumerate(targets):
            one = case.example(index)
            found = method.attribute(one.inputs, target, one.kwargs, granularity=granularity)
            # Relative to the batch: Grad-CAM's map of an example may be empty.
            assert float((found[0] - batch[index]).abs().max()) <= 1e-9 * float(batch.abs().max())


@ON_EACH_MODEL
def test_several_targets_are_those_of_several_calls(case: Any, name: str) -> None:
    method = CLASSES[name](case.model)
    many = method.attribute_targets(case.inputs, [2, None], case.kwargs)
    for target, found in zip([2, None], many, strict=True):
        # Together they are larger matrix products, which round their sums in another order.
        alone = method.attribute(case.inputs, target, case.kwargs)
        assert float((found - alone).abs().max()) <= 1e-9 * float(alone.abs().max())


@ON_EACH_MODEL
def test_attributions_are_shaped_as_the_inputs(case: Any, name: str) -> None:
    method = CLASSES[name](case.model)
    found = method.attribute(case.inputs, 1, case.kwargs)
    assert found.shape == case.inputs.shape
    assert not found.requires_grad
    assert bool(found.isfinite().all())
    (in_tuple,) = method.attribute((case.inputs,), 1, case.kwargs)
    assert torch.equal(in_tuple, found)


def test_only_lrp_has_a_convergence_delta(vit_case: Any, name: str) -> None:
    method = CLASSES[name](vit_case.model)
    assert method.has_convergence_delta() == (name in CONVERGING)
    assert method.multiplies_by_inputs == (name not in ATTENTION_ONLY | SENSITIVITIES)
    assert callable(method.attribute.__wrapped__)  # as that of Captum's own classes


@ON_EACH_MODEL
def test_attention_alone_knows_no_classes(case: Any, name: str) -> None:
    method = CLASSES[name](case.model)
    one, other = method.attribute_targets(case.inputs, [0, 1], case.kwargs)
    assert torch.equal(one, other) == (name in ATTENTION_ONLY)


def test_padding_gets_exactly_zero(bert_case: Any, name: str) -> None:
    padding = bert_case.kwargs["attention_mask"] == 0
    for granularity in ("input", "token"):
        found = CLASSES[name](bert_case.model).attribute(
            bert_case.inputs, 1, bert_case.kwargs, granularity=granularity
        )
        assert not found[padding].any()


def test_options_must_be_known(vit_case: Any, name: str) -> None:
    method = CLASSES[name](vit_case.model)
    with pytest.raises(ValueError, match="granularity must be"):
        method.attribute(vit_case.inputs, 1, granularity="pixel")
    with pytest.raises(ValueError, match="out of range"):
        method.attribute(vit_case.inputs, 99)
    with pytest.raises(TypeError, match="nonsense"):
        CLASSES[name](vit_case.model, nonsense=1)


def test_signatures_name_what_a_class_takes_and_compare_gives_it_to_the_class(
    vit_case: Any, name: str
) -> None:
    settings = {"dtype": torch.float64, "strict": False, "rules": {}, "stabilizer": None}
    parameters = inspect.signature(CLASSES[name]).parameters
    assert settings.keys() <= parameters.keys()
    assert all(one.kind is not one.VAR_KEYWORD for one in parameters.values())
    one, targets = vit_case.inputs[:1], {"cat": 1}
    maps = compare(vit_case.model, one, targets, {name: CLASSES[name]}, options={name: settings})
    expected = CLASSES[name](vit_case.model, **settings).attribute(one, 1)
    torch.testing.assert_close(maps[name]["cat"], expected.sum(1))


def test_a_subclass_may_give_a_setting_a_default_of_its_own(vit_case: Any) -> None:
    class InDouble(AttentionRollout):
        def __init__(self, model: Any, *, dtype: Any = torch.float64, **others: Any) -> None:
            super().__init__(model, dtype=dtype, **others)

    parameters = inspect.signature(InDouble).parameters
    assert list(parameters) == ["model", "dtype", "rules", "stabilizer", "strict"]
    assert parameters["dtype"].default is torch.float64
    assert InDouble(vit_case.model).dtype == torch.float64


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (AttentionRollout, {"head_fusion": "median"}, "head_fusion must be one of"),
        (AttentionRollout, {"discard_ratio": 1.0}, "discard_ratio must be at least 0 and below 1"),
        (AttentionRollout, {"discard_ratio": -0.1}, "discard_ratio must be at least 0"),
        (PartialLRP, {"preset": "lpr"}, "there is no preset 'lpr'"),
        (TransformerLRP, {"preset": "lpr"}, "there is no preset 'lpr'"),
        (TransformerLRP, {"start": "logits"}, "start must be one of"),
        (TransformerLRP, {"contrast": "slrp"}, "contrast must be one of"),
        (TransformerAttribution, {"head_weighting": "mean"}, "head_weighting must be one of"),
        (TransformerAttribution, {"layers": []}, "layers must name at least one attention"),
        (NormRollout, {"contribution": "norm"}, "contribution must be one of"),
        (BiAttention, {"perception": "heads"}, "perception must be one of"),
        (BiAttention, {"n_steps": 0}, "n_steps must be at least 1"),
        (LibraGradient, {"aggregation": "all"}, "aggregation must be one of"),
    ],
)
def test_options_of_a_class_must_be_known(
    vit_case: Any, method: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        method(vit_case.model, **options)


@pytest.mark.parametrize("method", [RawAttention, AttentionGradCam, PartialLRP])
def test_a_layer_must_be_an_attention_of_the_model(vit_case: Any, method: Any) -> None:
    with pytest.raises(ValueError, match="layer must be one of the model's 3 attentions"):
        method(vit_case.model, layer=3).attribute(vit_case.inputs, 1)


# -- Captum's tools -----------------------------------------------------------------------------


# What becomes of the samples is Captum's: one class that is quick stands for all.
KINDS = [(name, "smoothgrad") for name in CLASSES]
KINDS += [("generic", "smoothgrad_sq"), ("generic", "vargrad")]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_noise_tunnel(vit_case: Any, name: str, kind: str) -> None:
    method, images = CLASSES[name](vit_case.model), vit_case.inputs

    def tunnel(stdevs: float) -> Any:
        torch.manual_seed(0)
        return NoiseTunnel(method).attribute(
            images, nt_type=kind, nt_samples=3, nt_samples_batch_size=2, stdevs=stdevs, target=1
        )

    plain = method.attribute(images, 1)
    quiet = {"smoothgrad": plain, "smoothgrad_sq": plain**2, "vargrad": torch.zeros_like(plain)}
    rounding = 1e-12 * max(1.0, float(plain.abs().max()) ** 2)  # a variance is a difference
    assert torch.allclose(tunnel(0.0), quiet[kind], rtol=1e-6, atol=rounding)
    noisy = tunnel(0.1)
    assert noisy.shape == images.shape
    assert not torch.allclose(noisy, quiet[kind], rtol=1e-6, atol=1e-12)


def test_captum_s_tools_on_a_model_of_hugging_face_work_on_embeddings(
    bert_case: Any, name: str
) -> None:
    model, mask = bert_case.model, bert_case.kwargs["attention_mask"]
    embeddings = model.bert.embeddings.word_embeddings(bert_case.inputs).detach()

    def forward(embedded: Tensor, mask: Tensor) -> Any:
        return model(inputs_embeds=embedded, attention_mask=mask)

    method = CLASSES[name](forward)
    rest: dict[str, Any] = {"target": 1, "additional_forward_args": (mask,)}
    plain = method.attribute(embeddings, **rest)
    assert not plain[mask == 0].any()
    torch.manual_seed(0)
    tunnel = NoiseTunnel(method)
    quiet = tunnel.attribute(embeddings, nt_samples=2, stdevs=0.0, **rest)
    assert torch.allclose(quiet, plain, rtol=1e-6, atol=1e-12)  # sums round in another order
    noisy = tunnel.attribute(embeddings, nt_samples=2, stdevs=0.1, **rest)
    assert not torch.allclose(noisy, plain, rtol=1e-6, atol=1e-12)
    assert not noisy[mask == 0].any()
    moved = sensitivity_max(method.attribute, embeddings, n_perturb_samples=2, **rest)
    assert bool((moved > 0).all() and moved.isfinite().all())

    def perturb(embedded: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.1 * torch.randn_like(embedded)
        return noise, embedded - noise

    # Captum calls the model itself, and takes logits alone.
    logits = lambda *inputs: forward(*inputs).logits  # noqa: E731
    found = infidelity(logits, perturb, embeddings, plain, **rest)
    assert bool((found > 0).all())


LOOK_UPS: dict[str, Callable[[nn.Embedding, Tensor], Tensor]] = {
    "module": lambda table, ids: table(ids),
    "function": lambda table, ids: F.embedding(ids, table.weight),
    "function, by name": lambda table, ids: F.embedding(input=ids, weight=table.weight),
    "torch.embedding": lambda table, ids: torch.embedding(table.weight, ids),
    "indices": lambda table, ids: table.weight[ids],
    "index_select": lambda table, ids: table.weight.index_select(0, ids.flatten()).unflatten(
        0, ids.shape
    ),
}


@pytest.mark.parametrize("look_up", LOOK_UPS.values(), ids=LOOK_UPS)
def test_noise_on_token_ids_is_refused_with_what_to_do(
    look_up: Callable[[nn.Embedding, Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    table, head = nn.Embedding(9, 8), nn.Linear(8, 3)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    ids = torch.randint(9, (2, 5))
    method = TransformerAttribution(lambda ids: head(layer(look_up(table, ids)).mean(1)))
    assert method.attribute(ids, 1).shape == ids.shape
    with pytest.raises(ExplanationError, match=r"in the place of token ids.*inputs_embeds"):
        NoiseTunnel(method).attribute(ids, nt_samples=2, target=1)
    with pytest.raises(ExplanationError, match=r"in the place of token ids.*inputs_embeds"):
        sensitivity_max(method.attribute, ids, n_perturb_samples=2, target=1)


def test_infidelity(vit_case: Any, name: str) -> None:
    attributions = CLASSES[name](vit_case.model).attribute(vit_case.inputs, 1)

    def perturb(images: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.1 * torch.randn_like(images)
        return noise, images - noise

    torch.manual_seed(0)
    found = infidelity(
        vit_case.model, perturb, vit_case.inputs, attributions, target=1, n_perturb_samples=4
    )
    assert found.shape == (3,)
    assert bool((found > 0).all())


def test_sensitivity_max(vit_case: Any, name: str) -> None:
    method = CLASSES[name](vit_case.model)
    torch.manual_seed(0)
    found = sensitivity_max(
        method.attribute, vit_case.inputs, perturb_radius=0.01, n_perturb_samples=2, target=1
    )
    assert found.shape == (3,)
    assert bool((found > 0).all() and found.isfinite().all())


def test_visualize_image_attr(vit_case: Any) -> None:
    maps = TransformerAttribution(vit_case.model).attribute(vit_case.inputs, 1)[0]
    relevance = maps.permute(1, 2, 0).numpy()
    photo = vit_case.inputs[0].sigmoid().permute(1, 2, 0).numpy()
    figure, _ = viz.visualize_image_attr(
        relevance, photo, method="blended_heat_map", sign="positive", use_pyplot=False
    )
    assert len(figure.axes) == 1
    figure, _ = viz.visualize_image_attr_multiple(
        relevance,
        photo,
        methods=["original_image", "heat_map"],
        signs=["all", "positive"],
        use_pyplot=False,
    )
    assert len(figure.axes) >= 2


def test_visualize_text(bert_case: Any) -> None:
    found = TransformerAttribution(bert_case.model).attribute(
        bert_case.inputs, 1, bert_case.kwargs
    )[0]
    words = [f"word{index}" for index in range(len(found))]
    record = viz.VisualizationDataRecord(
        found / found.norm(), 0.9, "POS", "POS", "POS", float(found.sum()), words, 0.0
    )
    page = viz.visualize_text([record])
    assert all(word in page.data for word in words)


def test_a_map_of_tokens_is_interpolated_as_a_layer_s(image_case: Any) -> None:
    """Captum's helper for layers gives what ``granularity="input"`` does."""
    method = TransformerAttribution(image_case.model)
    tokens = method.attribute(image_case.inputs, 1, granularity="token")[:, 1:]
    grid = tokens.reshape(3, 1, 4, 4)
    found = LayerAttribution.interpolate(grid, (32, 32), interpolate_mode="bilinear")
    assert torch.allclose(found[:, 0], method.attribute(image_case.inputs, 1).sum(1))


def test_data_loader_attribution_is_for_captum_s_perturbations_alone(vit_case: Any) -> None:
    """It perturbs features of a whole data set, and names the four classes that it takes."""
    with pytest.raises(AssertionError, match="does not support"):
        DataLoaderAttribution(TransformerAttribution(vit_case.model))


# -- TransformerLRP -----------------------------------------------------------------------------


PRESETS = [
    "paper",
    "lrp",
    "epsilon",
    "gamma",
    "alpha_beta",
    "attnlrp",
    "attnlrp_gamma",
    "cp_lrp",
    "libra",
]


@pytest.mark.parametrize(("preset", "case"), each_once(BUILDERS, PRESETS), indirect=["case"])
@pytest.mark.parametrize("start", ["one_hot", "logit"])
def test_attributions_and_delta_are_the_relevance_of_the_output(
    case: Any, preset: str, start: str
) -> None:
    method = TransformerLRP(case.model, preset=preset, start=start)
    found, delta = method.attribute(case.inputs, 1, case.kwargs, return_convergence_delta=True)
    expected = torch.ones(3).double() if start == "one_hot" else case.logits()[:, 1]
    total = found.flatten(1).sum(1) + delta
    # eq. 4 without normalisation multiplies relevance, and cancels it.
    scale = found.flatten(1).abs().sum(1) + expected.abs()
    assert bool(((total - expected).abs() < 1e-9 * scale).all())
    again = method.compute_convergence_delta(found, expected)
    assert torch.allclose(again, delta)


def test_the_delta_of_the_paper_s_rules_is_what_parameters_absorb(case: Any) -> None:
    _, delta = TransformerLRP(case.model).attribute(
        case.inputs, 1, case.kwargs, return_convergence_delta=True
    )
    absorbed = torch.stack(list(case.explain(1).absorbed.values())).sum(0)
    assert torch.allclose(delta, absorbed, rtol=0, atol=1e-6)


def test_contrasts_are_differences_of_seeds(case: Any) -> None:
    """LRP-ε is linear in its seed, so contrasts are sums of explanations of classes.

    The paper's rules are not: eq. 9-10 divide by sums of relevance.
    """
    classes = range(case.logits().shape[1])
    plain = TransformerLRP(case.model, preset="epsilon", start="one_hot").attribute_targets(
        case.inputs, list(classes), case.kwargs
    )

    def explained(contrast: str) -> Tensor:
        return TransformerLRP(case.model, preset="epsilon", contrast=contrast).attribute(
            case.inputs, 1, case.kwargs
        )

    others = torch.stack([plain[c] for c in classes if c != 1]).mean(0)
    assert relative_error(explained("clrp"), (plain[1] - others).clamp(min=0)) < 1e-6
    probability = case.logits().softmax(1)

    def weighed(values: Tensor, weight: Tensor) -> Tensor:
        return values * weight.reshape(-1, *[1] * (values.dim() - 1))

    target = probability[:, 1]
    expected = weighed(plain[1], target * (1 - target)) - sum(
        weighed(plain[c], target * probability[:, c]) for c in classes if c != 1
    )
    assert relative_error(explained("sglrp"), expected) < 1e-6


def test_tokens_take_the_relevance_of_the_first_block(case: Any) -> None:
    found = TransformerLRP(case.model, epsilon=0).attribute(
        case.inputs, 1, case.kwargs, granularity="token"
    )
    assert torch.allclose(found.sum(1), torch.ones(3).double(), atol=1e-6)


# -- PartialLRP ---------------------------------------------------------------------------------


def test_relevance_per_head_is_the_sum_of_the_head_s_map(case: Any) -> None:
    found = PartialLRP(case.model, preset="paper").relevance_per_head(case.inputs, 1, case.kwargs)
    expected = [maps.relevance.sum((-2, -1)) for maps in case.explain(1).attentions]
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        assert one.shape == (3, 3)
        assert relative_error(one, other) < 1e-9


def test_partial_relevance_is_that_of_the_block(case: Any) -> None:
    for layer in (0, -1):
        found = PartialLRP(case.model, preset="paper", layer=layer).attribute(
            case.inputs, 1, case.kwargs, granularity="token"
        )
        relevance = case.explain(1).attentions[layer].relevance.clamp(min=0).mean(1)
        assert relative_error(found, case.readout @ relevance) < 1e-9


# -- AttentionRollout ---------------------------------------------------------------------------


ROLLOUTS = {
    f"{fusion}, {discarded} discarded{', normalised' if normalised else ''}": (
        fusion,
        discarded,
        normalised,
    )
    for fusion in ("mean", "max", "min")
    for discarded in (0.0, 0.5, 0.9)
    for normalised in (False, True)
}


@pytest.mark.parametrize(("options", "case"), each_once(BUILDERS, ROLLOUTS), indirect=["case"])
def test_rollout_by_hand(case: Any, options: str) -> None:
    fusion, discard_ratio, row_normalize = ROLLOUTS[options]
    expected = torch.eye(len(case.readout)).double().expand(3, -1, -1)
    for maps in case.explain(1).attentions:
        A = maps.attention
        fused = {"mean": A.mean(1), "max": A.amax(1), "min": A.amin(1)}[fusion].numpy().copy()
        for one in fused:
            flat = one.reshape(-1)
            flat[np.argsort(flat, kind="stable")[: int(len(flat) * discard_ratio)]] = 0
        block = torch.from_numpy(fused) + torch.eye(len(case.readout))
        if row_normalize:
            block = block / block.sum(-1, keepdim=True)
        expected = block @ expected
    found = AttentionRollout(case.model, head_fusion=fusion, discard_ratio=discard_ratio).attribute(
        case.inputs,
        1,
        case.kwargs,
        granularity="token",
        row_normalize=row_normalize,
        keep_identity=True,
    )
    assert relative_error(found, case.readout @ expected) < 1e-9
