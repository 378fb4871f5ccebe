"""Blocks and matrices: drawn from the numbers that they are said to show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from captum_transformer_lrp import AttentionMaps, Explanation, TransformerAttribution, examples
from captum_transformer_lrp.visualization import block_grid, token_matrix
from captum_transformer_lrp.visualization.colors import Scale


@pytest.fixture(scope="module")
def sentiment() -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast]:
    return examples.sentiment_classifier()


@pytest.fixture(scope="module")
def explanation(sentiment) -> Explanation:
    model, tokenizer = sentiment
    batch = tokenizer("a witty film", return_tensors="pt")
    return TransformerAttribution(model).explain(batch["input_ids"], target=1)


def assert_nothing_is_clipped(figure: Figure) -> None:
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box.x0 >= figure.bbox.x0
        assert box.x1 <= figure.bbox.x1
        assert box.y0 >= figure.bbox.y0
        assert box.y1 <= figure.bbox.y1


def drawn(figure: Figure, panel: int) -> np.ndarray:
    return np.asarray(figure.axes[panel].images[0].get_array())


def test_a_row_for_each_block_and_a_column_for_each_map(explanation: Explanation) -> None:
    figure = block_grid(explanation.attentions)
    assert_nothing_is_clipped(figure)
    labels = [axes.get_ylabel().replace("\n", "") for axes in figure.axes if axes.get_ylabel()]
    assert labels == [maps.name for maps in explanation.attentions]
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert [title.split("\n")[0] for title in titles] == [
        "attention",
        "gradient",
        "relevance",
        "weighted map",
    ]


def test_a_row_for_each_head_shows_that_head(explanation: Explanation) -> None:
    figure = block_grid(explanation.attentions, blocks=[-1], heads=[2, 0])
    assert len(figure.axes) == 2 * 4 + 4
    attention = explanation.attentions[-1].attention[0, 2].double().numpy()
    scale = Scale.from_zero(attention)
    expected = scale.image_colors(scale.position(attention))
    np.testing.assert_allclose(drawn(figure, 0), expected)


def test_the_row_of_one_token_is_laid_out_on_the_patch_grid() -> None:
    maps = torch.arange(2 * 10 * 10, dtype=torch.float32).reshape(1, 2, 10, 10)
    figure = block_grid(
        [AttentionMaps("attn", maps, maps, maps, maps)], query=0, patches=(3, 3), heads=[1]
    )
    assert drawn(figure, 0).shape == (3, 3, 4)
    # [CLS] is left out, and the last patch has the most.
    largest = Scale(0.0, 1.0, signed=False).image_colors(1.0)
    np.testing.assert_allclose(drawn(figure, 0)[2, 2], largest)


def test_zero_is_neutral_in_a_map_of_both_signs() -> None:
    maps = torch.tensor([[[[-1.0, 0.0], [0.0, 0.5]]]])
    figure = block_grid([AttentionMaps("attn", maps.abs(), maps, maps, maps.clamp(min=0))])
    neutral = Scale(-1.0, 1.0, signed=True).image_colors(0.5)
    np.testing.assert_allclose(drawn(figure, 1)[0, 1], neutral)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"example": 1}, "found example 1, expected 0 to 0"),
        ({"blocks": [3]}, "found block 3, expected one of the 3 attentions, -3 to 2"),
        ({"heads": [4]}, "found head 4, but .* has 4, 0 to 3"),
        ({"query": 9}, "found query 9, but .* has 5 tokens"),
        ({"patches": (2, 2)}, "patches lays out the row of one query"),
        ({"query": 0, "patches": (3, 3)}, r"found patches=\(3, 3\), 9 in all"),
    ],
)
def test_what_the_maps_do_not_have_is_said(
    explanation: Explanation, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        block_grid(explanation.attentions, **options)


def test_a_rollout_matrix_is_labelled_with_its_tokens(sentiment) -> None:
    model, tokenizer = sentiment
    batch = tokenizer("a gorgeous, unputdownable <b>film</b> $x^2$", return_tensors="pt")
    method = TransformerAttribution(model)
    matrix = method.attribute(batch["input_ids"], target=1, granularity="matrix")
    tokens = batch.tokens()
    figure = token_matrix(matrix, tokens, title="C of eq. 14 " * 9)
    assert_nothing_is_clipped(figure)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == tokens
    assert [label.get_text() for label in axes.get_yticklabels()] == tokens


def test_a_matrix_of_two_sequences_has_one_label_for_each_row_and_column() -> None:
    values = torch.tensor([[0.5, 0.0, 0.1], [0.0, 1.0, 0.0]])
    figure = token_matrix(
        values, ["das", "ist", "gut"], ["this", "good"], x_label="source", y_label="generated"
    )
    assert_nothing_is_clipped(figure)
    assert drawn(figure, 0).shape == (2, 3, 4)
    brightest = np.unravel_index(drawn(figure, 0)[..., :3].sum(-1).argmax(), (2, 3))
    assert brightest == (1, 1)


def test_many_tokens_are_labelled_sparsely_and_long_ones_are_cut() -> None:
    figure = token_matrix(np.eye(100), ["W" * 60] * 100)
    assert_nothing_is_clipped(figure)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert len(labels) == 34
    assert all(label.endswith("…") for label in labels)


def test_labels_that_do_not_fit_the_matrix_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 rows and 3 columns with 3 row labels and 3 column"):
        token_matrix(np.zeros((2, 3)), ["a", "b", "c"])
    with pytest.raises(ValueError, match="pick one of the batch"):
        token_matrix(np.zeros((2, 3, 3)), ["a", "b", "c"])
