"""Methods by name give what their classes give, and refuse what they cannot do."""

from __future__ import annotations

import pytest
import torch

from captum_transformer_lrp import AttentionRollout, ExplanationError, TransformerAttribution
from captum_transformer_lrp.benchmarks import ABLATIONS, NAMES, PAPER, BenchmarkError
from captum_transformer_lrp.benchmarks.methods import methods_by_name
from captum_transformer_lrp.models import ImageModel

# Seconds rather than tenths, for they call the model hundreds of times.
SLOW = {
    "attention_flow",
    "kernel_shap",
    "lime",
    "shapley_value_sampling",
    "occlusion",
    "feature_ablation",
}
DRAWING = {
    "random",
    "smooth_grad",
    "gradient_shap",
    "lime",
    "kernel_shap",
    "shapley_value_sampling",
}
PIXELS = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.slow) if x in SLOW else x for x in NAMES]
)
def test_every_name_makes_finite_maps(tiny: ImageModel, name: str) -> None:
    few = {"shapley_value_sampling": ":n_samples=1", "integrated_gradients": ":n_steps=4"}
    (method,) = methods_by_name([name + few.get(name, "")])
    maps = method.maps(tiny.model, PIXELS, [2, 0, 2])
    assert [one.shape for one in maps] == [(160, 160)] * 3
    assert torch.equal(maps[0], maps[2])
    assert bool(maps[0].isfinite().all())
    nonzero = [float(one.std()) > 0 for one in maps]
    if name == "lime":
        return  # its lasso drops small weights, and a random model has no others
    # Grad-CAM clamps at zero, and may find nothing for a class.
    assert any(nonzero) if name == "attention_gradcam" else all(nonzero)
    assert method.class_agnostic == torch.equal(maps[0], maps[1])


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.slow) if x in SLOW else x for x in NAMES]
)
def test_images_of_one_batch_are_explained_as_each_by_itself(tiny: ImageModel, name: str) -> None:
    few = {"shapley_value_sampling": ":n_samples=1", "integrated_gradients": ":n_steps=4"}
    (method,) = methods_by_name([name + few.get(name, "")])
    batch = torch.cat([PIXELS, PIXELS.flip(-1)])
    maps = method.of_batch(tiny.model, batch, 1)
    assert maps.shape == (2, 160, 160)
    if name in DRAWING:
        return
    for image, found in zip(batch, maps, strict=True):
        (alone,) = method.maps(tiny.model, image[None], [1])
        torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-5 * float(alone.abs().max()))


def test_options_reach_the_class_and_its_attribute(tiny: ImageModel) -> None:
    found = methods_by_name(
        [
            "transformer_attribution:head_weighting=none:start_layer=1",
            "attention_rollout:discard_ratio=0.5:dtype=float64",
        ]
    )
    expected = [
        TransformerAttribution(tiny.model, head_weighting="none").attribute(
            PIXELS, target=1, start_layer=1
        ),
        AttentionRollout(tiny.model, discard_ratio=0.5, dtype=torch.float64).attribute(PIXELS),
    ]
    for method, attributions in zip(found, expected, strict=True):
        (one,) = method.maps(tiny.model, PIXELS, [1])
        torch.testing.assert_close(one, attributions[0].sum(0).double())


def test_the_ablations_are_those_of_table_3(tiny: ImageModel) -> None:
    without_gradient, last, second = methods_by_name(ABLATIONS)
    assert without_gradient.options == {"head_weighting": "attention"}
    explanation = TransformerAttribution(tiny.model).explain(PIXELS, target=1)
    for method, block in ((last, -1), (second, 1)):
        (one,) = method.maps(tiny.model, PIXELS, [1])
        # One block's row of [CLS], upsampled: the product with nothing.
        row = explanation.attentions[block].weighted.mean(1)[0, 0, -100:].view(1, 1, 10, 10)
        expected = torch.nn.functional.interpolate(row, (160, 160), mode="bilinear")[0, 0].double()
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-6 * float(expected.max()))


def test_groups_stand_for_their_methods() -> None:
    labels = [one.label for one in methods_by_name(["random", "paper", "ablations"])]
    assert labels == ["random", *PAPER, *ABLATIONS]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["rollout"], r"there is no method 'rollout'.*attention_rollout"),
        (["random", "random"], "found random twice"),
        ([], "found no methods"),
        (["random:fast"], "cannot read 'fast' in 'random:fast', expected name:option=value"),
    ],
)
def test_names_that_cannot_be_read(names: list[str], message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        methods_by_name(names)


def test_an_option_that_there_is_none_of_is_said(tiny: ImageModel) -> None:
    (method,) = methods_by_name(["raw_attention:colour=3"])
    with pytest.raises(ExplanationError, match=r"raw_attention:colour=3: .*colour"):
        method.maps(tiny.model, PIXELS, [1])


def test_cells_average_a_map_over_patches(tiny: ImageModel) -> None:
    fine, coarse = (
        methods_by_name([name])[0].maps(tiny.model, PIXELS, [1])[0]
        for name in ("saliency", "saliency:cells=10")
    )
    assert torch.allclose(coarse[:16, 16:32], fine[:16, 16:32].mean())
    assert coarse.sum() == pytest.approx(float(fine.sum()))


def test_cells_that_do_not_fit_are_refused(tiny: ImageModel) -> None:
    with pytest.raises(BenchmarkError, match="cells=0"):
        methods_by_name(["saliency:cells=0"])
    (method,) = methods_by_name(["saliency:cells=7"])
    with pytest.raises(ValueError, match="cells=7 does not divide"):
        method.maps(tiny.model, PIXELS, [1])
