"""Words of every script, from the pieces of every kind of tokenizer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from captum_transformer_lrp import ArgumentError, examples
from captum_transformer_lrp.visualization import Word, words_from_pieces

TEXTS = {
    "English": "The capital of France isn't Rome,\nbut Paris.  Really!",
    "Hindi": "मुझे यह फ़िल्म बहुत अच्छी लगी।",
    "Arabic": "أحببتُ هذا الفيلمَ كثيرًا، شكرًا!",
    "Hebrew": "אהבתי את הסרט הזה",
    "Thai": "ฉันชอบหนังเรื่องนี้มาก",
    "Japanese": "この映画はとても面白かった。また見たい!",
    "Chinese": "我很喜欢这部电影。",
    "Korean": "이 영화는 정말 재미있었어요",
    "accents": "nai\u0308ve cafe\u0301 na\u00efve",
    "emoji": "I \u2764\ufe0f it \U0001f469\U0001f3fd\u200d\U0001f680 and \U0001f1eb\U0001f1f7 ok",
    "sentences": "It is 3.5 km. Is it? 「はい。」そう。\nEnd",
    "spaces": "  two   spaces\t\tand a tab \n\n new paragraph ",
}
SPACED = ("Hindi", "Arabic", "Hebrew", "Korean", "accents")


def _trained(tokenizer: Tokenizer, trainer: Any) -> PreTrainedTokenizerFast:
    tokenizer.train_from_iterator(list(TEXTS.values()) * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind, whose expression parts Hindi before its vowels; few merges: bytes remain."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))


def trimmed_byte_level() -> PreTrainedTokenizerFast:
    """RoBERTa's kind, whose offsets leave out the space."""
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def without_pretokenizer() -> PreTrainedTokenizerFast:
    """Llama 2's kind: the whole text is one "word", letters it does not know are bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # as it was trained
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=special, limit_alphabet=80)
    trained = _trained(tokenizer, trainer)
    trained.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    return trained


def sentencepiece() -> PreTrainedTokenizerFast:
    """XLM-R's kind: a unigram model, whose words are what stands between spaces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = {"unk_token": "<unk>", "special_tokens": ["<unk>"]}
    return _trained(tokenizer, trainers.UnigramTrainer(vocab_size=400, **special))


def llama_3() -> PreTrainedTokenizerFast:
    """Llama 3's kind: an expression of its own, then bytes."""
    tokenizer = Tokenizer(models.BPE())
    expression = r"'s|'t|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(expression), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))


def word_pieces() -> PreTrainedTokenizerFast:
    """BERT's kind, with accents kept."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False, lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]"])
    return _trained(tokenizer, trainer)


KINDS = [
    byte_level, trimmed_byte_level, without_pretokenizer, sentencepiece, llama_3, word_pieces,
]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return request.param()


def words(tokenizer: Any, *texts: str, granularity: Any = "word") -> tuple[list[Word], Any]:
    encoding = tokenizer(*texts)
    values = np.random.default_rng(0).random(len(encoding.input_ids))
    found = words_from_pieces(
        texts,
        encoding.tokens(),
        values,
        offsets=encoding.encodings[0].offsets,
        word_ids=encoding.word_ids(),
        sequence_ids=encoding.sequence_ids(0),
        granularity=granularity,
    )
    return found, values


@pytest.mark.parametrize("granularity", ["piece", "word", "sentence"])
@pytest.mark.parametrize("script", TEXTS)
def test_words_make_up_the_text_and_share_all_relevance(
    tokenizer: Any, script: str, granularity: str
) -> None:
    found, values = words(tokenizer, TEXTS[script], granularity=granularity)
    text = "".join(word.before + word.text for word in found)
    # BERT's kind makes no piece of the space at a text's end.
    assert TEXTS[script] in (text, text + " ")
    assert sum(word.attribution for word in found) == pytest.approx(values.sum(), rel=1e-9)


@pytest.mark.parametrize("granularity", ["piece", "word", "sentence"])
@pytest.mark.parametrize("script", TEXTS)
def test_no_character_is_divided(tokenizer: Any, script: str, granularity: str) -> None:
    found, _ = words(tokenizer, TEXTS[script], granularity=granularity)
    for word in found:
        first = word.text[:1]
        assert not unicodedata.category(first or "a").startswith("M")
        assert first not in ("\u200d", "\ufe0f", "\U0001f3fd")
        assert not word.text.endswith("\u200d")


@pytest.mark.parametrize("script", SPACED)
def test_words_end_at_spaces_and_punctuation(tokenizer: Any, script: str) -> None:
    found, _ = words(tokenizer, TEXTS[script])
    expected = re.findall(r"[^\s.,!।،]+|[.,!।،]", TEXTS[script])
    assert [word.text for word in found] == expected


def test_where_a_script_has_no_spaces_a_piece_is_a_word() -> None:
    tokenizer = sentencepiece()
    for script in ("Thai", "Japanese", "Chinese"):
        pieces, _ = words(tokenizer, TEXTS[script], granularity="piece")
        found, _ = words(tokenizer, TEXTS[script])
        assert [word.text for word in found] == [piece.text for piece in pieces]
        assert len(found) > 3


def test_sentences_end_at_their_punctuation(tokenizer: Any) -> None:
    found, _ = words(tokenizer, TEXTS["sentences"], granularity="sentence")
    shown = ["It is 3.5 km.", "Is it?", "「はい。」", "そう。", "End"]
    assert [word.text.strip() for word in found if word.text.strip()] == shown


@pytest.mark.parametrize(
    "pair", [("a film", "not good"), ("a", "b"), ("this", "this"), ("good film", "x"), ("x\n", "y")]
)
def test_both_texts_of_a_pair_have_their_words(tokenizer: Any, pair: tuple[str, str]) -> None:
    for one in (tokenizer, examples.sentiment_classifier()[1]):
        found, _ = words(one, *pair)
        shown = [word for word in found if word.text.strip()]
        assert [word.text for word in shown] == " ".join(pair).split()
        second = shown[len(pair[0].split())]
        assert second.before.startswith("\n\n")


@pytest.mark.parametrize(
    "pair", [("a film", "not good"), ("a", "b"), ("this", "this"), ("good film", "x"), ("x y", "y")]
)
def test_two_texts_given_as_one_are_an_error(pair: tuple[str, str]) -> None:
    _, tokenizer = examples.sentiment_classifier()
    encoding = tokenizer(*pair)
    of_pieces: dict[str, Any] = {
        "offsets": encoding.encodings[0].offsets, "word_ids": encoding.word_ids()
    }  # fmt: skip
    pieces = encoding.tokens()
    with pytest.raises(ArgumentError, match="more than one text"):
        words_from_pieces(pair[0], pieces, np.ones(len(pieces)), **of_pieces)
    with pytest.raises(ArgumentError, match="two texts"):
        words_from_pieces(pair[0], pieces, np.ones(len(pieces)), **of_pieces,
                          sequence_ids=encoding.sequence_ids(0))  # fmt: skip


def test_another_granularity_is_an_error(tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(ArgumentError, match="expected one of piece, word, sentence"):
        words(tokenizer, "a", granularity="letter")
