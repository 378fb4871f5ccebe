"""From the answer through what was written to the prompt, hop by hop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_transformer_lrp import (
    ArgumentError,
    ExplanationError,
    GenerationResult,
    TransformerLRP,
    examples,
    explain_continuation,
    explain_generation,
)
from captum_transformer_lrp.attr.continuation import Hops, through_written
from captum_transformer_lrp.names import WRITTEN_TEXT_METHOD
from tests.letters.chain import accuracy, draw, found_and_share
from tests.results.test_images_in_prompts import llava, photo

PROMPT, WRITTEN = "f H g I b e g b ?", "H I 1 2 w"
START, COUNT = 9, 5


@pytest.fixture(scope="module")
def chain() -> tuple[Any, Any]:
    return examples.letter_chain()


@pytest.fixture(scope="module")
def story(chain: tuple[Any, Any]) -> GenerationResult:
    return explain_generation(*chain, PROMPT, continuation=WRITTEN)


def drawn_maps(*, signed: bool, batch: int = 1) -> Tensor:
    """(N, 5, 7 + 5) in float64: each written token's map, over those before it alone."""
    generator = torch.Generator().manual_seed(0)
    found = torch.rand(batch, COUNT, 7 + COUNT, generator=generator, dtype=torch.double)
    if signed:
        found = found - 0.4
    return found.tril(7 - 1)


# The closed form.


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("hops", [0, 1, 2, 3, 5, 9])
def test_hops_are_powers_of_the_matrix_over_written_tokens(signed: bool, hops: int) -> None:
    (maps,) = drawn_maps(signed=signed)
    shares = maps / maps.abs().sum(1, keepdim=True)
    prompt, written = shares[:, :7], shares[:, 7:]
    powers = [torch.linalg.matrix_power(written, k) for k in range(hops + 1)]
    of_prompt = maps[:, :7] + maps[:, 7:] @ sum(powers[:hops], torch.zeros(5, 5).double()) @ prompt
    expected = torch.cat([of_prompt, maps[:, 7:] @ powers[hops]], 1)
    torch.testing.assert_close(through_written(maps, maps, 7, hops), expected)


@pytest.mark.parametrize("signed", [False, True])
def test_all_hops_are_the_inverse(signed: bool) -> None:
    """I + W + W² + … = (I − W)⁻¹, for W is zero on and above its diagonal."""
    (maps,) = drawn_maps(signed=signed)
    shares = maps / maps.abs().sum(1, keepdim=True)
    reached = torch.linalg.inv(torch.eye(5).double() - shares[:, 7:])
    found = through_written(maps, maps, 7, "all")
    torch.testing.assert_close(found[:, :7], maps[:, :7] + maps[:, 7:] @ reached @ shares[:, :7])
    assert not found[:, 7:].any()


@pytest.mark.parametrize("hops", [1, 2, "all"])
def test_a_hop_keeps_the_sum_of_what_has_one_sign(hops: Hops) -> None:
    positive, signed = drawn_maps(signed=False), drawn_maps(signed=True)
    found = through_written(positive, positive, 7, hops)
    torch.testing.assert_close(found.sum(-1), positive.sum(-1))
    assert (found >= 0).all()
    found = through_written(signed, signed, 7, hops)
    assert (found.abs().sum(-1) <= signed.abs().sum(-1) + 1e-12).all()


def test_what_speaks_against_a_reason_speaks_against_the_answer() -> None:
    """The first token comes from a, and b speaks against it. The second comes from the first."""
    maps = torch.tensor([[3.0, -1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]])
    found = through_written(maps, maps, 2, 1)
    torch.testing.assert_close(found[1], torch.tensor([1.5, -0.5, 0.0, 0.0]))
    found = through_written(-maps[1:], maps, 2, 1)  # an answer against which the first one speaks
    torch.testing.assert_close(found[0], torch.tensor([-1.5, 0.5, 0.0, 0.0]))


def test_a_token_that_comes_from_nothing_keeps_what_it_has() -> None:
    maps = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0], [0.0, 3.0, 3.0, 0.0]])
    found = through_written(maps, maps, 1, "all")
    torch.testing.assert_close(found[2], torch.tensor([1.0, 5.0, 0.0, 0.0]))


