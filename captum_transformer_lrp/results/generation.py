"""Where each word that a language model writes comes from: one call, one result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from captum_transformer_lrp.errors import ArgumentError
from captum_transformer_lrp.names import WRITTEN_TEXT_METHOD
from captum_transformer_lrp.result import Result, as_footer
from captum_transformer_lrp.results.classes import check_count, provenance
from captum_transformer_lrp.results.given_models import as_language_model
from captum_transformer_lrp.results.spelling import Spelled, spell

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from captum_transformer_lrp.attr.continuation import Hops
    from captum_transformer_lrp.models import LanguageModel
    from captum_transformer_lrp.results.written import Score, Target
    from captum_transformer_lrp.visualization import Section, Word
    from captum_transformer_lrp.visualization.words import Granularity, PiecesOfWord


@dataclass(frozen=True, repr=False, eq=False)
class Written:
    """A word that was written, or several as one, with the words that it comes from.

    Args:
        text: what was written.
        words: all that stands before, with its relevance.
        probability: what the model gave to it.
        before: what stands between the previous word and this one.
        pixels: for each picture that the model saw, the relevance of its pixels (H, W).
    """

    text: str
    words: Sequence[Word]
    probability: float
    before: str = ""
    pixels: Sequence[npt.NDArray[np.float32]] = ()

    def __repr__(self) -> str:
        best = ", ".join(repr(word.text) for word in self.topk(3))
        return f"Written({self.text!r}, {100 * self.probability:.1f} %; from {best})"

    def topk(self, k: int = 5) -> list[Word]:
        """The words with the most relevance, in descending order."""
        check_count("k", k)
        return sorted(self.words, key=lambda word: -word.attribution)[:k]


@dataclass(frozen=True, repr=False, eq=False)
class GenerationResult(Result):
    """What a language model wrote, with what each of its words comes from.

    Args:
        spelled: prompt and continuation with the place of each token.
        ids: their token ids.
        start: the number of the prompt's tokens.
        words: which tokens make which word.
        explained: what is explained, a row of each thing that is shown; its `pieces` are rows of
            `maps`.
        maps: (rows, tokens), the relevance of each token.
        ends: how many tokens of the text each row comes after.
        probabilities: what the model gave to each row.
        pictures: what the model saw of each image or tile, (H, W, 3), 0 to 1.
        pixels: for each picture the relevance of its pixels, (rows, H, W).
        about: the model, method, options and versions.
        source: the text's file, which `save` never overwrites.
    """

    spelled: Spelled
    ids: Sequence[int]
    start: int
    words: Sequence[PiecesOfWord]
    explained: Sequence[PiecesOfWord]
    maps: npt.NDArray[np.float32]
    ends: Sequence[int]
    probabilities: Sequence[float]
    about: Mapping[str, Any] = field(default_factory=dict)
    source: Path | None = None
    pictures: Sequence[npt.NDArray[np.float32]] = ()
    pixels: Sequence[npt.NDArray[np.float32]] = ()

    def __repr__(self) -> str:
        shown = [one.text for one in self.explained]
        more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
        return (
            f"GenerationResult({' | '.join(shown[:8])}{more}; from {len(self.words)} words; "
            f"by {', '.join(self.about.get('methods', []))})"
        )

    @property
    def prompt(self) -> str:
        """The prompt without special tokens."""
        return self.spelled.text[: self._first_letter()]

    @property
    def continuation(self) -> str:
        """What was written, without special tokens."""
        return self.spelled.text[self._first_letter() :]

    def _first_letter(self) -> int:
        known = self.start < len(self.ids)
        return self.spelled.offsets[self.start][0] if known else len(self.spelled.text)

    @property
    def written(self) -> list[Written]:
        """What is explained, in its order."""
        return [self._together(one.text, one.pieces, one.before) for one in self.explained]

    @property
    def matrix(self) -> npt.NDArray[np.float64]:
        """What is explained × words: the relevance of each word."""
        of_words = np.stack(
            [self.maps[:, list(word.pieces)].sum(1, dtype=np.float64) for word in self.words], 1
        )
        return np.stack([of_words[list(one.pieces)].sum(0) for one in self.explained])

    def tokens(self, *numbers: int) -> Written:
        """What written tokens come from, together.

        Args:
            numbers: which, counted from 0; all of them by default.

        Raises:
            ArgumentError: for a token that was not explained.
        """
        count = len(self.maps)
        for one in numbers:
            if not -count <= one < count:
                raise ArgumentError(f"found token {one}, expected 0 to {count - 1}")
        rows = [one % count for one in numbers] or list(range(count))
        if self._every_token:
            names = [self.spelled.names[self.start + row] for row in rows]
        else:
            names = [self.explained[0].text]
        return self._together("".join(names).strip() or "".join(names), rows)

    def spans(self, text: str) -> list[Written]:
        """What a text comes from, as one, for each time that it was written.

        Raises:
            ArgumentError: where it was not written, or a single target was explained.
        """
        found, at = [], self.spelled.text.find(text, self._first_letter())
        while text and at >= 0 and self._every_token:
            places = [place for place in self.spelled.between(at, at + len(text))
                      if place >= self.start]  # fmt: skip
            if places:
                found.append(self._together(text, [place - self.start for place in places]))
            at = self.spelled.text.find(text, at + len(text))
        if not found:
            raise ArgumentError(
                f"found no {text!r} among what was explained, "
                f"{self.continuation or self.explained[0].text!r}"
            )
        return found

    @property
    def _every_token(self) -> bool:
        """Whether the rows are those of the written tokens, and not that of a target."""
        return list(self.ends) == list(range(self.start, len(self.ids)))

    def hops(self, number: Hops = "all") -> GenerationResult:
        """The same, with relevance on written words passed on to the words that these come from.

        It leads from an answer through a chain of thought to the prompt (FlashTrace, Pan et al.
        2026), without running the model again. `attr.continuation.through_written` has the formula.

        Args:
            number: how many times; "all" for until nothing is left on written words.

        Raises:
            ArgumentError: where a single target was explained, or relevance was passed on already.

        Example:
            >>> from captum_transformer_lrp import examples, explain_generation
            >>> story = explain_generation(*examples.letter_chain(), "f H g I b e g b ?")
            >>> story.tokens(-1).topk(1)[0].text, story.hops(2).tokens(-1).topk(1)[0].text
            ('1', 'H')
        """
        from captum_transformer_lrp.attr.continuation import checked_hops
        from captum_transformer_lrp.results.written import passed_on

        options = self.about.get("options", {})
        if not self._every_token or options.get("hops"):
            raise ArgumentError(
                "found the map of a target, or one after hops, expected those of all written "
                "words: give hops= to explain_generation"
            )
        number = checked_hops(number)
        maps, pixels = passed_on(self.maps, self.pixels, self.start, len(self.maps), number)
        about = {**self.about, "options": {**options, "hops": number}}
        return replace(self, maps=maps, pixels=pixels, about=about)

    def topk(self, k: int = 5) -> list[Word]:
        """The words with the most relevance for all that is explained, in descending order."""
        return self.tokens().topk(k)

    def _together(self, text: str, rows: Sequence[int], before: str = "") -> Written:
        values = self.maps[list(rows)].sum(0, dtype=np.float64)
        end = max(self.ends[row] for row in rows)
        words = [word.word(values) for word in self.words if word.pieces[0] < end]
        probability = float(np.prod([self.probabilities[row] for row in rows]))
        return Written(
            text, words, probability, before, [one[list(rows)].sum(0) for one in self.pixels]
        )

    def to_numpy(self) -> dict[str, npt.NDArray[Any]]:
        """`words`, what was `written`, and its `relevance`; the same of tokens and pixels."""
        seen = {
            f"pixels/{number}": np.stack([one.pixels[number] for one in self.written])
            for number in range(len(self.pixels))
        }
        return {
            **seen,
            "words": np.array([word.text for word in self.words], dtype=np.str_),
            "written": np.array([one.text for one in self.explained], dtype=np.str_),
            "relevance": self.matrix,
            "probabilities": np.array([one.probability for one in self.written]),
            "tokens": np.array(self.spelled.names, dtype=np.str_),
            "token_ids": np.array(self.ids),
            "token_relevance": self.maps.copy(),
        }

    def as_dict(self) -> dict[str, Any]:
        """The texts, their words, and for each that is explained the relevance of all words."""
        return {
            "provenance": self.provenance(),
            "prompt": self.prompt,
            "continuation": self.continuation,
            "words": [word.text for word in self.words],
            "written": [
                {"text": one.text, "probability": one.probability, "relevance": row.tolist()}
                for one, row in zip(self.written, self.matrix, strict=True)
            ],
        }

    def figure(self) -> Figure:
        """What is explained × words; of a single target the coloured words."""
        from captum_transformer_lrp.visualization.generation import figure_of

        return figure_of(self)

    def section(self, title: str = "") -> Section:
        """Itself under a heading, for `visualization.report_html`."""
        from captum_transformer_lrp.visualization.generation import section_of

        return section_of(self, title)

    def to_html(self, *, lang: str = "en") -> str:
        """A page on which one points at a written word, and the words that it comes from light up.

        It needs no other file, and its script is the only one that its policy allows.
        """
        from captum_transformer_lrp.visualization.generation import page_of

        return page_of(self, lang=lang, footer=as_footer(self.about))


def explain_generation(
    model: nn.Module | LanguageModel | str,
    tokenizer: Any = None,
    prompt: str = "",
    *,
    messages: Sequence[Mapping[str, Any]] | None = None,
    images: Any = None,
    continuation: str | Sequence[int] | Tensor | None = None,
    max_new_tokens: int | None = None,
    target: Target = None,
    instead_of: str | int | None = None,
    of: Score = "logit",
    hops: Hops = 0,
    method: str = WRITTEN_TEXT_METHOD,
    granularity: Granularity = "word",
    special_tokens: bool = False,
    generation: Mapping[str, Any] | None = None,
) -> GenerationResult:
    """Show which words each written word comes from.

    The model reads prompt and continuation in one pass, without a cache. Each written token is
    explained by the tokens before it. The relevance of a word is the sum over its tokens.

    Args:
        model: a causal language model of transformers, its name or folder, what
            `load_language_model` returns, or a pipeline, which brings its tokenizer.
        tokenizer: the model's, or its processor; None where the model brings it.
        prompt: the text that is continued.
        messages: a conversation in the place of a prompt, as the tokenizer's chat template takes.
        images: for a model that sees, a PIL image or several. The tokenizer is then the model's
            processor, and `method` one of this library's. A prompt that does not say where they
            stand gets them by the chat template, or at its beginning.
        continuation: what was written, as a text or token ids. None lets the model write. A text is
            read with or without a space before it, whichever the model finds more probable.
        max_new_tokens: how many tokens the model writes; by default 20, or as many as it has
            positions for. With a `target` it writes none by default.
        target: what is explained in the place of every written token. A text or a token id is
            explained where it was written, or as the next token where nothing was written. Of a
            position with a token id the logit is explained. A text of several tokens is explained
            as one, read with or without a space before it, as a continuation is.
        instead_of: a text or token id that the target is compared with, at the first token in
            which they differ.
        of: "logit" or "log_probability"; of a difference they are the same.
        hops: how many times relevance on written words is passed on, as `GenerationResult.hops`.
        method: a name that `compare` knows.
        granularity: "piece" (of the tokenizer), "word" or "sentence".
        special_tokens: whether special tokens are shown, too.
        generation: further arguments of `model.generate`, which picks the most probable tokens by
            default.

    Returns:
        The words with what they come from: a notebook shows them, and `save` writes them.

    Raises:
        ArgumentError: for an empty prompt, a target that was not written, and a model that is no
            causal language model.

    Example:
        >>> from captum_transformer_lrp import examples, explain_generation
        >>> story = explain_generation(*examples.letter_chain(), "f H g I b e g b ?")
        >>> story
        GenerationResult(H | I | 1 | 2 | w; from 14 words; by attnlrp)
        >>> story.matrix.shape, story.spans("w")[0].topk(1)[0].text
        ((5, 14), '1')
    """
    from captum_transformer_lrp.attr.continuation import checked_hops
    from captum_transformer_lrp.results import written as scores
    from captum_transformer_lrp.results.reading import continuation_ids, generated, prompt_ids
    from captum_transformer_lrp.results.seen import image_token_ids

    loaded = as_language_model(model, tokenizer)
    scores.check_method(method, of)
    hops = checked_hops(hops)
    if instead_of is not None and target is None:
        raise ArgumentError("found instead_of= without target=: give what it is compared with")
    processor = tokenizer or getattr(model, "processor", None)
    asked, seen = prompt_ids(loaded, processor, prompt, messages, images)
    reader = scores.Reader(loaded.model, seen)
    reader.check_repeats(asked)
    following: list[int] = []
    if continuation is not None:
        plain = "" if seen is not None else prompt
        following = continuation_ids(reader, loaded.tokenizer, plain, asked, continuation)
    elif target is None or max_new_tokens is not None:
        following = generated(reader, loaded.tokenizer, asked, max_new_tokens, generation or {})
    ids, start = [*asked, *following], len(asked)
    hidden = image_token_ids(reader.config) if seen is not None else set()
    spelled = spell(loaded.tokenizer, ids, hidden)
    if target is None:
        wanted = scores.every_token(spelled, ids, start)
    else:
        one = scores.by_name(reader, loaded.tokenizer, ids, spelled, start, target, instead_of)
        wanted, ids = [one], list(one.ids)
        spelled, start = spell(loaded.tokenizer, ids, hidden), min(start, len(ids))
    # What a target comes from is passed on by the tokens that were written before it.
    between = scores.every_token(spelled, ids, start) if hops and target is not None else []
    special_tokens = special_tokens or (start < len(ids) and all(spelled.special[start:]))
    words = [
        *spelled.words(0, start, granularity, special_tokens),
        *spelled.words(start, len(ids), granularity, special_tokens),
    ]
    chances = scores.probabilities(reader, wanted).tolist()
    maps, of_pixels = scores.explained(reader, [*wanted, *between], method, of)
    about = provenance(loaded, method, of=of, granularity=granularity)
    about["options"]["targets"] = "every written token" if target is None else wanted[0].text
    rows = scores.shown_rows(wanted, words, start, every=target is None)
    pictures, pixels = seen.shown(of_pixels) if seen and of_pixels is not None else ([], [])
    if hops:
        about["options"]["hops"] = hops
        maps, pixels = scores.passed_on(maps, pixels, start, len(wanted), hops)
    return GenerationResult(
        spelled, ids, start, words, rows, maps, [one.end for one in wanted], chances, about,
        pictures=pictures, pixels=pixels,
    )  # fmt: skip
