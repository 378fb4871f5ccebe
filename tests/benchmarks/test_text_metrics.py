"""Metrics of maps of tokens, on a classifier that adds up its words and on a trained one."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from captum_transformer_lrp.benchmarks import TEXT_METRICS, BenchmarkError, Result, text_metrics
from captum_transformer_lrp.cli import app
from captum_transformer_lrp.examples import sentiment_classifier
from captum_transformer_lrp.models import TextModel, load_text_model
from tests.benchmarks.eraser_corpus import write_corpus
from tests.benchmarks.test_text_perturbation import EVIDENCE, TEXT, WordSum

REVIEW = ("a", "POSITIVE", TEXT, ())


@pytest.fixture(scope="module")
def words() -> TextModel:
    _, tokenizer = sentiment_classifier()
    return TextModel("words", WordSum(tokenizer), tokenizer, ("NEGATIVE", "POSITIVE"))


def measured(model: TextModel, folder: Path, methods: list[str], **options: Any) -> Result:
    corpus = write_corpus(folder / "corpus", options.pop("reviews", [REVIEW]))
    return text_metrics(
        model, corpus, methods, output=folder / "out", explain=["target"], **options
    )


def positive(*left: str) -> float:
    return 1 / (1 + math.exp(-sum(EVIDENCE.get(word, 0.0) for word in left)))


def area(values: list[float]) -> float:
    """Of five words, one goes with each fifth; the curve has a point for each twentieth."""
    points = [value for value in values[:-1] for _ in range(4)] + values[-1:]
    return sum((a + b) / 40 for a, b in pairwise(points))


def test_deletion_and_insertion_by_hand(words: TextModel, tmp_path: Path) -> None:
    """Gradient times input is the evidence: witty, film, a, but, dull."""
    result = measured(
        words, tmp_path, ["input_x_gradient"], metrics=["deletion, insertion", "saco", "sparseness"]
    )

    def value(metric: str) -> float:
        return result.figure("input_x_gradient", metric, "target").value

    order = ["witty", "film", "a", "but", "dull"]
    deleted = [positive(*order[count:]) for count in range(6)]
    inserted = [positive(*order[:count]) for count in range(6)]
    assert value("deletion") == pytest.approx(area(deleted), rel=1e-5)
    assert value("insertion") == pytest.approx(area(inserted), rel=1e-5)
    assert value("saco") == pytest.approx(1)
    # Gini of 0, 0, ¼, 1 and 1½: (−4·0 − 2·0 + 0·¼ + 2·1 + 4·1½) / (5 · 2¾).
    assert value("sparseness") == pytest.approx(8 / 13.75, abs=1e-5)


@pytest.mark.slow
def test_what_ignores_the_class_has_the_same_map_of_another_one(tmp_path: Path) -> None:
    model = load_text_model("bundled/sentiment")
    reviews = [REVIEW, ("b", "NEGATIVE", "a dull , tired film that wastes its cast .", ())]
    methods = ["attention_rollout", "transformer_attribution", "attnlrp"]
    result = measured(model, tmp_path, methods, metrics=list(TEXT_METRICS), reviews=reviews)
    for method in methods:
        of_class = result.figure(method, "random_logit", "target").value
        assert (of_class == pytest.approx(1)) == (method == "attention_rollout")
        # Of two classes the other one is the least likely or the likeliest.
        assert of_class == pytest.approx(result.figure(method, "class_sensitivity", "target").value)
        assert result.figure(method, "mprt", "target, 100 %").value < 0.99
        assert 0 < result.figure(method, "sparseness", "target").value < 1
    ours, rollout = (result.figure(one, "deletion", "target").value for one in methods[1::-1])
    assert ours < rollout


def test_the_weights_are_those_given_afterwards(words: TextModel, tmp_path: Path) -> None:
    before = {name: one.clone() for name, one in words.model.state_dict().items()}
    measured(words, tmp_path, ["random"], metrics=["mprt"])
    for name, one in words.model.state_dict().items():
        assert torch.equal(one, before[name])


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("road", "there is no metric 'road'; there are deletion, insertion"),
        ("quantus:Sparseness", "there is no metric 'quantus:Sparseness'"),
        ("saco:cells=2", "saco has no option 'cells'; it has groups, removal"),
    ],
)
def test_what_has_no_meaning_for_texts_is_refused(
    words: TextModel, tmp_path: Path, metric: str, message: str
) -> None:
    with pytest.raises(BenchmarkError, match=message):
        measured(words, tmp_path, ["random"], metrics=[metric])


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    _, tokenizer = sentiment_classifier()
    model = TextModel("words", WordSum(tokenizer), tokenizer, ("NEGATIVE", "POSITIVE"))
    tokenizer.mask_token = None
    with pytest.raises(BenchmarkError, match="words has no mask token"):
        measured(model, tmp_path, ["random"])


def test_the_command_shows_a_table(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    command = ["benchmark", "text-metrics", "--model", "bundled/sentiment", "--data", str(corpus)]
    command += ["--methods", "random", "--metric", "deletion,entropy", "--limit", "2"]
    result = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "entropy" in result.output
