"""One call explains what a language model writes; its result is shown, counted and written."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from captum_transformer_lrp import (
    ArgumentError,
    GenerationResult,
    TransformerLRP,
    explain_continuation,
    explain_generation,
)
from captum_transformer_lrp.attr.comparison import METHODS
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.names import WRITTEN_TEXT_METHOD
from captum_transformer_lrp.results.spelling import spell
from captum_transformer_lrp.results.written import Reader
from tests.letters import measure
from tests.letters.data import MODELS, NAMES, draw, tokenizer, trained

HOSTILE = "</script><script>alert(1)</script> \"' \u202eevil\u202c \x1b[2J {{ 7*7 }}"
PROMPT = "f H g I b e g b ?"


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest) -> Any:
    return trained(request.param)


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return trained("gpt2")


@pytest.fixture(scope="module")
def story(gpt2: Any) -> GenerationResult:
    return explain_generation(gpt2, tokenizer(), PROMPT, max_new_tokens=2, granularity="piece")


def bytewise(template: str | None = None) -> Any:
    """A tokenizer of bytes: letters beyond ASCII are several tokens."""
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|im_start|>", "<|im_end|>"]
    inside = Tokenizer(BPE({name: place for place, name in enumerate(names)}, []))
    inside.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inside.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(
        tokenizer_object=inside, eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    found.chat_template = template
    return found


def small(vocabulary: int) -> Any:
    torch.manual_seed(0)
    sizes = {"n_positions": 256, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **sizes)).eval()


@pytest.fixture(scope="module")
def of_bytes() -> tuple[Any, Any]:
    each = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    template = each + "<|im_start|>"
    found = bytewise(template)
    return small(len(found)), found


# Truth: which letter was copied is known.


def test_the_recommended_method_finds_the_letter_that_was_copied(model: Any) -> None:
    """Of 200 prompts; one of eight letters would be found by chance in an eighth of them."""
    prompts = draw(200, torch.Generator().manual_seed(2))
    assert min(measure.found(model, prompts, WRITTEN_TEXT_METHOD)) >= 0.95


def test_the_call_says_the_same(model: Any) -> None:
    prompts = draw(20, torch.Generator().manual_seed(3))
    right = 0
    for row, text in enumerate(prompts.texts):
        found = explain_generation(model, tokenizer(), text, max_new_tokens=2, granularity="piece")
        names = [NAMES[one] for one in prompts.capitals[row].tolist()]
        assert [one.text for one in found.written] == names
        best = found.matrix[:, :8].argmax(1)
        right += int((best == prompts.places[row].numpy()).sum())
    assert right >= 38


def test_a_contrast_with_the_other_letter_finds_the_same(model: Any) -> None:
    prompts = draw(20, torch.Generator().manual_seed(4))
    right = 0
    for text, (one, other), (place, _) in zip(
        prompts.texts, prompts.capitals.tolist(), prompts.places.tolist(), strict=True
    ):
        found = explain_generation(
            model, tokenizer(), text, target=NAMES[one], instead_of=NAMES[other]
        )
        (values,) = found.maps
        right += int(values[:8].argmax() == place)
    assert right >= 19


# The numbers are those of the methods.


def test_each_row_is_what_explain_continuation_gives(gpt2: Any, story: GenerationResult) -> None:
    ids = torch.tensor([story.ids])
    method = TransformerLRP(gpt2, preset=WRITTEN_TEXT_METHOD)
    expected = explain_continuation(method, ids[:, : story.start], ids[:, story.start :])[0]
    np.testing.assert_allclose(story.maps, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(story.matrix, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "legrad"])
def test_every_method_explains_what_is_written(gpt2: Any, name: str) -> None:
    """A later token has no part: AttCat alone counts the attention that comes from there."""
    if name in ("kernel_shap", "lime", "shapley_value_sampling"):
        torch.manual_seed(0)
    found = explain_generation(gpt2, tokenizer(), PROMPT, continuation="H I", method=name)
    assert found.maps.shape == (2, 11)
    assert np.isfinite(found.maps).all()
    if name not in ("attcat", "kernel_shap", "lime"):
        assert not found.maps[0, 9:].any()


def test_a_span_is_the_sum_of_its_tokens(gpt2: Any, story: GenerationResult) -> None:
    letters = tokenizer()
    found = explain_generation(gpt2, letters, PROMPT, target="H I")
    np.testing.assert_allclose(found.maps[0], story.maps.sum(0)[:10], rtol=1e-3, atol=1e-5)
    together = story.tokens(0, 1)
    assert together.probability == pytest.approx(found.written[0].probability, rel=1e-3)
    assert [word.attribution for word in story.spans("H I")[0].words] == pytest.approx(
        [word.attribution for word in together.words]
    )


@pytest.mark.parametrize("method", ["attnlrp", "libra_gradient", "occlusion"])
def test_a_log_probability_speaks_for_the_token_against_the_others(gpt2: Any, method: str) -> None:
    found = explain_generation(
        gpt2, tokenizer(), PROMPT, target="H", of="log_probability", method=method
    )
    assert int(found.maps[0, :8].argmax()) == 1
    of_logit = explain_generation(gpt2, tokenizer(), PROMPT, target="H", method=method)
    assert not np.allclose(found.maps, of_logit.maps)


@pytest.mark.parametrize("method", ["transformer_lrp", "transformer_attribution"])
def test_what_eq_9_would_cancel_is_refused(gpt2: Any, method: str) -> None:
    with pytest.raises(ExplanationError, match="falls with some of the model's outputs"):
        explain_generation(
            gpt2, tokenizer(), PROMPT, target="H", of="log_probability", method=method
        )


def test_targets_by_name_id_and_position_are_the_same(gpt2: Any) -> None:
    letters = tokenizer()
    number = NAMES.index("I")
    spelled = [
        {"target": "I"}, {"target": " I"}, {"target": number}, {"target": (9, number)},
        {"target": (-2, number)},
    ]  # fmt: skip
    maps = [
        explain_generation(gpt2, letters, PROMPT, continuation="H I", **one).maps for one in spelled
    ]
    for one in maps[1:]:
        np.testing.assert_allclose(one[:, :10], maps[0][:, :10], rtol=1e-4, atol=1e-6)


def test_a_target_is_called_what_it_is_and_not_what_stands_before_it(gpt2: Any) -> None:
    found = explain_generation(gpt2, tokenizer(), PROMPT, target="H I")
    assert found.tokens(0).text == "H I"
    with pytest.raises(ArgumentError, match="found no 'H' among"):
        found.spans("H")


def test_a_bfloat16_copy_has_the_same_map(model: Any) -> None:
    """Its weights are rounded to three digits, and nothing is computed in bfloat16 beyond them."""
    copied = deepcopy(model).bfloat16()
    found = [
        explain_generation(one, tokenizer(), PROMPT, continuation="H I").matrix[0]
        for one in (model, copied)
    ]
    assert np.corrcoef(*found)[0, 1] > 0.99
    assert found[0][:8].argmax() == found[1][:8].argmax() == 1


def test_nothing_of_the_model_s_is_altered(gpt2: Any) -> None:
    before = {name: value.clone() for name, value in gpt2.state_dict().items()}
    settings = gpt2.config.to_dict(), gpt2.generation_config.to_dict()
    explain_generation(gpt2, tokenizer(), PROMPT, max_new_tokens=2)
    assert (gpt2.config.to_dict(), gpt2.generation_config.to_dict()) == settings
    for name, value in gpt2.state_dict().items():
        assert torch.equal(value, before[name])
        assert not value.requires_grad


# Texts.


@pytest.mark.parametrize(
    "text",
    ["नमस्ते दुनिया", "日本語の文", "👩‍👩‍👧 und so", "naïve café", "a\tb\n\nc", "שלום עולם", HOSTILE],
)
def test_tokens_spell_the_text_they_were_made_of(text: str) -> None:
    letters = bytewise()
    ids = letters(text)["input_ids"]
    spelled = spell(letters, ids)
    assert spelled.text == text
    words = spelled.words(0, len(ids), "word", special_tokens=False)
    assert "".join(word.before + word.text for word in words).strip() == text.strip()
    assert sorted(n for word in words for n in word.pieces) == list(range(len(ids)))
    pieces = spelled.words(0, len(ids), "piece", special_tokens=False)
    assert "\ufffd" not in "".join(piece.text for piece in pieces)


def test_a_text_that_ends_within_a_letter_is_explained(of_bytes: tuple[Any, Any]) -> None:
    ids = of_bytes[1]("é")["input_ids"][:1]
    found = explain_generation(*of_bytes, "caf", continuation=ids)
    assert found.maps.shape == (1, 4)
    found.to_html()


def test_a_conversation_hides_its_template_and_ends_where_the_model_answers(
    of_bytes: tuple[Any, Any],
) -> None:
    found = explain_generation(
        *of_bytes, messages=[{"role": "user", "content": "say hello"}], continuation="hello you"
    )
    assert found.prompt == "say hello"
    assert [word.text for word in found.words] == ["say", "hello", "hello", "you"]
    assert [one.text for one in found.written] == ["hello", "you"]
    shown = explain_generation(
        *of_bytes, messages=[{"role": "user", "content": "say"}], continuation="so",
        special_tokens=True,
    )  # fmt: skip
    assert [word.text for word in shown.words if word.special] == [
        "<|im_start|>", "<|im_end|>", "<|im_start|>",
    ]  # fmt: skip


def test_granularities_add_up(of_bytes: tuple[Any, Any]) -> None:
    totals = []
    for granularity in ("piece", "word", "sentence"):
        found = explain_generation(
            *of_bytes, "One. Two words.", continuation=" Three. Four!", granularity=granularity
        )
        totals.append(found.matrix.sum())
    assert totals[1:] == pytest.approx([totals[0]] * 2, rel=1e-4)
    assert [word.text for word in found.words] == ["One.", "Two words.", "Three.", "Four!"]
    assert [one.text for one in found.explained] == ["Three.", "Four!"]


def test_a_model_writes_as_it_is_told(gpt2: Any) -> None:
    greedy = explain_generation(gpt2, tokenizer(), PROMPT, max_new_tokens=2)
    assert greedy.continuation.split() == ["H", "I"]
    forced = explain_generation(
        gpt2, tokenizer(), PROMPT, max_new_tokens=2, generation={"suppress_tokens": [9]}
    )
    assert "H" not in forced.continuation


def test_whatever_brings_its_tokenizer_needs_none(gpt2: Any, story: GenerationResult) -> None:
    pipe = SimpleNamespace(model=gpt2, tokenizer=tokenizer())
    processor = SimpleNamespace(tokenizer=tokenizer())
    for arguments in ((pipe, None), (gpt2, processor)):
        found = explain_generation(*arguments, PROMPT, max_new_tokens=2)
        np.testing.assert_allclose(found.maps, story.maps, rtol=1e-4, atol=1e-5)


# Files.


def test_the_page_runs_its_own_script_alone(story: GenerationResult, tmp_path: Path) -> None:
    story.save(tmp_path / "story.html")
    page = (tmp_path / "story.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page
    assert not re.search(r"\son[a-z]+=|(src|href)=\"http", page)
    rows = [one.split() for one in re.findall(r'data-from="([^"]*)"', page)]
    assert len(rows) == len(story.written)
    np.testing.assert_allclose(np.array(rows, dtype=float), story.matrix, rtol=1e-2)
    assert len(re.findall(r" data-word[ >]", page)) == len(story.words)


def test_hostile_texts_are_only_texts(of_bytes: tuple[Any, Any]) -> None:
    found = explain_generation(*of_bytes, HOSTILE, continuation=HOSTILE)
    one = explain_generation(*of_bytes, HOSTILE, target=HOSTILE)
    for page in (found.to_html(), found._repr_html_(), one.to_html(), one._repr_html_()):
        assert page.count("<script>") <= 1
        assert "alert(1)</script>" not in page
        assert "\u202e" not in page
        assert "\x1b" not in page


def test_numbers_and_figures_are_written(story: GenerationResult, tmp_path: Path) -> None:
    for name in ("a.json", "a.npz", "a.png"):
        story.save(tmp_path / name)
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["relevance"].shape == (2, 11)
        assert list(archive["written"]) == ["H", "I"]
        np.testing.assert_array_equal(archive["token_relevance"], story.maps)
        assert json.loads(str(archive["provenance"]))["methods"] == [WRITTEN_TEXT_METHOD]
    read = json.loads((tmp_path / "a.json").read_text())
    assert (read["prompt"], read["continuation"].strip()) == (PROMPT, "H I")
    assert [one["text"] for one in read["written"]] == ["H", "I"]
    labels = [label.get_text() for label in story.figure().axes[0].get_yticklabels()]
    assert labels == ["H", "I"]
    assert len(repr(story)) < 120
    assert story.tokens(0).topk(1)[0] in story.tokens(0).words


@pytest.mark.parametrize("number", [np.int64(9), torch.tensor(9), np.array(9), 9])
def test_a_number_is_a_number_whoever_counts(gpt2: Any, number: Any) -> None:
    found = explain_generation(gpt2, tokenizer(), PROMPT, target=number)
    assert found.written[0].text == tokenizer().decode([9])
    written = explain_generation(gpt2, tokenizer(), PROMPT, continuation=number)
    assert list(written.ids[-1:]) == [9]


# What cannot be right is an error.


def test_a_model_in_training_mode_is_named_and_left_as_it_was(gpt2: Any) -> None:
    model = deepcopy(gpt2).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    state = torch.get_rng_state()
    for arguments in ({"max_new_tokens": 2}, {"continuation": "H I"}, {"target": "H"}):
        with pytest.raises(ArgumentError, match=r"in training mode.*model.eval\(\)"):
            explain_generation(model, tokenizer(), PROMPT, **arguments)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_sees_what_comes_later_is_refused() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer()), intermediate_size=16, **sizes)
    # Random weights attend nearly evenly: a later token changes little.
    with pytest.raises(ArgumentError, match="changes with the tokens behind it"):
        explain_generation(BertForMaskedLM(config).eval(), tokenizer(), PROMPT, continuation="H I")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "  "}, "empty prompt"),
        ({"continuation": ""}, "empty continuation"),
        ({"continuation": "H", "target": "K"}, "found no 'K' in what was written"),
        ({"continuation": "H", "target": 11}, "found no 11 in what was written"),
        ({"target": "Paris"}, "no tokens for 'Paris'"),
        ({"target": 99}, "token id 99"),
        ({"target": (40, 9)}, "a position from 0 to 8"),
        ({"target": "H", "instead_of": "H"}, "nothing to compare"),
        ({"instead_of": "H"}, "without target="),
        ({"of": "probability"}, "'logit' or 'log_probability'"),
        ({"method": "lrp"}, "found method 'lrp'"),
        ({"messages": [{"role": "user", "content": "a"}]}, "both a prompt and messages="),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens=1.5"),
        ({"granularity": "letter"}, "granularity='letter'"),
        ({"prompt": ["H", "I"]}, "found list as the text"),
        ({"prompt": "na\udcefve"}, "not in UTF-8"),
        ({"target": "na\udcefve"}, "not in UTF-8"),
        ({"continuation": "na\udcefve"}, "not in UTF-8"),
        ({"continuation": [0.5]}, "found a continuation of float64"),
        ({"continuation": [[9, 10], [11, 12]]}, "shape (2, 2)"),
        ({"continuation": [99]}, "token id 99"),
        ({"continuation": [-1]}, "token id -1"),
        ({"target": ["H", "I"]}, "one at a time"),
        ({"target": 9.0}, "found target=9.0"),
        ({"target": (3, 99)}, "token id 99"),
        ({"target": "H", "instead_of": (3, 9)}, "found instead_of=(3, 9)"),
        ({"method": ["attnlrp"]}, "found method ['attnlrp']"),
        ({"continuation": "H " * 90}, "which the model has positions for"),
        ({"prompt": "H " * 90}, "it can write nothing"),
        ({"max_new_tokens": 90}, "which the model has positions for"),
    ],
)
def test_what_must_be_changed_is_named(gpt2: Any, arguments: Any, message: str) -> None:
    arguments = {"prompt": PROMPT, **arguments}
    with pytest.raises(ArgumentError, match=re.escape(message)):
        explain_generation(gpt2, tokenizer(), **arguments)


def test_models_that_do_not_continue_texts_are_refused(story: GenerationResult) -> None:
    with pytest.raises(ArgumentError, match="expected one of transformers"):
        explain_generation(trained("gpt2"), None, PROMPT)
    with pytest.raises(ArgumentError, match="found int as the model"):
        explain_generation(3, tokenizer(), PROMPT)  # type: ignore[arg-type]
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=13, **sizes)).eval()
    with pytest.raises(ArgumentError, match="an encoder and a decoder"):
        explain_generation(t5, tokenizer(), PROMPT)
    for wrong in (lambda: story.tokens(2), lambda: story.spans("K"), lambda: story.spans("")):
        with pytest.raises(ArgumentError, match="found"):
            wrong()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("first", [0, 1, 5])
def test_logits_before_the_first_are_not_computed(kind: str, first: int) -> None:
    model, ids = trained(kind), torch.arange(8)[None]
    rows: list[int] = []
    with model.lm_head.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[1])):
        found = Reader(model, first=first)(ids)
        expected = Reader(model)(ids)[:, first:]
    assert rows == [8 - first, 8]
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
