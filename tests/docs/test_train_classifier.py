"""The script trains a classifier that the benchmark on rationales can explain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import BertConfig, BertModel

from captum_transformer_lrp.benchmarks import rationale
from captum_transformer_lrp.examples import sentiment_classifier
from captum_transformer_lrp.models import load_text_model
from tests.benchmarks.eraser_corpus import change_annotation, write_corpus

WORDS = {"NEG": ("dull", "absurd", "boring"), "POS": ("witty", "warm", "moving")}


def test_a_trained_classifier_reads_the_word_that_decides(
    script_of: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reviews = [
        (f"{label}_{number}", label, f"a {WORDS[label][number % 3]} film , {number}", ((1, 2),))
        for number in range(6)
        for label in ("NEG", "POS")
    ]
    corpus = write_corpus(tmp_path / "corpus", reviews, ("train", "test"))
    change_annotation(corpus, 0, "train", start_token=90)
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
    for part in (BertModel(config), tokenizer):
        part.save_pretrained(tmp_path / "encoder")
    script = script_of("train_classifier")
    how = {"epochs": 40, "size": 4, "rate": 2e-3}
    script.train(str(tmp_path / "encoder"), corpus, tmp_path / "classifier", **how)
    assert "skipped NEG_0 in train.jsonl" in capsys.readouterr().out
    model = load_text_model(str(tmp_path / "classifier"))
    result = rationale(model, corpus, ["attnlrp"], top_k=[1], output=tmp_path / "results")
    assert result.figure("model", "accuracy").value >= 90
    assert result.figure("attnlrp", "token-F1", "target, k=1").value > 50
