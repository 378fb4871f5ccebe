"""Fine-tuning on the raw corpus: what it learns, and that it goes on after it was killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel
from typer.testing import CliRunner

from captum_transformer_lrp.benchmarks.errors import BenchmarkError
from captum_transformer_lrp.benchmarks.rationale_training import (
    TrainingSettings,
    TrainingStep,
    fine_tune,
)
from captum_transformer_lrp.cli import app
from captum_transformer_lrp.examples import sentiment_classifier
from captum_transformer_lrp.models import ModelLoadError, load_text_model
from tests.benchmarks.eraser_corpus import change_annotation, write_corpus

WORDS = {"NEG": ("dull", "absurd", "boring"), "POS": ("witty", "warm", "moving")}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights, without a classifier."""
    folder = tmp_path_factory.mktemp("encoder")
    _, tokenizer = sentiment_classifier()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Twelve reviews that one word decides."""
    reviews = [
        (f"{label}_{number}", label, f"a {WORDS[label][number % 3]} film , number {number}", ())
        for number in range(6)
        for label in ("NEG", "POS")
    ]
    return write_corpus(tmp_path / "corpus", reviews, ("train", "val", "test"))


@pytest.fixture
def settings(encoder: Path) -> TrainingSettings:
    return TrainingSettings(str(encoder), max_length=16, epochs=3, batch_size=4, learning_rate=3e-3)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def _same(first: Path, second: Path) -> bool:
    one, other = _weights(first), _weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class StoppedError(Exception):
    pass


class StopAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, done: TrainingStep) -> None:
        if done.step == self.step:
            raise StoppedError


@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_stopped_training_goes_on_to_the_same_weights(
    corpus: Path, settings: TrainingSettings, tmp_path: Path, step: int
) -> None:
    # Nine steps, dropout on, a checkpoint after every other: stopped before the first, right at
    # one, and after work that the checkpoint does not hold.
    whole = fine_tune(corpus, tmp_path / "whole", settings)
    halves = tmp_path / "halves"
    with pytest.raises(StoppedError):
        fine_tune(corpus, halves, settings, checkpoint_every=2, on_step=StopAt(step))
    resumed: list[int] = []
    result = fine_tune(
        corpus, halves, settings, checkpoint_every=2, on_step=lambda done: resumed.append(done.step)
    )
    assert resumed[0] == (step - 1) // 2 * 2 + 1
    assert resumed[-1] == result.steps == 9
    assert _same(halves, tmp_path / "whole")
    assert (result.losses, result.accuracies) == (whole.losses, whole.accuracies)


_KILLED = """
import os, signal, sys
from captum_transformer_lrp.benchmarks.rationale_training import TrainingSettings, fine_tune
import torch
torch.set_num_threads(1)
def kill(done):
    if done.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
settings = TrainingSettings(sys.argv[3], max_length=16, epochs=3, batch_size=4, learning_rate=3e-3)
fine_tune(sys.argv[1], sys.argv[2], settings, checkpoint_every=2, on_step=kill)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_what_another_goes_on_with(
    corpus: Path, settings: TrainingSettings, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", _KILLED, str(corpus), str(killed), settings.model]
    process = subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[2])
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert not (killed / "model.safetensors").exists()
    fine_tune(corpus, killed, settings)
    fine_tune(corpus, tmp_path / "whole", settings)
    assert _same(killed, tmp_path / "whole")


def test_it_learns_what_one_word_decides(
    corpus: Path, settings: TrainingSettings, tmp_path: Path
) -> None:
    result = fine_tune(corpus, tmp_path / "model", replace(settings, epochs=20))
    assert result.accuracies == {"val": 1.0, "test": 1.0}
    assert result.losses[-1] < result.losses[0] / 2
    loaded = load_text_model(str(tmp_path / "model"))
    assert loaded.class_names == ("NEG", "POS")
    ids = loaded.tokenizer("a witty film", return_tensors="pt")
    assert int(loaded.model(**ids).logits.argmax()) == 1


def test_a_finished_training_is_not_repeated(
    corpus: Path, settings: TrainingSettings, tmp_path: Path
) -> None:
    first = fine_tune(corpus, tmp_path / "model", settings)
    steps: list[TrainingStep] = []
    assert fine_tune(corpus, tmp_path / "model", settings, on_step=steps.append) == first
    assert not steps
    assert not (tmp_path / "model" / "checkpoint.pt").exists()


