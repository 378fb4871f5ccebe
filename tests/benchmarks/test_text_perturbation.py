"""Comprehensiveness and sufficiency, checked on a classifier that adds up its words."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from typer.testing import CliRunner

from captum_transformer_lrp.benchmarks.corpus_tokens import encode_tokens, without_tokens
from captum_transformer_lrp.benchmarks.eraser import EraserDocuments
from captum_transformer_lrp.benchmarks.errors import BenchmarkError
from captum_transformer_lrp.benchmarks.text_perturbation import (
    TextPerturbationBenchmark,
    text_perturbation,
)
from captum_transformer_lrp.cli import app
from captum_transformer_lrp.examples import sentiment_classifier
from captum_transformer_lrp.models import TextModel
from tests.benchmarks.eraser_corpus import write_corpus

TEXT = "a witty but dull film"
EVIDENCE = {"witty": 1.0, "dull": -1.5, "film": 0.25}
REVIEW = ("a", "NEGATIVE", TEXT, ((3, 4),))


class WordSum(nn.Module):
    """The logit of POSITIVE is the sum of its words' evidence."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(len(tokenizer), 1)
        nn.init.zeros_(self.table.weight)
        for word, value in EVIDENCE.items():
            ids = tokenizer(word, add_special_tokens=False)["input_ids"]
            self.table.weight.data[ids] = value / len(ids)

    def forward(self, input_ids: Tensor, **_: Any) -> SequenceClassifierOutput:
        evidence = self.table(input_ids).sum(1)
        logits = torch.cat([torch.zeros_like(evidence), evidence], 1)
        return SequenceClassifierOutput(logits=logits)


@pytest.fixture(scope="module")
def classifier() -> TextModel:
    _, tokenizer = sentiment_classifier()
    return TextModel("words", WordSum(tokenizer), tokenizer, ("NEGATIVE", "POSITIVE"))


def _benchmark(classifier: TextModel, tmp_path: Path, **options: Any) -> TextPerturbationBenchmark:
    folder = tmp_path / "corpus"
    corpus = folder if folder.exists() else write_corpus(folder, [REVIEW])
    return TextPerturbationBenchmark(
        classifier, EraserDocuments(corpus, "test"), ["random"], **options
    )


def _negative(*words: str) -> float:
    """The probability of NEGATIVE of a text with these words."""
    return 1 / (1 + math.exp(sum(EVIDENCE.get(word, 0.0) for word in words)))


@pytest.mark.parametrize("removal", ["delete", "mask"])
def test_probabilities_are_those_without_the_rationale_and_of_it_alone(
    classifier: TextModel, tmp_path: Path, removal: str
) -> None:
    benchmark = _benchmark(classifier, tmp_path, bins=[20, 60], removal=removal)
    example = benchmark.load(0)
    found = benchmark.measure(example, [3, 0, 1, 2, 4], target=0)
    full = _negative("witty", "dull", "film")
    # 20 % of five tokens are "dull"; 60 % are "dull", "a" and "witty".
    assert found["comprehensiveness"] == pytest.approx(
        [full - _negative("witty", "film"), full - _negative("film")]
    )
    assert found["sufficiency"] == pytest.approx(
        [full - _negative("dull"), full - _negative("dull", "witty")]
    )


def test_the_order_of_the_true_evidence_is_the_most_comprehensive_of_all(
    classifier: TextModel, tmp_path: Path
) -> None:
    benchmark = _benchmark(classifier, tmp_path, bins=[20, 40, 60, 80])
    example = benchmark.load(0)
    true = [3, 0, 2, 4, 1]  # from dull to witty

    def total(order: Any) -> float:
        return sum(benchmark.measure(example, order, target=0)["comprehensiveness"])

    best = total(true)
    assert all(total(order) <= best + 1e-9 for order in itertools.permutations(range(5)))


def test_a_bin_has_at_least_one_token_and_all_of_them_at_100_per_cent(
    classifier: TextModel, tmp_path: Path
) -> None:
    benchmark = _benchmark(classifier, tmp_path, bins=[1, 100])
    found = benchmark.measure(benchmark.load(0), [3, 0, 1, 2, 4], target=0)
    full = _negative("witty", "dull", "film")
    assert found["comprehensiveness"] == pytest.approx(
        [full - _negative("witty", "film"), full - 0.5]
    )
    assert found["sufficiency"][1] == 0.0


def test_both_means_over_the_bins(classifier: TextModel, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [REVIEW])
    result = text_perturbation(
        classifier, corpus, ["random"], bins=[20, 40], output=tmp_path / "results"
    )

    def value(metric: str, condition: str) -> float:
        return result.figure("random", metric, f"predicted, {condition}").value

    full, nothing = _negative("witty", "dull", "film"), 0.5
    for metric, of_empty in (("comprehensiveness", 0.0), ("sufficiency", full - nothing)):
        bins = value(metric, "20 %") + value(metric, "40 %")
        assert value(metric, "AOPC") == pytest.approx(bins / 2)
        assert value(metric, "AOPC with k=0") == pytest.approx((bins + of_empty) / 3)


def test_deleted_tokens_leave_what_the_tokenizer_makes_of_the_rest() -> None:
    _, tokenizer = sentiment_classifier()
    tokens = ["an", "unwatchable", ",", "overlong", "film"]
    encoded = encode_tokens(tokenizer, tokens)
    ids, keywords = without_tokens(encoded, [1, 3])
    rest = tokenizer("an , film", return_tensors="pt")
    assert ids.tolist() == rest["input_ids"].tolist()
    assert {name: value.shape for name, value in keywords.items()} == {
        name: value.shape for name, value in rest.items() if name != "input_ids"
    }


def test_text_beyond_the_cut_does_not_move_up(classifier: TextModel, tmp_path: Path) -> None:
    benchmark = _benchmark(classifier, tmp_path, max_length=4)  # [CLS] a witty [SEP]
    example = benchmark.load(0)
    assert len(example.encoded.read) < 5
    last = example.encoded.read[-1]
    ids, _ = without_tokens(example.encoded, [last])
    assert ids.shape[1] < example.encoded.input_ids.shape[1]
    assert set(ids[0].tolist()) <= set(example.encoded.input_ids[0].tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": []}, "bins must be"),
        ({"bins": [0]}, "bins must be"),
        ({"bins": [101]}, "bins must be"),
        ({"removal": "blank"}, "'delete' or 'mask'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    classifier: TextModel, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BenchmarkError, match=message):
        _benchmark(classifier, tmp_path, **options)


def test_masking_needs_a_mask_token(classifier: TextModel, tmp_path: Path) -> None:
    tokenizer = SimpleNamespace(mask_token_id=None, model_max_length=512)
    without = TextModel("no mask", classifier.model, tokenizer, classifier.class_names)
    with pytest.raises(BenchmarkError, match="has no mask token"):
        _benchmark(without, tmp_path, removal="mask")


def test_the_command_writes_curves_of_both_metrics(tmp_path: Path) -> None:
    model, tokenizer = sentiment_classifier()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    corpus = write_corpus(tmp_path / "corpus")
    command = ["benchmark", "text-perturbation", "--model", str(tmp_path / "model")]
    command += ["--data", str(corpus), "--methods", "raw_attention,random", "--bins", "10,50"]
    command += ["--removal", "mask", "--output", str(tmp_path / "out"), "--limit", "3"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "sufficiency" in result.output
    assert (tmp_path / "out" / "curves.png").exists()
