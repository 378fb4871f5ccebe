"""Which class a user means."""

from __future__ import annotations

import pytest

from captum_transformer_lrp.results.targets import resolve_target

NAMES = ["tabby, tabby cat", "tiger cat", "muscat", "crane", "crane", "golden retriever"]


@pytest.mark.parametrize(
    ("target", "index"),
    [
        ("0", 0),
        (" 5 ", 5),
        ("tabby cat", 0),
        ("TABBY", 0),
        ("Tiger", 1),
        ("muscat", 2),
        ("musc", 2),
        ("golden  Retriever", 5),
    ],
)
def test_an_index_a_name_a_synonym_or_a_unique_part_of_one(target: str, index: int) -> None:
    assert resolve_target(target, NAMES) == index


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("6", "found target 6, expected an index from 0 to 5"),
        ("-1", "found target -1, expected an index from 0 to 5"),
        ("crane", r"'crane' may mean 2 classes, 3 \(crane\), 4 \(crane\): give the index"),
        ("cat", r"may mean 2 classes, 0 \(tabby, tabby cat\), 1 \(tiger cat\)"),
        ("golden retreiver", r"or a name such as 5 \(golden retriever\)"),
        ("", "no class is called ''"),
        ("zebra", "no class is called 'zebra'"),
    ],
)
def test_what_is_unknown_or_ambiguous_lists_the_choices(target: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_target(target, NAMES)
