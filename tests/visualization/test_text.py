"""Relevant words: merged from pieces, escaped everywhere, readable."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from captum_transformer_lrp.visualization import (
    Picture,
    Section,
    Table,
    TextExplanation,
    Word,
    report_html,
    text_figure,
    text_html,
    text_terminal,
    words_from_pieces,
)

HOSTILE = '<script>alert("1")</script>'
PIECES = {
    "text": "A witty film,\nreally",
    "pieces": ["[CLS]", "a", "wit", "##ty", "film", ",", "really", "[SEP]", "[PAD]"],
    "offsets": [(0, 0), (0, 1), (2, 5), (5, 7), (8, 12), (12, 13), (14, 20), (0, 0), (0, 0)],
    "word_ids": [None, 0, 1, 1, 2, 3, 4, None, None],
}
RELEVANCE = torch.tensor([[0.3, 0.0, 0.25, 0.125, 0.1, 0.05, 0.05, 0.125, 0.0]])


class Elements(HTMLParser):
    """Which elements a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def explanations(*words: Word) -> list[TextExplanation]:
    return [TextExplanation("positive", words, 0.9)]


def in_terminal(explained: list[TextExplanation], **options: object) -> str:
    file = io.StringIO()
    Console(file=file, width=80, **options).print(text_terminal(explained))
    return file.getvalue()


def test_a_word_has_the_relevance_of_all_its_pieces() -> None:
    words = words_from_pieces(**PIECES, attribution=RELEVANCE)
    assert [word.text for word in words] == ["A", "witty", "film", ",", "really"]
    assert words[1].attribution == 0.375


def test_the_text_between_words_is_kept() -> None:
    words = words_from_pieces(**PIECES, attribution=RELEVANCE)
    assert "".join(word.before + word.text for word in words) == PIECES["text"]


def test_special_tokens_are_shown_on_request_and_then_nothing_is_lost() -> None:
    words = words_from_pieces(**PIECES, attribution=RELEVANCE, special_tokens=True)
    assert [word.text for word in words if word.special] == ["[CLS]", "[SEP]", "[PAD]"]
    # float32 sums of nine numbers
    assert sum(word.attribution for word in words) == pytest.approx(float(RELEVANCE.sum()), 1e-6)


def test_lengths_that_disagree_are_an_error() -> None:
    with pytest.raises(ValueError, match="pieces 9, attribution 3, offsets 9, word_ids 9"):
        words_from_pieces(**PIECES, attribution=[0.1, 0.2, 0.3])


def test_words_of_a_real_tokenizer_spell_the_text(shared) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "bert_movies")
    text = "An unputdownable,  naïve film — isn't it?"
    encoding = tokenizer(text)
    words = words_from_pieces(
        text,
        encoding.tokens(),
        torch.ones(len(encoding.tokens())),
        offsets=encoding.encodings[0].offsets,
        word_ids=encoding.word_ids(),
    )
    assert "".join(word.before + word.text for word in words) == text


@pytest.mark.parametrize(
    "page",
    [
        text_html,
        lambda texts, title: report_html([Section(title, texts={title: texts})], title=title),
    ],
)
def test_nothing_from_the_caller_becomes_markup(page) -> None:
    explained = [TextExplanation(HOSTILE, [Word(HOSTILE, 1.0, before=HOSTILE)], 0.5)]
    elements = Elements(page(explained, title=HOSTILE)).found
    assert "script" not in {tag for tag, _ in elements}


def test_a_hostile_picture_title_or_language_stays_inside_its_attribute() -> None:
    quote = '"><script>alert(1)</script>'
    section = Section(
        quote, quote, [Picture(quote, Figure(), quote)], tables=[Table(quote, [quote], [[quote]])]
    )
    page = report_html([section], lang=quote, introduction=quote)
    elements = Elements(page).found
    assert "script" not in {tag for tag, _ in elements}
    assert dict(elements)["img"]["alt"] == quote
    assert dict(elements)["html"]["lang"] == quote


def test_a_page_needs_no_other_file_and_fits_a_phone() -> None:
    page = text_html(explanations(Word("good", 1.0)), lang="de")
    elements = Elements(page).found
    assert not re.search(r"https?://|url\(|<link|@import", page)
    assert ("html", {"lang": "de"}) in elements
    assert any(attributes.get("name") == "viewport" for _, attributes in elements)


def test_numbers_are_said_in_words_as_well_as_in_colour() -> None:
    page = text_html(explanations(Word("good", 0.75), Word("bad", -0.25)))
    assert 'title="0.75"' in page
    assert 'title="-0.25"' in page