def test_other_settings_and_other_data_are_refused(
    corpus: Path, settings: TrainingSettings, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        fine_tune(corpus, tmp_path / "m", settings, checkpoint_every=1, on_step=StopAt(2))
    with pytest.raises(BenchmarkError, match=r"epochs 3, this one has 4"):
        fine_tune(corpus, tmp_path / "m", replace(settings, epochs=4))
    change_annotation(corpus, 0, split="train", classification="POS")
    with pytest.raises(BenchmarkError, match="train_sha256"):
        fine_tune(corpus, tmp_path / "m", settings)


def test_a_folder_of_something_else_is_left_alone(
    corpus: Path, settings: TrainingSettings, encoder: Path, tmp_path: Path
) -> None:
    before = sorted(file.name for file in encoder.iterdir())
    with pytest.raises(BenchmarkError, match="holds another model already"):
        fine_tune(corpus, encoder, settings)
    assert sorted(file.name for file in encoder.iterdir()) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchmarkError, match="is a file"):
        fine_tune(corpus, tmp_path / "file", settings)


def test_a_damaged_checkpoint_is_told_and_kept(
    corpus: Path, settings: TrainingSettings, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "checkpoint.pt").write_bytes(b"half of it")
    with pytest.raises(BenchmarkError, match=r"cannot read the checkpoint .*checkpoint.pt"):
        fine_tune(corpus, folder, settings)
    assert (folder / "checkpoint.pt").read_bytes() == b"half of it"


def test_unusable_documents_are_reported_and_left_out(
    corpus: Path, settings: TrainingSettings, tmp_path: Path
) -> None:
    change_annotation(corpus, 3, split="train", classification="UNSURE")
    (corpus / "docs" / "NEG_0").unlink()
    told: list[str] = []
    result = fine_tune(corpus, tmp_path / "m", replace(settings, epochs=1), on_skipped=told.append)
    assert tuple(told) == result.skipped
    # The document is missing in three splits, the class is unknown in one.
    assert len(told) == 4
    assert sum("UNSURE" in sentence for sentence in told) == 1
    assert result.steps == 3  # of ten documents, four a step


def test_the_callers_random_numbers_are_as_they_were(
    corpus: Path, settings: TrainingSettings, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fine_tune(corpus, tmp_path / "m", replace(settings, epochs=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_limit_takes_documents_of_both_classes(
    corpus: Path, settings: TrainingSettings, tmp_path: Path
) -> None:
    lines = (corpus / "train.jsonl").read_text().splitlines()
    (corpus / "train.jsonl").write_text("\n".join(sorted(lines)))  # one class after the other
    result = fine_tune(corpus, tmp_path / "m", replace(settings, limit=4, epochs=8))
    assert result.steps == 8
    assert result.accuracies["test"] > 0.5


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": 0}, {"limit": 0}, {"learning_rate": 0.0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        TrainingSettings("model", **wrong)


def test_what_cannot_be_trained_is_told(
    corpus: Path, settings: TrainingSettings, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="reads at most 32 pieces"):
        fine_tune(corpus, tmp_path / "m", replace(settings, max_length=64))
    with pytest.raises(ModelLoadError, match="cannot load the text model"):
        fine_tune(corpus, tmp_path / "m", replace(settings, model=str(tmp_path)))


def test_the_command_trains_and_goes_on_with_the_benchmark(
    corpus: Path, encoder: Path, tmp_path: Path
) -> None:
    for split in ("train", "val", "test"):
        change_annotation(corpus, 0, split=split, evidences=[[_evidence("NEG_0")]])
    command = ["benchmark", "rationale", "--model", str(encoder), "--data", str(corpus)]
    command += ["--train", str(tmp_path / "trained"), "--epochs", "2", "--batch-size", "4"]
    command += ["--max-length", "16", "--learning-rate", "0.003", "--top-k", "1"]
    command += ["--methods", "raw_attention", "--output", str(tmp_path / "out")]
    trained = CliRunner().invoke(app, [*command, "--train-only"])
    assert trained.exit_code == 0, trained.output
    assert "in 6 steps; accuracy: val" in trained.output
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "raw_attention" in result.output
    settings = json.loads((tmp_path / "out" / "results.json").read_text())["settings"]
    assert settings["model"] == str(tmp_path / "trained")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained")
    assert model.config.id2label == {0: "NEG", 1: "POS"}


def _evidence(name: str) -> dict[str, Any]:
    return {"docid": name, "start_token": 1, "end_token": 2, "text": "dull"}
