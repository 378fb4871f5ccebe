"""compare(): every method on the same inputs, as maps of one shape."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from captum.attr import (
    InputXGradient,
    IntegratedGradients,
    LayerGradientXActivation,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from captum_transformer_lrp import (
    AttentionRollout,
    ExplanationError,
    PartialLRP,
    TransformerAttribution,
    compare,
)
from captum_transformer_lrp.attr.comparison import METHODS
from captum_transformer_lrp.visualization import method_class_grid
from tests.attr.methods import each_once

FEW: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"n_steps": 5},
    "shapley_value_sampling": {"n_samples": 1},
    "lime": {"n_samples": 5},
    "kernel_shap": {"n_samples": 5},
    "bi_attention": {"n_steps": 3},
}


def run(case: Any, methods: Any, targets: Any = (1,), **options: Any) -> Any:
    return compare(
        case.model,
        case.inputs,
        targets,
        methods,
        additional_forward_args=case.kwargs or None,
        **options,
    )


@pytest.mark.filterwarnings("ignore::UserWarning:captum")
@pytest.mark.parametrize(
    ("name", "case"),
    [*each_once(["timm ViT", "Hugging Face ViT"], METHODS), *each_once(["BERT"], METHODS)],
    indirect=["case"],
)
def test_every_method_gives_a_map_for_every_target(case: Any, name: str) -> None:
    torch.manual_seed(0)
    targets = {"one": 1, "each its own": [0, 1, 2], "predicted": None}
    options = {name: FEW[name]} if name in FEW else None
    maps = run(case, [name], targets, options=options)
    assert list(maps) == [name]
    assert list(maps[name]) == list(targets)
    expected = case.inputs.shape if not case.is_image else (3, *case.inputs.shape[2:])
    for one in maps[name].values():
        assert one.shape == expected
        assert not one.requires_grad
        assert bool(one.isfinite().all())
        assert bool(one.any())


def test_a_map_of_an_image_is_the_sum_over_its_channels(vit_case: Any) -> None:
    maps = run(vit_case, ["transformer_attribution", InputXGradient, "occlusion"])
    ours = vit_case.attribute(1).sum(1)
    assert torch.equal(maps["transformer_attribution"]["1"], ours)
    images = vit_case.inputs.clone().requires_grad_()
    gradient = InputXGradient(vit_case.model).attribute(images, target=1).detach().sum(1)
    assert torch.allclose(maps["InputXGradient"]["1"], gradient)


def test_gradients_of_token_ids_are_those_of_their_embeddings(bert_case: Any) -> None:
    """As with the embeddings given to Hugging Face's model by hand."""
    model, mask = bert_case.model, bert_case.kwargs["attention_mask"]
    embeddings = model.bert.embeddings.word_embeddings(bert_case.inputs).detach()

    def forward(embedded: Tensor, mask: Tensor) -> Tensor:
        return model(inputs_embeds=embedded, attention_mask=mask).logits

    by_hand = IntegratedGradients(forward).attribute(
        embeddings.clone(),
        baselines=model.bert.embeddings.word_embeddings.weight[0].expand_as(embeddings),
        target=1,
        additional_forward_args=(mask,),
        n_steps=5,
    )
    few = {"integrated_gradients": {"n_steps": 5}}
    maps = run(bert_case, ["integrated_gradients"], options=few)
    assert torch.allclose(maps["integrated_gradients"]["1"], by_hand.sum(-1).detach())


def test_occlusion_of_text_replaces_one_token_at_a_time_by_padding(bert_case: Any) -> None:
    case = bert_case.example(0)
    maps = run(case, ["occlusion"])["occlusion"]["1"]
    for place in range(case.inputs.shape[1]):
        changed = case.inputs.clone()
        changed[:, place] = 0  # [PAD]
        with torch.no_grad():
            less = case.model(changed, **case.kwargs).logits[:, 1]
        # Captum computes these in float32.
        expected = (case.logits()[:, 1] - less).float()
        assert torch.allclose(maps[:, place].float(), expected, atol=1e-5)