def test_maps_of_a_batch_are_those_of_its_examples() -> None:
    maps = drawn_maps(signed=True, batch=3)
    found = through_written(maps, maps, 7, 2)
    for one, expected in zip(maps, found, strict=True):
        torch.testing.assert_close(through_written(one, one, 7, 2), expected)


@pytest.mark.parametrize(("row", "column"), [(0, 7), (1, 8), (1, 11)])
def test_there_is_no_hop_to_a_later_token(row: int, column: int) -> None:
    (maps,) = drawn_maps(signed=False)
    maps[row, column] = 0.1
    with pytest.raises(ExplanationError, match="on itself or on later tokens"):
        through_written(maps, maps, 7, 1)


# The two calls.


@pytest.mark.parametrize("hops", [1, 2, "all"])
def test_padding_changes_nothing(chain: tuple[Any, Any], hops: Hops) -> None:
    """One prompt is padded on the left, and its continuation on the right."""
    method = TransformerLRP(chain[0], preset=WRITTEN_TEXT_METHOD)
    drawn = draw(2, torch.Generator().manual_seed(0))
    prompts, written = drawn.ids.clone(), drawn.written.clone()
    prompts[1, :2], written[1, 4:] = 0, 0
    batch = explain_continuation(
        method, prompts, written, attention_mask=prompts > 0, continuation_mask=written > 0,
        hops=hops,
    )  # fmt: skip
    alone = explain_continuation(method, prompts[:1], written[:1], hops=hops)
    torch.testing.assert_close(batch[:1], alone, rtol=1e-3, atol=1e-4)
    alone = explain_continuation(method, prompts[1:, 2:], written[1:, :4], hops=hops)
    torch.testing.assert_close(batch[1:, :4, 2:13], alone, rtol=1e-3, atol=1e-4)
    assert not batch[1, :, :2].any()
    assert not batch[1, 4].any()


@pytest.mark.parametrize("hops", [1, 2, "all"])
def test_both_calls_say_the_same(
    chain: tuple[Any, Any], story: GenerationResult, hops: Hops
) -> None:
    ids = torch.tensor([story.ids])
    method = TransformerLRP(chain[0], preset=WRITTEN_TEXT_METHOD)
    expected = explain_continuation(method, ids[:, :START], ids[:, START:], hops=hops)[0]
    np.testing.assert_allclose(story.hops(hops).maps, expected, rtol=1e-3, atol=1e-4)
    at_once = explain_generation(*chain, PROMPT, continuation=WRITTEN, hops=hops)
    np.testing.assert_allclose(at_once.maps, expected, rtol=1e-3, atol=1e-4)
    assert at_once.about["options"] == story.hops(hops).about["options"]
    assert f"hops: {hops}" in at_once.section().text


@pytest.mark.parametrize("hops", [1, "all"])
@pytest.mark.parametrize(
    "target", ["w", "2 w", "I 1 2", 17, (12, 17)], ids=["last", "span", "inner", "id", "position"]
)
def test_a_target_is_the_sum_of_its_tokens(
    chain: tuple[Any, Any], story: GenerationResult, target: Any, hops: Hops
) -> None:
    rows = {"2 w": (3, 4), "I 1 2": (1, 2, 3)}.get(target, (4,))
    found = explain_generation(*chain, PROMPT, continuation=WRITTEN, target=target, hops=hops)
    expected = story.hops(hops).maps[list(rows)].sum(0)
    np.testing.assert_allclose(found.maps[0], expected[: found.maps.shape[1]], rtol=1e-3, atol=1e-4)
    together = story.hops(hops).tokens(*rows)
    assert sum(word.attribution for word in together.words) == pytest.approx(
        found.maps.sum(), rel=1e-3
    )


def test_a_contrast_goes_through_what_was_written(chain: tuple[Any, Any]) -> None:
    found = explain_generation(
        *chain, PROMPT, continuation=WRITTEN, target="w", instead_of="x", hops=2
    )
    assert found.maps[0].argmax() == 1


def test_hops_of_a_result_run_no_model(chain: tuple[Any, Any], story: GenerationResult) -> None:
    """Those of a target take as many passes as without hops."""
    passes: list[int] = []
    with_hook = chain[0].register_forward_hook(lambda *_: passes.append(1))
    try:
        story.hops(2)
        assert not passes
        counts = []
        for hops in (0, "all"):
            passes.clear()
            explain_generation(*chain, PROMPT, continuation=WRITTEN, target="w", hops=hops)
            counts.append(len(passes))
    finally:
        with_hook.remove()
    assert counts[0] == counts[1] > 0


