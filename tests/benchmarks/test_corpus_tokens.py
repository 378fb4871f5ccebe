"""From pieces to the corpus' tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from captum_transformer_lrp.benchmarks.corpus_tokens import (
    EncodedTokens,
    encode_tokens,
    ranking,
    token_scores,
)
from captum_transformer_lrp.examples import sentiment_classifier

TOKENS = ("an", "unwatchable", ",", "n't", "too-cheesy", "café", "``", "1/2", "film's", "end")


@pytest.fixture(scope="module")
def word_piece() -> Any:
    return sentiment_classifier()[1]


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    """A tokenizer whose pieces begin with the space before a word, as GPT-2's and RoBERTa's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["an unwatchable film's end , too"] * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 1), ("<s>", 0), trim_offsets=False
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def test_word_pieces_belong_to_the_tokens_that_the_tokenizer_itself_names(word_piece: Any) -> None:
    encoded = encode_tokens(word_piece, TOKENS)
    own = word_piece(list(TOKENS), is_split_into_words=True)
    assert encoded.input_ids.tolist() == [own["input_ids"]]
    expected: list[list[int]] = [[] for _ in TOKENS]
    for piece, token in enumerate(own.word_ids()):
        if token is not None:
            expected[token].append(piece)
    assert encoded.pieces == tuple(map(tuple, expected))


def test_spaces_inside_pieces_belong_to_no_token(byte_level: PreTrainedTokenizerFast) -> None:
    encoded = encode_tokens(byte_level, TOKENS)
    for token, pieces in zip(TOKENS, encoded.pieces, strict=True):
        assert byte_level.decode(encoded.input_ids[0, list(pieces)]).strip() == token
    counted = [piece for pieces in encoded.pieces for piece in pieces]
    assert len(counted) == len(set(counted))
    others = set(range(1, encoded.input_ids.shape[1] - 1)) - set(counted)
    assert not byte_level.decode(encoded.input_ids[0, sorted(others)]).strip()


def test_tokens_beyond_the_cut_have_no_pieces_and_the_last_keeps_those_read(
    word_piece: Any,
) -> None:
    whole = encode_tokens(word_piece, TOKENS)
    cut = encode_tokens(word_piece, TOKENS, max_length=5)
    assert cut.input_ids.shape == (1, 5)
    assert cut.pieces[:2] == ((1,), (2, 3))
    assert len(whole.pieces[1]) > 2
    assert not any(cut.pieces[2:])
    assert cut.read == (0, 1)


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a fast tokenizer"):
        encode_tokens(object(), TOKENS)


def _encoded() -> EncodedTokens:
    return EncodedTokens(torch.zeros(1, 5, dtype=torch.long), {}, ((1,), (2, 3), ()))


@pytest.mark.parametrize(("fusion", "second"), [("sum", -0.5), ("max", 1.0), ("mean", -0.25)])
def test_a_token_has_the_fusion_of_its_pieces_and_special_tokens_none(
    fusion: str, second: float
) -> None:
    attribution = torch.tensor([100.0, 0.25, 1.0, -1.5, 100.0])
    scores = token_scores(_encoded(), attribution, fusion)
    assert scores.tolist() == [0.25, second, -np.inf]


def test_attributions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one value for each of 5 pieces"):
        token_scores(_encoded(), torch.zeros(4))
    with pytest.raises(ValueError, match="NaN"):
        token_scores(_encoded(), torch.full((5,), torch.nan))
    with pytest.raises(ValueError, match="sum, max, mean"):
        token_scores(_encoded(), torch.zeros(5), "median")


def test_equal_scores_rank_in_the_order_of_the_text_and_unread_tokens_not_at_all() -> None:
    encoded = EncodedTokens(torch.zeros(1, 9), {}, (*(((1,),) * 6), ()))
    scores = np.array([0.0, -0.0, 0.5, 0.0, 0.5, -1.0, -np.inf])
    assert ranking(encoded, scores) == [2, 4, 0, 1, 3, 5]