@pytest.mark.parametrize("values", [(0.0, 0.0), (2.0, 2.0), (-1.0, 1.0), (-2.0, -2.0)])
def test_letters_stand_out_from_every_background(values: tuple[float, float]) -> None:
    def luminance(color: str) -> float:
        channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    scale = explanations(*(Word("word", value) for value in values))[0].scale
    for value in values:
        background = luminance(scale.text_color(value))
        # WCAG 2: 7:1 is the stricter of its two levels.
        assert (background + 0.05) / (luminance("#111111") + 0.05) > 7


def test_sign_is_seen_in_the_colour_and_zero_is_white() -> None:
    scale = explanations(Word("good", 1.0), Word("bad", -0.5))[0].scale
    assert scale.text_color(0.0) == "#ffffff"
    assert scale.text_color(1.0) != scale.text_color(-1.0)


def test_the_terminal_shows_markup_and_control_characters_as_text() -> None:
    hostile = "[red]\x1b[2J\x07\u202eevil"
    shown = in_terminal([TextExplanation(hostile, [Word(hostile, 1.0)], 0.5)])
    assert shown.count(r"[red]\x1b[2J\x07\u202eevil") == 2


@pytest.mark.parametrize("letter", ["\x1b", "\x00", "\x7f", "\x9b", "\u202e", "\u2066", "\udcff"])
def test_a_page_shows_control_characters_escaped(letter: str) -> None:
    hostile = f"a{letter}b"
    texts = [TextExplanation(hostile, [Word(hostile, 1.0, before=hostile)])]
    section = Section(
        hostile, hostile, texts={hostile: texts}, tables=[Table("", [""], [[hostile]])]
    )
    footer = {hostile: hostile}
    for page in (
        text_html(texts, title=hostile, lang=hostile, footer=footer),
        report_html([section], title=hostile, introduction=hostile, footer=footer),
    ):
        assert letter not in page
        assert hostile.encode("unicode_escape").decode() in page
        page.encode("utf-8")


def test_a_page_keeps_line_breaks_and_letters_of_all_languages() -> None:
    text = "naïve שלום 日本\n\tfilm 👩‍🔬"
    assert text in text_html([TextExplanation("c", [Word(text, 1.0)])])


def test_the_footer_says_how_a_page_was_made() -> None:
    footer = {"model": "<b>bert</b>", "torch": "2.4"}
    for page in (text_html([], footer=footer), report_html([], footer=footer)):
        assert "<dt>model</dt><dd>&lt;b&gt;bert&lt;/b&gt;</dd>" in page.split("<footer>")[1]
    assert "<footer>" not in report_html([])


def test_the_terminal_colours_words() -> None:
    shown = in_terminal(
        explanations(Word("good", 1.0)),
        force_terminal=True,
        color_system="truecolor",
        no_color=False,
    )
    assert "48;2;230;159;0m" in shown  # the background of the most relevant word


def test_a_figure_of_long_words_is_not_clipped() -> None:
    words = [Word(text, 0.1, before=" ") for text in ["W" * 300, "$x^2$", *["film"] * 80]]
    figure = text_figure([TextExplanation("A long name " * 20, words, 0.5)], width=4)
    FigureCanvasAgg(figure).draw()
    for text in figure.texts:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y0 >= 0
        assert box.y1 <= figure.bbox.y1


def test_the_colour_of_a_comma_lies_below_the_word_before_it() -> None:
    words = [Word("good", 1.0), Word("film", 0.5, before=" "), Word(",", 1.0)]
    figure = text_figure(explanations(*words))
    boxes = figure.artists
    assert len(boxes) == len(words)
    # matplotlib draws what has a smaller zorder first.
    assert max(box.zorder for box in boxes) < min(text.zorder for text in figure.texts)
    assert all(text.get_bbox_patch() is None for text in figure.texts)


@pytest.mark.parametrize("end", [",", "!?", "s", "…", "'s"])
def test_the_box_of_what_touches_a_word_begins_where_the_word_ends(end: str) -> None:
    figure = text_figure(explanations(Word("gorgeous", 1.0), Word(end, 0.2), Word("x", 0.1, " ")))
    FigureCanvasAgg(figure).draw()
    of_word, of_end, of_next = (box.get_window_extent() for box in figure.artists)
    word = figure.texts[1].get_window_extent()
    assert of_word.x0 < word.x0
    # Hinting moves letters by a pixel; the padding of a box is three.
    assert of_end.x0 >= word.x1 - 2
    assert of_end.x0 < of_word.x1  # no gap
    assert of_next.x0 > of_end.x1


def test_a_notebook_shows_the_figure() -> None:
    from IPython.core.pylabtools import print_figure

    assert print_figure(text_figure(explanations(Word("good", 1.0))), fmt="png")
