"""Damaged tokenizers are read, or refused by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from captum_transformer_lrp.models import ModelLoadError, _load_tokenizer
from tests.fuzz.mutants import DURATIONS, fuzz, read_or_refused

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "witty", "film", "##s", ",", "not", "bad"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The two files of a small tokenizer."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder = tmp_path_factory.mktemp("tokenizer")
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check(data: bytes, name: str, files: dict[str, bytes], folder: Path) -> None:
    for other, content in files.items():
        (folder / other).write_bytes(content)
    (folder / name).write_bytes(data)
    model = SimpleNamespace(get_input_embeddings=lambda: nn.Embedding(len(WORDS), 2))
    with read_or_refused(ModelLoadError, folder):
        tokenizer = _load_tokenizer(str(folder), model, False)
        encoding = tokenizer("A witty film, not bad films", return_tensors="pt", truncation=True)
        assert encoding["input_ids"].max() < len(WORDS)


@DURATIONS
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_read_or_refused_by_name(
    files: dict[str, bytes], tmp_path: Path, name: str, seconds: float
) -> None:
    assert set(files) == {"tokenizer.json", "tokenizer_config.json"}
    check(files[name], name, files, tmp_path)
    whole = [files[name]]
    assert fuzz(lambda data: check(data, name, files, tmp_path), whole, seconds / 2)
