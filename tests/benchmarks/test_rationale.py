"""Token-F1 against human rationales."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score
from typer.testing import CliRunner

from captum_transformer_lrp.benchmarks.annotated_texts import corpus_classes
from captum_transformer_lrp.benchmarks.eraser import EraserDocuments
from captum_transformer_lrp.benchmarks.errors import BenchmarkError
from captum_transformer_lrp.benchmarks.rationale import (
    BEST_POSSIBLE,
    LAST_TOKENS,
    RANDOM_ORDER,
    RationaleBenchmark,
    rationale,
)
from captum_transformer_lrp.benchmarks.results import Result
from captum_transformer_lrp.benchmarks.runner import run
from captum_transformer_lrp.cli import app
from captum_transformer_lrp.examples import sentiment_classifier
from captum_transformer_lrp.models import TextModel
from tests.benchmarks.eraser_corpus import REVIEWS, change_annotation, write_corpus

PAPER_AND_RANDOM = ("paper", "random")


@pytest.fixture(scope="module")
def classifier() -> TextModel:
    model, tokenizer = sentiment_classifier()
    return TextModel("bundled", model, tokenizer, ("NEGATIVE", "POSITIVE"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


def _benchmark(classifier: TextModel, corpus: Path, **options: Any) -> RationaleBenchmark:
    options = {"methods": ["raw_attention"], "top_k": [1, 3], **options}
    return RationaleBenchmark(classifier, EraserDocuments(corpus, "test"), **options)


def test_f1_is_counted_in_the_corpus_tokens(classifier: TextModel, corpus: Path) -> None:
    benchmark = _benchmark(classifier, corpus, top_k=[1, 3, 100])
    example = benchmark.load(5)  # "one of the [best films] of the year ."
    found = benchmark.measure(example, [3, 0, 4, 1, 2, 5, 6, 7, 8], target=1)
    assert found["precision"] == [1.0, 2 / 3, 2 / 9]
    assert found["recall"] == [0.5, 1.0, 1.0]
    assert found["token-F1"] == pytest.approx([2 / 3, 4 / 5, 4 / 11])


def test_a_perfect_order_reaches_the_best_possible(classifier: TextModel, corpus: Path) -> None:
    class Perfect(RationaleBenchmark):
        def measure(self, example: Any, order: Sequence[int], target: int) -> dict[str, Any]:
            marked = example.document.rationale
            order = sorted(order, key=lambda token: token not in marked)
            return super().measure(example, order, target)

    documents = EraserDocuments(corpus, "test")
    benchmark = Perfect(classifier, documents, ["raw_attention"], top_k=[1, 3, 5])
    result = run(benchmark, corpus / "results")
    for k in (1, 3, 5):
        condition = f"target, k={k}"
        best = result.figure(BEST_POSSIBLE, "token-F1", condition)
        assert result.figure("raw_attention", "token-F1", condition).value == pytest.approx(
            best.value
        )
    assert result.figure("raw_attention", "precision", "target, k=1").value == 100.0


def test_the_expectation_of_a_random_order_is_the_mean_over_all_orders(
    classifier: TextModel, tmp_path: Path
) -> None:
    review = ("a", "POSITIVE", "a very good film indeed", ((1, 3),))
    corpus = write_corpus(tmp_path / "one", [review])
    result = run(_benchmark(classifier, corpus), tmp_path / "results")
    for k in (1, 3):
        scores = [
            f1_score([0, 1, 1, 0, 0], [token in order[:k] for token in range(5)])
            for order in itertools.permutations(range(5))
        ]
        found = result.figure(RANDOM_ORDER, "token-F1", f"target, k={k}").value
        assert found == pytest.approx(100 * sum(scores) / len(scores))


def test_the_last_tokens_are_those_before_the_cut(classifier: TextModel, tmp_path: Path) -> None:
    review = ("a", "POSITIVE", "a very good film indeed", ((1, 3),))
    corpus = write_corpus(tmp_path / "one", [review])
    for max_length, recall in ((None, [0.0, 50.0]), (5, [50.0, 100.0])):
        options = {} if max_length is None else {"max_length": max_length}
        result = run(_benchmark(classifier, corpus, **options), tmp_path / f"cut {max_length}")
        found = [result.figure(LAST_TOKENS, "recall", f"target, k={k}").value for k in (1, 3)]
        assert found == recall


def test_marked_tokens_beyond_the_cut_are_missed(classifier: TextModel, corpus: Path) -> None:
    benchmark = _benchmark(classifier, corpus, max_length=5)  # [CLS], three pieces, [SEP]
    example = benchmark.load(0)
    values = benchmark.describe(example)
    assert (values["rationale"], values["rationale_read"]) == (6, 2)
    found = benchmark.evaluate(example, "raw_attention")["target"]
    assert found["recall"][-1] <= 2 / 6


@pytest.fixture(scope="module")
def both_classes(
    classifier: TextModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Result, Path]:
    folder = tmp_path_factory.mktemp("both")
    corpus = write_corpus(folder / "corpus")
    # What is said to be negative is positive: target and predicted class differ.
    change_annotation(corpus, 5, classification="NEGATIVE")
    result = rationale(
        classifier,
        corpus,
        PAPER_AND_RANDOM,
        top_k=[2, 4],
        explain=["target", "predicted"],
        output=folder / "results",
    )
    return result, folder / "results"


def test_accuracy_is_the_share_of_documents_whose_class_is_predicted(
    both_classes: tuple[Result, Path], classifier: TextModel
) -> None:
    right = 0
    for index, (_, label, text, _) in enumerate(REVIEWS):
        ids = classifier.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            predicted = int(classifier.model(**ids).logits.argmax())
        right += predicted == (0 if index == 5 else classifier.class_names.index(label))
    assert both_classes[0].figure("model", "accuracy").value == pytest.approx(100 * right / 6)


def test_methods_that_know_no_class_explain_both_alike(both_classes: tuple[Result, Path]) -> None:
    result, _ = both_classes
    for method in ("raw_attention", "attention_rollout", "random"):
        for k in (2, 4):
            target, predicted = (
                result.figure(method, "token-F1", f"{which}, k={k}").value
                for which in ("target", "predicted")
            )
            assert target == predicted
    differ = [
        result.figure("transformer_attribution", "token-F1", f"{which}, mean over k").value
        for which in ("target", "predicted")
    ]
    assert differ[0] != differ[1]


def test_no_order_exceeds_the_best_possible(both_classes: tuple[Result, Path]) -> None:
    result, _ = both_classes
    for figure in result.figures:
        if figure.metric in ("precision", "recall", "token-F1"):
            best = result.figure(BEST_POSSIBLE, figure.metric, figure.condition)
            assert figure.value <= best.value + 1e-9


def test_the_files_hold_every_figure_and_the_curve(both_classes: tuple[Result, Path]) -> None:
    result, folder = both_classes
    stored = json.loads((folder / "results.json").read_text())
    assert len(stored["figures"]) == len(result.figures)
    assert stored["settings"]["split"] == "test"
    assert stored["settings"]["weights_sha256"]
    assert (folder / "curves.png").stat().st_size > 1000
    assert "| `transformer_attribution` |" in (folder / "results.md").read_text()
    assert {curve.panel for curve in result.summary.curves} == {
        "explained: target class",
        "explained: predicted class",
    }


def test_an_unusable_document_is_named_counted_and_changes_no_other_figure(
    classifier: TextModel, tmp_path: Path
) -> None:
    damaged = write_corpus(tmp_path / "damaged")
    change_annotation(damaged, 1, classification="UNSURE")
    change_annotation(damaged, 2, evidences=[])
    (damaged / "docs" / "pos_2").write_bytes(b"\xff")
    intact = write_corpus(
        tmp_path / "intact", [review for review in REVIEWS if review[0] not in _DAMAGED]
    )
    options: dict[str, Any] = {"methods": ["raw_attention"], "top_k": [2]}
    found = rationale(classifier, damaged, output=tmp_path / "a", **options)
    expected = rationale(classifier, intact, output=tmp_path / "b", **options)
    assert found.figures == expected.figures
    reasons = dict(found.skipped)
    assert set(reasons) == set(_DAMAGED)
    assert "the class 'UNSURE', expected one of NEGATIVE, POSITIVE" in reasons["pos_1"]
    assert "no token is marked" in reasons["neg_2"]
    assert "not UTF-8" in reasons["pos_2"]


_DAMAGED = ("pos_1", "neg_2", "pos_2")


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    classifier: TextModel, corpus: Path, tmp_path: Path
) -> None:
    class Stopped(RationaleBenchmark):
        def load(self, index: int) -> Any:
            if index == 3:
                raise KeyboardInterrupt
            return super().load(index)

    def benchmark(kind: type[RationaleBenchmark]) -> RationaleBenchmark:
        return kind(classifier, EraserDocuments(corpus, "test"), ["partial_lrp", "random"])

    run(benchmark(RationaleBenchmark), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(benchmark(Stopped), tmp_path / "halves")
    run(benchmark(RationaleBenchmark), tmp_path / "halves")
    files = ("results.json", "results.csv", "results.md")
    for name in files:
        assert (tmp_path / "halves" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_document_that_has_changed_is_named_and_measured_again(
    classifier: TextModel, corpus: Path, tmp_path: Path
) -> None:
    def measured(output: Path) -> Result:
        return rationale(classifier, corpus, ["raw_attention"], top_k=[2], output=output)

    measured(tmp_path / "out")
    file = corpus / "docs" / REVIEWS[3][0]
    file.write_text(file.read_text() + " and more")
    with pytest.warns(UserWarning, match=f"the contents of '{REVIEWS[3][0]}' have changed") as told:
        again = measured(tmp_path / "out")
    assert len(told) == 1
    assert again.as_json() == measured(tmp_path / "new").as_json()


def test_fusions_give_other_orders(classifier: TextModel, corpus: Path, tmp_path: Path) -> None:
    found = {
        fusion: rationale(
            classifier, corpus, ["raw_attention"], fusion=fusion, output=tmp_path / fusion
        ).settings["fusion"]
        for fusion in ("sum", "max", "mean")
    }
    assert list(found.values()) == ["sum", "max", "mean"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": []}, "top_k must be"),
        ({"top_k": [0]}, "top_k must be"),
        ({"fusion": "median"}, "found fusion 'median', expected 'sum' or 'max' or 'mean'"),
        ({"explain": ["other"]}, "'predicted' or 'target'"),
        ({"max_length": 2}, "at least 3"),
        ({"methods": ["partial_lpr"]}, "did you mean 'partial_lrp'"),
        ({"limit": 0}, "at least 1"),
        ({"labels": {"NEGATIVE": "BAD"}}, "no class 'BAD', it has NEGATIVE, POSITIVE"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    classifier: TextModel, corpus: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BenchmarkError, match=message):
        _benchmark(classifier, corpus, **options)


def test_classes_are_found_by_name_in_any_case() -> None:
    assert corpus_classes(["NEG", "POS"], ["Pos", "neg"]) == {"NEG": 1, "POS": 0}
    assert corpus_classes(["NEG", "ODD", "POS"], ["neg", "pos"]) == {"NEG": 0, "POS": 1}
    with pytest.raises(BenchmarkError, match="such as NEG=LABEL_0"):
        corpus_classes(["NEG", "POS"], ["LABEL_0", "LABEL_1"])
    with pytest.raises(BenchmarkError, match="are one of the classifier"):
        corpus_classes(["NEG", "POS"], ["a", "b"], {"NEG": "a", "POS": "a"})


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    model, tokenizer = sentiment_classifier()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_command_prints_the_table_and_writes_the_files(
    model_folder: Path, corpus: Path, tmp_path: Path
) -> None:
    command = ["benchmark", "rationale", "--model", str(model_folder), "--data", str(corpus)]
    command += ["--methods", "raw_attention", "--top-k", "2:4:2", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "raw_attention" in result.output
    assert "k=4" in "".join(result.output.split())
    assert (tmp_path / "out" / "curves.png").exists()
    assert CliRunner().invoke(app, [*command, "--quiet"]).output == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-k", "10:5:0"], "expected numbers above 0"),
        (["--top-k", "2.5"], "whole numbers"),
        (["--label", "NEG"], "expected CORPUS=CLASSIFIER"),
        (["--split", "dev"], "the splits there are: test"),
        (["--so-far"], "found no run in"),
    ],
)
def test_mistakes_on_the_command_line_are_told(
    model_folder: Path, corpus: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    command = ["benchmark", "rationale", "--model", str(model_folder), "--data", str(corpus)]
    command += ["--output", str(tmp_path / "out"), *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