def test_pixels_go_the_same_way() -> None:
    """A picture's share of a written word reaches the words that come from it."""
    story = explain_generation(*llava(), "what is on the table", images=photo(),
                               continuation="a cat dog")  # fmt: skip
    (pixels,) = story.pixels
    rows = np.concatenate([story.maps, pixels.reshape(3, -1)], 1).astype(float)
    expected = rows.copy()
    for row in range(3):  # from the first to the last, all that came before is in the prompt
        for place in range(row):
            moved = expected[row, story.start + place]
            arrived = expected[place] / np.abs(rows[place]).sum()
            expected[row] += moved * arrived
            expected[row, story.start + place] -= moved
    found = story.hops("all")
    np.testing.assert_allclose(found.maps, expected[:, : len(story.ids)], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(
        found.pixels[0].reshape(3, -1), expected[:, len(story.ids) :], rtol=1e-4, atol=1e-9
    )
    one = explain_generation(*llava(), "what is on the table", images=photo(), hops="all",
                             continuation="a cat dog", target="dog")  # fmt: skip
    np.testing.assert_allclose(one.pixels[0][0], found.pixels[0][2], rtol=1e-3, atol=1e-7)


# Truth: which letter of the prompt the answer comes from is known.


def test_the_model_takes_each_step_from_the_one_before(chain: tuple[Any, Any]) -> None:
    assert accuracy(chain[0]) == 1
    assert accuracy(chain[0], changed=0.5) > 0.999


def test_two_hops_lead_from_the_answer_to_the_letter_that_it_comes_from(
    chain: tuple[Any, Any],
) -> None:
    """The answer comes from a number, which comes from a letter, which was copied."""
    drawn = draw(200, torch.Generator().manual_seed(2))
    direct, one, two = (found_and_share(chain[0], drawn, hops) for hops in (0, 1, 2))
    assert direct[1] < 0.02
    assert one[1] < 0.2
    assert two[1] > 0.5
    assert two[0] >= 0.95 > direct[0]


# What cannot be right is an error.


@pytest.mark.parametrize("hops", [-1, 1.0, "two", True, None, [1], "ALL"])
def test_a_number_of_hops_is_a_number(
    chain: tuple[Any, Any], story: GenerationResult, hops: Any
) -> None:
    method = TransformerLRP(chain[0], preset=WRITTEN_TEXT_METHOD)
    ids = torch.tensor([story.ids])
    calls = [
        lambda: story.hops(hops),
        lambda: explain_generation(*chain, PROMPT, continuation=WRITTEN, hops=hops),
        lambda: explain_continuation(method, ids[:, :START], ids[:, START:], hops=hops),
    ]
    for call in calls:
        with pytest.raises(ArgumentError, match="expected a number from 0, or 'all'"):
            call()


@pytest.mark.parametrize("hops", [np.int64(2), torch.tensor(2), np.array(2)])
def test_whoever_counts_the_hops(story: GenerationResult, hops: Any) -> None:
    found = story.hops(hops)
    np.testing.assert_array_equal(found.maps, story.hops(2).maps)
    assert found.to_json() == story.hops(2).to_json()


def test_hops_start_from_the_maps_of_all_written_words(
    chain: tuple[Any, Any], story: GenerationResult
) -> None:
    for target in ("w", "I"):
        one = explain_generation(*chain, PROMPT, continuation=WRITTEN, target=target)
        with pytest.raises(ArgumentError, match="give hops= to explain_generation"):
            one.hops(1)
    with pytest.raises(ArgumentError, match="give hops= to explain_generation"):
        story.hops(1).hops(1)
    np.testing.assert_array_equal(story.hops(0).hops(0).maps, story.maps)


def test_a_method_that_gives_later_tokens_something_is_refused(chain: tuple[Any, Any]) -> None:
    torch.manual_seed(0)
    with pytest.raises(ExplanationError, match="a method that gives later tokens none"):
        explain_generation(*chain, PROMPT, continuation=WRITTEN, method="lime", hops=1)
