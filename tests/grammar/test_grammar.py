"""Random Transformers, written in random ways, are explained as the plain spelling is.

A draw is a seed: what the model computes, and how each part of it is written.  A, ∇A, R and the map
are compared in float64.  Run a draw that failed again with ``fault_of(Draw.of(SEED))``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest

from tests.grammar.comparison import OtherOutputError, differences, fault_of
from tests.grammar.transformer import Draw, Meaning

QUICK, SLOW, EACH = 100, 2000, 100
FEWEST, MOST_REFUSED = 40, 0.15
"""Productions that the grammar has at least; the share of draws that may be refused."""

REFUSED: dict[str, str] = {
    "values: key by key": "multiplies values by attention weights one by one"
}
"""Productions that are refused by themselves, and what the error says."""


@cache
def slots() -> dict[str, tuple[Meaning, Mapping[str, object]]]:
    """Every part that any model has, a meaning that has it, and the ways to write it."""
    found: dict[str, tuple[Meaning, Mapping[str, object]]] = {}
    for seed in range(500):
        meaning = Meaning.drawn(seed)
        for slot, ways in meaning.slots().items():
            prepared = {meaning.prepared: meaning.prepared, "patches, prepared": "normalised"}
            alone = replace(meaning, prepared=prepared.get(slot, ""))
            if slot not in found and (slot.startswith("pool") or meaning.pool != "attention"):
                found[slot] = alone, ways
    return found


def productions() -> list[tuple[str, str]]:
    """Every slot with every way to write it, but the plain one; plain, too, where pixels move."""
    return [
        (slot, name)
        for slot, (meaning, ways) in slots().items()
        for name in list(ways)[slot != meaning.prepared :]
    ]


def test_the_grammar_is_large() -> None:
    assert len(productions()) >= FEWEST
    names = {f"{slot}: {name}" for slot, name in productions()}
    assert names >= REFUSED.keys()


@pytest.mark.parametrize(
    ("slot", "name"),
    [pytest.param(slot, name, id=f"{slot}: {name}") for slot, name in productions()],
)
def test_a_production_alone_is_explained_as_the_plain_one(slot: str, name: str) -> None:
    meaning, _ = slots()[slot]
    fault = fault_of(Draw(meaning, {slot: name}))
    expected = REFUSED.get(f"{slot}: {name}")
    if expected is None:
        assert fault == ""
    else:
        assert fault.startswith("refused")
        assert expected in fault


def test_linear_layers_by_baddbmm_are_added_in_halves() -> None:
    """A product with a stack of weights may be scores of learned queries; here it is none."""
    written = {"residual": "halves", "linear": "baddbmm"}
    assert fault_of(Draw(Meaning(), written)) == ""


def chunks(first: int, last: int) -> list[range]:
    return [range(start, min(start + EACH, last)) for start in range(first, last, EACH)]


@pytest.mark.parametrize(
    "seeds",
    [
        *(pytest.param(one, id=f"{one.start}…{one.stop - 1}") for one in chunks(0, QUICK)),
        *(
            pytest.param(one, id=f"{one.start}…{one.stop - 1}", marks=pytest.mark.slow)
            for one in chunks(QUICK, SLOW)
        ),
    ],
)
def test_a_draw_is_explained_as_the_plain_spelling(seeds: range) -> None:
    faults = {seed: fault for seed in seeds if (fault := fault_of(Draw.of(seed)))}
    refused = {seed: fault for seed, fault in faults.items() if fault.startswith("refused")}
    wrong = {seed: fault for seed, fault in faults.items() if seed not in refused}
    assert not wrong, "\n".join(f"seed {seed}: {fault}" for seed, fault in wrong.items())
    assert len(refused) <= MOST_REFUSED * len(seeds), "\n".join(
        f"seed {seed}: {fault}, {Draw.of(seed)}" for seed, fault in refused.items()
    )


def test_draws_use_the_whole_grammar() -> None:
    used = {name for seed in range(SLOW) for name in Draw.of(seed).names}
    missing = {f"{slot}: {name}" for slot, name in productions()} - used
    plain = {f"{slot}: {next(iter(ways))}" for slot, (_, ways) in slots().items()}
    assert not missing - plain


def test_a_production_that_computes_something_else_is_a_fault_of_the_grammar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.grammar.productions import RESIDUALS

    monkeypatch.setitem(RESIDUALS, "y + x", lambda x, y: y + 1.001 * x)
    with pytest.raises(OtherOutputError, match="with residual: y"):
        differences(Draw(Meaning(), {"residual": "y + x"}))


def test_a_fault_names_the_productions_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.grammar.productions import RESIDUALS

    monkeypatch.setitem(RESIDUALS, "y + x", lambda x, y: y + x.detach())
    written = {"residual": "y + x", "scale": "queries · s", "layout": "flat"}
    fault = fault_of(Draw(Meaning(), written))
    assert fault.startswith("map")
    assert fault.endswith("with residual: y + x")
