"""`captum.attr.visualization` takes our maps, and our functions take Captum's."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, visualization

from captum_transformer_lrp import TransformerAttribution, examples
from captum_transformer_lrp.visualization import (
    TextExplanation,
    Word,
    from_record,
    overlay_image,
    text_html,
    to_record,
)
from captum_transformer_lrp.visualization.arrays import to_map


@pytest.fixture(scope="module", autouse=True)
def _without_a_screen():
    before = mpl.get_backend()
    mpl.use("agg")
    yield
    mpl.use(before)


@pytest.fixture(scope="module")
def scene() -> tuple[torch.nn.Module, np.ndarray, torch.Tensor]:
    found = examples.scenes()[0]
    return examples.scene_classifier(), found.image, examples.preprocess(found.image)[None]


def test_captum_draws_our_maps_as_it_draws_its_own(scene) -> None:
    model, photo, pixels = scene
    attributions = TransformerAttribution(model).attribute(pixels, target=0)
    channels_last = attributions[0].permute(1, 2, 0).numpy()
    figure, axes = visualization.visualize_image_attr(
        channels_last, photo, method="blended_heat_map", sign="positive", use_pyplot=False
    )
    drawn = np.asarray(axes.images[-1].get_array())
    expected = channels_last.sum(2)
    # Captum cuts off the top 2 % and scales what is left to 1; the order stays.
    below = expected < np.percentile(expected, 90)
    ranks = [values[below].argsort().argsort() for values in (drawn, expected)]
    assert np.corrcoef(*ranks)[0, 1] > 0.999
    figure, _ = visualization.visualize_image_attr_multiple(
        channels_last,
        photo,
        ["original_image", "heat_map"],
        ["all", "positive"],
        use_pyplot=False,
    )
    assert len(figure.axes) >= 2


def test_our_overlay_draws_captum_s_attributions_in_either_layout(scene) -> None:
    model, photo, pixels = scene
    attributions = InputXGradient(model).attribute(pixels.requires_grad_(), target=0).detach()
    channels_last = attributions[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(to_map(channels_last), to_map(attributions), rtol=1e-6, atol=1e-9)
    assert overlay_image(photo, channels_last).axes


def test_captum_s_page_of_text_shows_our_words_and_no_markup_of_theirs() -> None:
    words = [Word("<script>", 0.4), Word("good", 0.8, before=" "), Word("&", -0.2)]
    record = to_record(TextExplanation("positive", words, 0.9), true_class="<b>")
    page = visualization.visualize_text([record]).data
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;" in page
    assert "positive (0.90)" in page
    assert record.word_attributions.tolist() == pytest.approx([0.5, 1.0, -0.25])
    assert record.attr_score == pytest.approx(1.0)


def test_our_page_shows_a_record_that_was_made_for_captum() -> None:
    record = visualization.VisualizationDataRecord(
        torch.tensor([0.5, -0.25]), 0.9, "pos", "pos", "pos", 0.25, ["<b>", "film"], 0.0
    )
    explanation = from_record(record)
    assert explanation.title == "pos, 90.0 %"
    page = text_html([explanation])
    assert "&lt;b&gt;" in page
    assert 'title="-0.25"' in page


def test_the_probability_of_another_class_is_not_shown_as_that_of_the_explained_one() -> None:
    record = visualization.VisualizationDataRecord([0.5], 0.9, "pos", "pos", "neg", 0.5, ["x"], 0.0)
    assert from_record(record).probability is None


def test_a_record_with_a_number_for_each_feature_is_refused() -> None:
    record = visualization.VisualizationDataRecord(
        torch.zeros(1, 4), 0.9, "pos", "pos", "pos", 0.0, ["x"], 0.0
    )
    with pytest.raises(ValueError, match="sum over the embedding dimension"):
        from_record(record)