def test_token_ids_of_a_model_of_ones_own() -> None:
    """Any nn.Embedding that is fed the ids, here reshaped, beside one fed with positions."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(20, 8), nn.Embedding(6, 8)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, ids: Tensor) -> Tensor:
            words = self.words(ids.view(-1)).view(*ids.shape, -1)
            x = self.layer(words + self.places(torch.arange(ids.shape[1])))
            return self.head(x.mean(1))

    torch.manual_seed(0)
    model, ids = Own().eval(), torch.randint(0, 20, (2, 6))
    maps = compare(model, ids, [0, 2], ["input_x_gradient", "occlusion"])
    assert {one.shape for of_target in maps.values() for one in of_target.values()} == {(2, 6)}
    # No [PAD] is known, so tokens are replaced by zero.
    with torch.no_grad():
        words = model.words(ids)
        words[:, 0] = 0
        x = model.layer(words + model.places(torch.arange(6)))
        less = model(ids) - model.head(x.mean(1))
    assert torch.allclose(maps["occlusion"]["2"][:, 0], less[:, 2], atol=1e-6)


def test_embeddings_are_inputs_like_any_other(bert_case: Any) -> None:
    model = bert_case.model
    embeddings = model.bert.embeddings.word_embeddings(bert_case.inputs).detach()
    forward = lambda embedded, attention_mask: model(  # noqa: E731
        inputs_embeds=embedded, attention_mask=attention_mask
    )
    methods = ["transformer_attribution", "input_x_gradient"]
    of_embeddings = compare(
        forward, embeddings, [1], methods, additional_forward_args=bert_case.kwargs
    )
    of_ids = run(bert_case, methods)
    for name in methods:
        assert torch.allclose(of_embeddings[name]["1"], of_ids[name]["1"])


def test_methods_by_class_by_function_and_by_object(vit_case: Any) -> None:
    own = vit_case.model
    methods = {
        "class": TransformerAttribution,
        "partial": partial(PartialLRP, preset="paper"),
        "function": lambda model: NoiseTunnel(Saliency(model)),
        "object": TransformerAttribution(own, head_weighting="none"),
        "Captum's object": Saliency(own),
        "layer": lambda model: LayerGradientXActivation(model, own.patch_embed.proj),
    }
    maps = run(vit_case, methods, options={"function": {"nt_samples": 2, "stdevs": 0.0}})
    assert {one["1"].shape for one in maps.values()} == {(3, 32, 32)}
    relevance = PartialLRP(own, preset="paper").attribute(vit_case.inputs, 1)
    assert torch.equal(maps["partial"]["1"], relevance.sum(1))
    # Without noise it is the method itself.
    assert torch.allclose(maps["function"]["1"], maps["Captum's object"]["1"])


def test_a_layer_method_of_captum_gets_the_token_ids(bert_case: Any) -> None:
    words = bert_case.model.bert.embeddings.word_embeddings
    maps = run(
        bert_case,
        {
            "layer": lambda model: LayerGradientXActivation(model, words),
            "input": "input_x_gradient",
        },
    )
    assert torch.allclose(maps["layer"]["1"], maps["input"]["1"])


@pytest.mark.parametrize(("target", "more"), [(1, 0), (None, 1)])
def test_the_model_runs_by_itself_only_for_the_predicted_class(
    vit_case: Any, target: int | None, more: int
) -> None:
    calls: list[int] = []
    handle = vit_case.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        AttentionRollout(vit_case.model).attribute(vit_case.inputs, target=1)
        alone = len(calls)
        run(vit_case, ["attention_rollout"], [target])
    finally:
        handle.remove()
    assert len(calls) == 2 * alone + more


def test_options_go_to_the_class_or_to_its_attribute(vit_case: Any) -> None:
    options = {"partial_lrp": {"preset": "paper", "layer": 0}, "saliency": {"abs": False}}
    maps = run(vit_case, ["partial_lrp", "saliency"], options=options)
    expected = PartialLRP(vit_case.model, preset="paper", layer=0).attribute(vit_case.inputs, 1)
    assert torch.equal(maps["partial_lrp"]["1"], expected.sum(1))
    assert bool((maps["saliency"]["1"] < 0).any())


def test_the_paper_s_methods_are_the_default(vit_case: Any) -> None:
    maps = compare(vit_case.model, vit_case.inputs[:1], {"cat": 1, "dog": 2})
    assert len(maps) == 6
    figure = method_class_grid(maps, vit_case.inputs[0].float().sigmoid())
    assert [axes.get_ylabel() for axes in figure.axes[: 3 * len(maps) : 3]] == list(maps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["integrated_gradient"]}, "did you mean 'integrated_gradients'"),
        ({"methods": []}, "there are no methods"),
        ({"methods": ["saliency", "saliency"]}, "two methods called 'saliency'"),
        ({"methods": ["saliency"], "options": {"lime": {}}}, "options are for 'lime'"),
        ({"methods": ["saliency"], "targets": []}, "there are no targets"),
        ({"methods": ["saliency"], "targets": [1, 1]}, "targets has duplicates"),
    ],
)
def test_mistakes_in_the_call_are_named(
    vit_case: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(vit_case, **{"targets": [1], **arguments})


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("saliency", {"target": 3}, "^saliency: "),
        ("partial_lrp", {"layer": 7}, "^partial_lrp: layer must be one of"),
        ("partial_lrp", {"nonsense": 7}, "^partial_lrp: .*nonsense"),
        ("transformer_attribution", {"granularity": "token"}, "expected one for inputs of shape"),
        ("integrated_gradients", {"return_convergence_delta": True}, "leave out return_conv"),
        (Occlusion, {"sliding_window_shapes": (9, 9)}, "^Occlusion: "),
        (lambda model: model, {}, "not a captum.attr.Attribution"),
    ],
)
def test_a_method_that_fails_is_named(
    vit_case: Any, method: Any, options: dict[str, Any], message: str
) -> None:
    label = method if isinstance(method, str) else method.__name__
    with pytest.raises(ExplanationError, match=message) as raised:
        run(vit_case, [method], options={label: options})
    assert raised.value.__cause__ is not None


def test_objects_of_captum_for_token_ids_are_refused(bert_case: Any) -> None:
    with pytest.raises(ExplanationError, match="no keyword arguments of the model"):
        run(bert_case, [IntegratedGradients(bert_case.model)])
    with pytest.raises(ExplanationError, match="give the class IntegratedGradients"):
        compare(bert_case.model, bert_case.inputs, [1], [IntegratedGradients(bert_case.model)])


def test_ids_that_nobody_looks_up_are_refused() -> None:
    class OneHot(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return nn.functional.one_hot(ids, 5).float().sum(1)

    with pytest.raises(ExplanationError, match=r"no torch\.nn\.Embedding looked the token ids up"):
        compare(OneHot(), torch.ones(1, 3, dtype=torch.long), [1], ["saliency"])


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3, 4, 5)])
def test_inputs_of_other_shapes_are_refused(vit_case: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="inputs must be float images"):
        compare(vit_case.model, torch.zeros(shape), [1])


# -- the paper's claim --------------------------------------------------------------------------

PHOTOS = {
    "coco_000000000196": {"bowl": 809, "dining table": 532},
    "coco_000000000283": {"bottle": 907, "wine glass": 966},
    "coco_000000001675": {"cat": 283, "keyboard": 508},
    "coco_000000004795": {"cat": 283, "laptop": 681},
    "coco_000000007818": {"wine glass": 572, "dining table": 532},
}
"""The photos of two labelled objects, with the most probable class of each label."""


@pytest.mark.slow
def test_two_classes_of_a_photo_are_told_apart_best_by_transformer_attribution(
    shared: Path,
) -> None:
    """Correlation between the maps of two classes, over patches, DeiT-tiny in float64.

    Measured, for each photo and on average (TransformerAttribution is lowest on four of five;
    the third decimal depends on how the stabiliser is set):

    ====================== ====== ====== ====== ====== ====== =====
    attention rollout       1.000  1.000  1.000  1.000  1.000 1.000
    raw attention           1.000  1.000  1.000  1.000  1.000 1.000
    LRP, eq. 4              0.999  1.000  1.000  0.999  0.999 0.999
    partial LRP, paper      0.962  0.932  0.969  0.994  0.843 0.940
    LRP, eq. 5, 9, 10       0.992  0.610  0.990  0.974  0.986 0.910
    partial LRP             0.922  0.417  0.975  0.986  0.806 0.821
    TransformerAttribution  0.428  0.601  0.027  0.445  0.540 0.408
    ====================== ====== ====== ====== ====== ====== =====

    Grad-CAM, which is no relevance method, has -0.22 to 0.99, and empty maps in two photos.
    """
    model = timm.create_model("deit_tiny_patch16_224")
    model.load_state_dict(load_file(shared / "models/deit_tiny_imagenet/model.safetensors"))
    model = model.double().eval()
    mean, std = (
        torch.tensor(model.default_cfg[n]).double()[:, None, None] for n in ("mean", "std")
    )
    methods = {
        "attention rollout": "attention_rollout",
        "raw attention": "raw_attention",
        "LRP, eq. 4": "transformer_lrp",
        "partial LRP, paper": partial(PartialLRP, preset="paper"),
        "LRP, eq. 5, 9, 10": "transformer_lrp",
        "partial LRP": "partial_lrp",
        "TransformerAttribution": TransformerAttribution,
    }
    table: dict[str, list[float]] = {name: [] for name in methods}
    for name, targets in PHOTOS.items():
        photo = Image.open(shared / f"data/segmentation/images/{name}.jpg").convert("RGB")
        pixels = torch.from_numpy(np.asarray(photo).copy()).double().permute(2, 0, 1) / 255
        image = ((pixels - mean) / std)[None]
        maps = compare(model, image, targets, methods, options={"LRP, eq. 4": {"preset": "lrp"}})
        for method, of_class in maps.items():
            patches = [nn.functional.avg_pool2d(one, 16).flatten() for one in of_class.values()]
            table[method].append(float(torch.corrcoef(torch.stack(patches))[0, 1]))
            if method in ("attention rollout", "raw attention"):
                assert torch.equal(*of_class.values())
    for method, row in table.items():
        print(f"{method:23}", *(f"{value:6.3f}" for value in (*row, np.mean(row))))
    average = {method: np.mean(row) for method, row in table.items()}
    assert min(average, key=lambda method: average[method]) == "TransformerAttribution"
    assert average["TransformerAttribution"] < 0.6 * min(
        value for method, value in average.items() if method != "TransformerAttribution"
    )


def test_targets_at_positions_of_a_language_model_need_no_predicted_class() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    ids = torch.randint(20, (2, 5))
    maps = compare(model, ids, {"next": (4, 3)}, ["transformer_attribution", "input_x_gradient"])
    ours = TransformerAttribution(model).attribute(ids, target=(4, 3))
    assert torch.equal(maps["transformer_attribution"]["next"], ours)
    assert maps["input_x_gradient"]["next"].shape == (2, 5)
    with pytest.raises(ValueError, match="say which value to explain"):
        compare(model, ids, [None], ["transformer_attribution"])
