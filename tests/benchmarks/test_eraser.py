"""Documents with human rationales: what is read, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from captum_transformer_lrp.benchmarks.eraser import AnnotationError, EraserDocuments
from tests.benchmarks.eraser_corpus import REVIEWS, change_annotation, write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


def test_tokens_are_what_whitespace_separates_across_lines(corpus: Path) -> None:
    (corpus / "docs" / "neg_3").write_text("bad ,  boring\n\tand far too long .\n")
    document = EraserDocuments(corpus, "test")[4]
    assert document.tokens == ("bad", ",", "boring", "and", "far", "too", "long", ".")


def test_a_token_in_two_spans_is_marked_once(tmp_path: Path) -> None:
    review = ("a", "POS", "a witty , warm film", ((1, 4), (3, 5), (2, 2)))
    document = EraserDocuments(write_corpus(tmp_path / "c", [review]), "test")[0]
    assert document.rationale == (1, 2, 3, 4)


def test_all_documents_are_read_in_the_order_of_the_file(corpus: Path) -> None:
    documents = EraserDocuments(corpus, "test")
    assert [document.name for document in documents] == documents.identifiers()
    assert [document.label for document in documents] == [review[1] for review in REVIEWS]
    assert documents.labels() == ["NEGATIVE", "POSITIVE"]
    assert documents[-1] == documents[len(documents) - 1]


def test_an_annotation_without_evidence_is_about_the_document_of_its_name(corpus: Path) -> None:
    change_annotation(corpus, 0, evidences=[])
    assert EraserDocuments(corpus, "test")[0].rationale == ()


def _not_json(folder: Path) -> None:
    file = folder / "test.jsonl"
    first, second, *others = file.read_text().splitlines()
    file.write_text("\n".join([first, second[:-5], *others]))


def _not_utf8(folder: Path) -> None:
    (folder / "docs" / "pos_1").write_bytes(b"a witty \xff film")


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no such document": (lambda c: (c / "docs" / "pos_1").unlink(), "pos_1.*No such file"),
    "not UTF-8": (_not_utf8, r"pos_1.*not UTF-8 \(byte 8\)"),
    "an empty document": (lambda c: (c / "docs" / "pos_1").write_text(" \n") and None, "empty"),
    "not JSON": (_not_json, r"annotation 2.*not valid JSON"),
    "beyond the end": (lambda c: change_annotation(c, 1, end_token=12), "1 to 12, outside of.* 11"),
    "before the start": (lambda c: change_annotation(c, 1, start_token=-1), "-1 to 6, outside"),
    "end before start": (lambda c: change_annotation(c, 1, end_token=0), "1 to 0, outside"),
    "no number": (lambda c: change_annotation(c, 1, end_token="6"), "expected two integers"),
    "other words": (lambda c: change_annotation(c, 1, text="cold"), "'cold', but these.*'witty ,"),
    "two documents": (lambda c: change_annotation(c, 1, evidences=_two()), "one document"),
    "a path": (lambda c: change_annotation(c, 1, docid="../test.jsonl"), "expected a file's name"),
    "no class": (lambda c: change_annotation(c, 1, classification=None), "classification None"),
    "no list": (lambda c: change_annotation(c, 1, evidences={"a": 1}), "list of lists"),
}


def _two() -> list[list[dict[str, object]]]:
    return [[{"docid": name, "start_token": 0, "end_token": 1}] for name in ("pos_1", "pos_2")]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_by_name_and_the_other_documents_are_read(corpus: Path, damage: str) -> None:
    harm, message = DAMAGES[damage]
    harm(corpus)
    documents = EraserDocuments(corpus, "test")
    with pytest.raises(AnnotationError, match=message):
        documents[1]
    assert documents[2].name == "neg_2"


def test_a_line_without_a_name_is_identified_by_its_number(corpus: Path) -> None:
    _not_json(corpus)
    assert EraserDocuments(corpus, "test").identifiers()[:3] == ["neg_1", "line 2", "neg_2"]


def test_what_is_missing_is_told_with_what_is_there(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no .*val.jsonl; the splits there are: test"):
        EraserDocuments(corpus, "val")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        EraserDocuments(tmp_path / "nowhere", "test")
    with pytest.raises(FileNotFoundError, match="has no folder docs"):
        EraserDocuments(tmp_path, "test")
    (corpus / "val.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"val\.jsonl is empty"):
        EraserDocuments(corpus, "val")


@pytest.mark.parametrize(("split", "count"), [("train", 1600), ("val", 200), ("test", 199)])
def test_every_review_of_eraser_movies_can_be_used(shared: Path, split: str, count: int) -> None:
    documents = EraserDocuments(shared / "data" / "eraser_movies", split)
    assert sum(1 for _ in documents) == len(documents) == count
    assert documents.labels() == ["NEG", "POS"]
