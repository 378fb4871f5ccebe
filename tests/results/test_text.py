"""One call explains a text; its result is shown, counted and written."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, pipeline

from captum_transformer_lrp import (
    ArgumentError,
    AttentionRollout,
    ExplanationError,
    TextResult,
    examples,
    explain_text,
)
from captum_transformer_lrp.attr.comparison import compare
from captum_transformer_lrp.models import load_text_model

TEXT = "A gorgeous, witty film. But the ending is dull!"
HOSTILE = '"><script>alert(1)</script> \u202eevil\u202c \x1b[2J <img src=http://x> {{ 7*7 }}'


@pytest.fixture(scope="module")
def sentiment() -> tuple[Any, Any]:
    return examples.sentiment_classifier()


@pytest.fixture(scope="module")
def found(sentiment: tuple[Any, Any]) -> TextResult:
    return explain_text(*sentiment, TEXT, target=["POSITIVE", "NEGATIVE"])


def test_words_have_the_method_s_relevance(found: TextResult, sentiment: tuple[Any, Any]) -> None:
    model, tokenizer = sentiment
    batch = tokenizer(TEXT, return_tensors="pt")
    ids = batch.pop("input_ids")
    name = "transformer_attribution"
    maps = compare(model, ids, {"no": 0}, [name], additional_forward_args=dict(batch))[name]
    of_words = found.to_numpy()
    assert list(of_words["words"][:5]) == ["A", "gorgeous", ",", "witty", "film"]
    inside = float(maps["no"][0, 1:-1].sum())  # without [CLS] and [SEP]
    assert of_words[f"{name}/0"].sum() == pytest.approx(inside, rel=1e-4)
    largest = of_words["words"][of_words[f"{name}/0"].argmax()]
    assert found.topk(1, target="NEGATIVE")[0].text == largest
    assert {word.text for word in found.topk(2)} == {"gorgeous", "witty"}
    assert len(repr(found)) < 100


@pytest.mark.parametrize("granularity", ["piece", "word", "sentence"])
def test_a_coarser_granularity_adds_up(
    found: TextResult, sentiment: tuple[Any, Any], granularity: Any
) -> None:
    one = explain_text(*sentiment, TEXT, target="POSITIVE", granularity=granularity)
    total = sum(word.attribution for word in one.topk(99))
    assert total == pytest.approx(sum(word.attribution for word in found.topk(99)), rel=1e-4)
    if granularity == "sentence":
        assert [word.text for word in one.topk(2)] == [
            "A gorgeous, witty film.",
            "But the ending is dull!",
        ]


def test_a_pair_is_explained_in_one_pass(sentiment: tuple[Any, Any]) -> None:
    one = explain_text(*sentiment, "a gorgeous film", text_pair="dull", target="NEGATIVE")
    assert [word.text for word in one.words] == ["a", "gorgeous", "film", "dull"]
    batch = sentiment[1]("a gorgeous film", "dull", return_tensors="pt")
    ids, name = batch.pop("input_ids"), "transformer_attribution"
    maps = compare(sentiment[0], ids, {"no": 0}, [name], additional_forward_args=dict(batch))
    of_pieces = maps[name]["no"][0, [1, 2, 3, 5]]
    np.testing.assert_allclose(one.to_numpy()[f"{name}/0"], of_pieces, rtol=1e-4)
    assert one.provenance()["input"] == "a gorgeous film\n\ndull"
    one.to_html()


def test_whatever_brings_its_tokenizer_needs_none(
    found: TextResult, sentiment: tuple[Any, Any]
) -> None:
    model, tokenizer = sentiment
    loaded = load_text_model("bundled/sentiment")
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    cross_encoder = SimpleNamespace(model=model, tokenizer=tokenizer)
    for one in ("bundled/sentiment", loaded, pipe, cross_encoder):
        again = explain_text(one, None, TEXT)
        # One class at a time is rounded otherwise than two together.
        np.testing.assert_allclose(
            again.to_numpy()["transformer_attribution/1"],
            found.to_numpy()["transformer_attribution/1"],
            rtol=1e-3,
        )


def small(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=8000, hidden_size=16, **sizes, **options)
    return BertForSequenceClassification(config).eval()


def test_one_score_has_no_probability(sentiment: tuple[Any, Any]) -> None:
    one = explain_text(small(num_labels=1), sentiment[1], TEXT)
    assert one.explained[0].probability is None
    assert "%" not in repr(one)
    one.to_html()
    one.figure()


def test_labels_that_may_all_be_right_have_a_probability_each(sentiment: tuple[Any, Any]) -> None:
    model = small(num_labels=3, problem_type="multi_label_classification")
    one = explain_text(model, sentiment[1], TEXT, class_names=["a", "b", "c"], top_k=3)
    batch = sentiment[1](TEXT, return_tensors="pt")
    expected = model(**batch).logits[0].sigmoid().tolist()
    chances = {each.name: each.probability for each in one.explained}
    assert chances == pytest.approx(dict(zip("abc", expected, strict=True)), rel=1e-5)


def test_hostile_texts_are_only_texts(sentiment: tuple[Any, Any], tmp_path: Path) -> None:
    names = [HOSTILE, "b"]
    one = explain_text(*sentiment, HOSTILE, target=0, class_names=names)
    several = explain_text(
        *sentiment, HOSTILE, class_names=names, method=["attention_rollout", "saliency"]
    )
    for found in (one, several):
        for page in (found.to_html(lang='"><script>'), found._repr_html_()):
            assert "<script" not in page
            assert "<img" not in page
            assert "{{ 7*7 }}" in re.sub("<[^>]+>", "", page)
            assert "\u202e" not in page
            assert "\x1b" not in page
            assert "\\u202e" in page
        found.save(tmp_path / "x.png")
        json.loads(found.to_json())


def test_files_hold_words_and_numbers(found: TextResult, tmp_path: Path) -> None:
    found.save(tmp_path / "x.npz")
    found.save(tmp_path / "x.json")
    same = json.loads((tmp_path / "x.json").read_text())
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        assert same["maps"]["words"] == archive["words"].tolist()
        np.testing.assert_allclose(
            same["maps"]["transformer_attribution/1"], archive["transformer_attribution/1"]
        )
        assert json.loads(str(archive["provenance"])) == same["provenance"]
    assert same["provenance"]["input"] == TEXT
    assert [each["name"] for each in same["explained"]] == ["POSITIVE", "NEGATIVE"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": " \n"}, "empty text"),
        ({"text": "na\udcefve"}, "not in UTF-8"),
        ({"text_pair": ""}, "empty text"),
        ({"text": ["good", "bad"]}, "found list as the text"),
        ({"text": None}, "found NoneType as the text"),
        ({"text": b"good"}, "found bytes as the text"),
        ({"method": []}, r"found method=\[\]"),
        ({"method": AttentionRollout}, "compare\\(\\) takes classes, too"),
        ({"class_names": "ab"}, "found class_names='ab'"),
        ({"class_names": {1: "a", 2: "b"}}, "expected a list with a name for each logit"),
        ({"target": "SO-SO"}, "no class is called 'SO-SO'"),
        ({"granularity": "letter"}, "expected one of piece, word, sentence"),
        ({"tokenizer": None}, "found NoneType as the tokenizer"),
        ({"tokenizer": str.split}, "found method_descriptor as the tokenizer"),
    ],
)
def test_a_mistake_is_told(
    sentiment: tuple[Any, Any], options: dict[str, Any], message: str
) -> None:
    model, tokenizer = sentiment
    with pytest.raises(ArgumentError, match=message):
        explain_text(**{"model": model, "tokenizer": tokenizer, "text": TEXT, **options})


def test_more_tokens_than_the_model_has_positions_for_are_told(sentiment: tuple[Any, Any]) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=8000, max_position_embeddings=32, intermediate_size=16, **sizes)
    model = BertForSequenceClassification(config).eval()
    with pytest.raises(ArgumentError, match="found 122 tokens, expected at most 32"):
        explain_text(model, sentiment[1], "film " * 120)


def test_class_names_may_be_a_configuration_s(sentiment: tuple[Any, Any]) -> None:
    model, tokenizer = sentiment
    for names in ({1: "good", 0: "bad"}, ["bad", "good"], ("bad", "good")):
        found = explain_text(model, tokenizer, "a gorgeous film", class_names=names)
        assert found.explained[0].name == "good"


def test_a_model_in_training_mode_is_named_and_random_numbers_are_left(
    sentiment: tuple[Any, Any],
) -> None:
    model = deepcopy(sentiment[0]).train()
    state = torch.get_rng_state()
    with pytest.raises(ExplanationError, match=r"at random .* call model.eval\(\) first"):
        explain_text(model, sentiment[1], TEXT)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_text_that_is_cut_is_told(sentiment: tuple[Any, Any]) -> None:
    with pytest.warns(UserWarning, match="only the first .* characters of the text"):
        explain_text(*sentiment, "good film " * 200)
    with pytest.warns(UserWarning, match="only the first .* characters of the second text"):
        explain_text(*sentiment, "good", text_pair="good film " * 200)
