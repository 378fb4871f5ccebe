"""A trained model that sees: the map of its answer lies on the digit that the prompt asks for.

The prompt names a side of the picture, so the place that the answer comes from is known.
``python -m captum_transformer_lrp.examples.training.digit_reader`` makes the model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from captum_transformer_lrp import examples, explain_generation
from captum_transformer_lrp.examples.training.digit_reader import (
    Questions,
    accuracy,
    answer_ids,
    answer_logits,
    new_model,
)
from captum_transformer_lrp.names import WRITTEN_TEXT_METHOD
from tests.seeing import measure

COUNT = 200


@pytest.fixture(scope="module")
def reader() -> tuple[Any, Any]:
    return examples.digit_reader()


@pytest.fixture(scope="module")
def questions(reader: tuple[Any, Any]) -> Questions:
    return measure.answered(reader[0], COUNT)


def rate(model: Any, questions: Questions, method: str = WRITTEN_TEXT_METHOD) -> float:
    """How often the digit that is asked for has the larger mass; by chance in half of them."""
    larger, _ = measure.found(measure.maps(model, questions, method), questions)
    return float(larger.double().mean())


def test_the_model_names_digits_that_it_never_saw(reader: tuple[Any, Any]) -> None:
    assert accuracy(reader[0]) >= 0.97


def test_the_recommended_method_finds_the_digit_that_was_asked_for(
    reader: tuple[Any, Any], questions: Questions
) -> None:
    assert rate(reader[0], questions) >= 0.95
    _, highest = measure.found(measure.maps(reader[0], questions, WRITTEN_TEXT_METHOD), questions)
    # The digit's box is a ninth of the picture.
    assert float(highest.double().mean()) >= 0.95


def test_another_question_about_the_same_picture_moves_the_map(
    reader: tuple[Any, Any], questions: Questions
) -> None:
    other = replace(questions, sides=1 - questions.sides)
    with torch.no_grad():
        right = answer_logits(reader[0], other).argmax(-1) == answer_ids(other)
    other = other.of(right.nonzero()[:, 0])
    assert len(other.sides) > 0.9 * COUNT
    assert rate(reader[0], other) >= 0.95


def test_the_call_says_the_same(reader: tuple[Any, Any], questions: Questions) -> None:
    some = questions.of(torch.arange(20))
    pictures, expected = some.pictures, measure.maps(reader[0], some, WRITTEN_TEXT_METHOD)
    maps = []
    for prompt, picture, answer in zip(some.prompts, pictures, some.answers, strict=True):
        found = explain_generation(*reader, prompt, images=picture, max_new_tokens=1)
        assert found.continuation.strip() == answer
        maps.append(torch.tensor(found.pixels[0][0]))
    # The processor rounds pixels in its own way.
    np.testing.assert_allclose(torch.stack(maps), expected, rtol=0.01, atol=1e-3)
    larger, _ = measure.found(torch.stack(maps), some)
    assert larger.sum() >= 19


def test_the_measure_can_fail(questions: Questions) -> None:
    """A model that never learned sides has maps that do not know them."""
    torch.manual_seed(0)
    untrained = new_model().eval()
    assert rate(untrained, questions) < 0.8
    assert rate(untrained, questions, "raw_attention") < 0.8
