"""Which values of a language model's output are explained, and by which method."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captum_transformer_lrp.attr.base import RecordedAttribution
from captum_transformer_lrp.attr.comparison import METHODS, compare
from captum_transformer_lrp.attr.continuation import Hops, through_written
from captum_transformer_lrp.errors import ArgumentError
from captum_transformer_lrp.results.given_models import only_read
from captum_transformer_lrp.results.seen import Seen
from captum_transformer_lrp.results.spelling import Spelled, check_token_id, spell, spellings

if TYPE_CHECKING:
    from captum_transformer_lrp.visualization.words import PiecesOfWord

Maps: TypeAlias = npt.NDArray[np.float32]
Score: TypeAlias = Literal["logit", "log_probability"]
Target: TypeAlias = str | int | tuple[int, int] | None


@dataclass(frozen=True)
class Wanted:
    """A token, or several as one, whose score is explained.

    Args:
        text: what it is called.
        tokens: where each stands in the text and its id. The text's last may be one short of it.
        instead_of: the id of the token that the first of them is compared with.
        ids: the token ids that are read, all that the tokens come after among them.
        before: what stands between the token and the text before it.
    """

    text: str
    tokens: tuple[tuple[int, int], ...]
    ids: tuple[int, ...]
    instead_of: int | None = None
    before: str = ""

    @property
    def end(self) -> int:
        """How many tokens of the text the last of them comes after."""
        return self.tokens[-1][0]

    def score(self, logits: Tensor, first: int, of: Score) -> Tensor:
        """Its score (N,) from the logits (N, positions, vocabulary) of `first` and later ones."""
        values = logits.log_softmax(-1) if of == "log_probability" else logits
        of_terms = [sign * values[:, at - first, one] for (at, one), sign in self.terms().items()]
        return torch.stack(of_terms).sum(0)

    def terms(self) -> dict[tuple[int, int], float]:
        """The logits that its score adds up, as positions and ids, with their signs."""
        found = {(place - 1, one): 1.0 for place, one in self.tokens}
        if self.instead_of is not None:
            found[self.tokens[0][0] - 1, self.instead_of] = -1.0
        return found


class Reader:
    """A causal language model as a function from token ids, and from pixels if it sees, to logits.

    Wanted are those of the position `first` and of later ones.
    """

    def __init__(self, model: Any, seen: Seen | None = None, first: int = 0) -> None:
        self.model, self.seen, self.first = model, seen, first
        self.config = getattr(model, "config", None)
        parameters = inspect.signature(model.forward).parameters
        # A model of transformers reads the text in one pass and keeps nothing.
        self.settings = {"use_cache": False} if "use_cache" in parameters else {}
        # Logits of a whole vocabulary are large: models that can leave out those before `first`.
        self.leaves_out = first > 0 and seen is None and "logits_to_keep" in parameters

    def __call__(self, input_ids: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Logits (N, positions, vocabulary); the pixels (1, …) are those of the only example."""
        keywords: dict[str, Any] = dict(self.settings)
        if self.seen is not None:
            shown = self.seen.pixels if pixels is None else pixels[0]
            keywords |= {**self.seen.arguments(input_ids.shape[1]), "pixel_values": shown}
        length = input_ids.shape[1]
        if self.leaves_out:
            keywords["logits_to_keep"] = length - self.first
        output = self.model(input_ids=input_ids, **keywords)
        logits: Tensor = getattr(output, "logits", output)
        if not isinstance(logits, Tensor):
            logits = logits[0]
        if self.leaves_out and logits.shape[1:2] == (length - self.first,):
            return logits
        if logits.dim() != 3 or logits.shape[1] < length:
            raise ArgumentError(
                f"{type(self.model).__name__} returned a tensor of shape {tuple(logits.shape)}, "
                "expected logits (N, positions, vocabulary): give a causal language model"
            )
        return logits[:, self.first :] if self.first else logits

    def given(self, ids: Sequence[int]) -> Tensor:
        """Token ids (1, S) where the model is."""
        return torch.tensor([ids], device=next(self.model.parameters()).device)

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits (S, vocabulary) of one text."""
        with only_read(self.model, len(ids)):
            return self(self.given(ids))[0].float().cpu()

    def check_repeats(self, ids: Sequence[int]) -> None:
        """Raise for a model in training mode that answers otherwise each time."""
        if not self.model.training:
            return
        with only_read(self.model, len(ids)):
            first, second = (self(self.given(ids)) for _ in range(2))
        if not torch.equal(first, second):
            raise ArgumentError(
                f"{type(self.model).__name__} is in training mode and drops activations at random, "
                "so that what it says has no one explanation: call model.eval() first"
            )


def check_method(name: str, of: Score) -> None:
    """Raise for a method that `compare` does not know by name, and for an unknown score."""
    if not isinstance(name, str) or name not in METHODS:
        raise ArgumentError(f"found method {name!r}, expected one of {', '.join(METHODS)}")
    if of not in ("logit", "log_probability"):
        raise ArgumentError(f"found of={of!r}, expected 'logit' or 'log_probability'")


def of_this_library(name: str) -> bool:
    """Whether a method that `compare` knows is none of Captum's."""
    kind = getattr(METHODS[name], "func", METHODS[name])
    return isinstance(kind, type) and issubclass(kind, RecordedAttribution)


def explained(
    reader: Reader, wanted: Sequence[Wanted], method: str, of: Score
) -> tuple[npt.NDArray[Any], Tensor | None]:
    """For each of what is wanted, which all read the same text, the relevance of what was read.

    The map of a sum of logits is the sum of their maps, that of a difference the difference: not
    every method propagates a start of both signs. Captum's methods explain the score itself.

    Returns:
        that of tokens (wanted, S), and of pixels, in the first place the same, where there are any.
    """
    first = min(place for one in wanted for place, _ in one.tokens) - 1
    ours = of_this_library(method)
    if ours and of == "logit":
        signs_of = [one.terms() for one in wanted]
        terms = list(dict.fromkeys(term for one in signs_of for term in one))
        targets: list[Any] = [(position - first, one) for position, one in terms]
        signs = torch.tensor([[of.get(term, 0.0) for term in terms] for of in signs_of])
    else:
        targets = [partial(one.score, first=first, of=of) for one in wanted]
        signs = torch.eye(len(wanted))
    ids = reader.given(wanted[0].ids)
    pixels = None
    since = Reader(reader.model, reader.seen, first)
    since.leaves_out &= ours  # perturbation compares logits, which then differ by rounding
    if reader.seen is None:
        named = {str(number): target for number, target in enumerate(targets)}
        found = compare(since, ids, named, [method])[method]
        maps = [found[name][0] for name in named]
    elif not ours:
        raise ArgumentError(f"{method} explains one input, found images, too: give one of ours")
    else:
        attribution: Any = METHODS[method](since)
        pairs = attribution.attribute_targets((ids, reader.seen.pixels[None]), targets)
        maps = [of_ids[0] for of_ids, _ in pairs]
        of_pixels = torch.stack([one[0] for _, one in pairs]).float().cpu()
        pixels = torch.tensordot(signs, of_pixels, dims=1)
    return (signs @ torch.stack(maps).float().cpu()).numpy(), pixels


def passed_on(
    maps: Maps, pixels: Sequence[Maps], start: int, shown: int, hops: Hops
) -> tuple[Maps, list[Maps]]:
    """What is shown after some hops through written tokens, of tokens and of pixels alike.

    Of the rows of maps (rows, tokens) and pixels (rows, H, W) the first are shown, and the last are
    those of the written tokens, which begin at `start`.
    """
    count = maps.shape[1] - start
    flat = torch.from_numpy(
        np.concatenate([maps, *(one.reshape(len(one), -1) for one in pixels)], 1)
    )
    found = through_written(flat[:shown], flat[len(flat) - count :], start, hops).numpy()
    ends = np.cumsum([maps.shape[1], *(one[0].size for one in pixels)])
    tokens, *several = np.split(found, ends[:-1], 1)
    return tokens, [
        values.reshape(shown, *one.shape[1:]) for values, one in zip(several, pixels, strict=True)
    ]


def probabilities(reader: Reader, wanted: Sequence[Wanted]) -> npt.NDArray[Any]:
    """The probability of each of what is wanted; of several tokens, that of all of them.

    Raises:
        ArgumentError: where the model looks at tokens that come later.
    """
    first = min(place for one in wanted for place, _ in one.tokens)
    logits = reader.logits(wanted[0].ids)
    alone = reader.logits(wanted[0].ids[:first])[-1]
    spread = (alone - alone.mean()).norm().clamp(min=1e-12)
    half = next(reader.model.parameters()).dtype in (torch.float16, torch.bfloat16)
    change = (logits[first - 1] - alone).norm() / spread
    if change > (0.1 if half else 1e-4):
        raise ArgumentError(
            f"what {type(reader.model).__name__} says of a token changes with the tokens behind "
            "it, expected a causal language model (of BERT's kind: config.is_decoder = True)"
        )
    logs = logits.log_softmax(-1)
    return np.exp([float(sum(logs[at - 1, one] for at, one in each.tokens)) for each in wanted])


def every_token(spelled: Spelled, ids: Sequence[int], start: int) -> list[Wanted]:
    """Each token that was written."""
    return [
        Wanted(spelled.names[place], ((place, ids[place]),), tuple(ids))
        for place in range(start, len(ids))
    ]


def shown_rows(
    wanted: Sequence[Wanted], words: Sequence[PiecesOfWord], start: int, *, every: bool
) -> list[PiecesOfWord]:
    """What is shown of what is explained: the written words, or the target."""
    from captum_transformer_lrp.visualization.words import PiecesOfWord

    if not every:
        return [PiecesOfWord(one.text, (row,), one.before) for row, one in enumerate(wanted)]
    return [
        replace(word, pieces=tuple(place - start for place in word.pieces))
        for word in words
        if word.pieces[0] >= start
    ]


def by_name(
    reader: Reader,
    tokenizer: Any,
    ids: Sequence[int],
    spelled: Spelled,
    start: int,
    target: str | int | tuple[int, int],
    instead_of: str | int | None,
) -> Wanted:
    """What a target's name stands for: a text, a token id, or a position with a token id.

    What was written begins at `start`. Where that is the text's end, nothing was written, and the
    target is explained as what comes next.
    """
    target, instead_of = _plain(target, "target"), _plain(instead_of, "instead_of")
    if isinstance(target, tuple):
        (position, token), length = target, len(ids)
        check_token_id(tokenizer, token)
        if not -length <= position < length:
            raise ArgumentError(
                f"found target={target}, expected a position from 0 to {length - 1} and a token id"
            )
        tokens = [(position % length + 1, token)]
    elif start < len(ids):
        tokens = _found_in_text(target, ids, spelled, start)
    else:
        best = most_probable(reader, ids, _as_ids(tokenizer, target))
        tokens = [(start + number, one) for number, one in enumerate(best)]
    place = tokens[0][0]
    read = (*ids[:place], *(one for _, one in tokens[:-1]))
    text = "".join(_named(tokenizer, [one for _, one in tokens]))
    other = None
    if instead_of is not None:
        rival = most_probable(reader, ids[:place], _as_ids(tokenizer, instead_of))
        tokens, other = _parting(tokens, rival, f"{target!r} and {instead_of!r}")
        text = f"{text.strip() or text} instead of {''.join(_named(tokenizer, rival)).strip()}"
        read = (*ids[:place], *(one for one in rival[: tokens[0][0] - place]))
    before = text[: len(text) - len(text.lstrip())]
    return Wanted(text.strip() or text, tuple(tokens), read, other, before)


def _plain(target: Any, name: str) -> Any:
    """A target of Python's own numbers; raises for what is none."""
    target = target.tolist() if hasattr(target, "tolist") else target
    is_place = isinstance(target, tuple) and [type(one) for one in target] == [int, int]
    if target is None or type(target) in (str, int) or (is_place and name == "target"):
        return target
    place = ", or a position with a token id" if name == "target" else ""
    raise ArgumentError(
        f"found {name}={target!r}, expected a text or a token id{place}: one at a time"
    )


def _found_in_text(
    target: str | int, ids: Sequence[int], spelled: Spelled, start: int
) -> list[tuple[int, int]]:
    """The first place where a target was written."""
    begin = spelled.offsets[start][0]
    if isinstance(target, str):
        at = spelled.text.find(target, begin)
        places = [] if at < 0 or not target else spelled.between(at, at + len(target))
    else:
        places = [n for n in range(start, len(ids)) if ids[n] == target][:1]
    if not places:
        raise ArgumentError(
            f"found no {target!r} in what was written, {spelled.text[begin:]!r}: to explain it as "
            "the next token of the prompt, give neither continuation= nor max_new_tokens="
        )
    return [(place, ids[place]) for place in places]


def _as_ids(tokenizer: Any, target: str | int) -> list[list[int]]:
    if isinstance(target, str):
        return spellings(tokenizer, target)
    check_token_id(tokenizer, target)
    return [[target]]


def most_probable(reader: Reader, ids: Sequence[int], several: Sequence[list[int]]) -> list[int]:
    """Of some continuations the one that the model finds most probable."""
    if len(several) == 1:
        return several[0]

    def score(one: list[int]) -> float:
        logs = reader.logits([*ids, *one]).log_softmax(-1)
        return float(sum(logs[len(ids) + n - 1, token] for n, token in enumerate(one)))

    return max(several, key=score)


def _parting(
    tokens: Sequence[tuple[int, int]], rival: Sequence[int], names: str
) -> tuple[list[tuple[int, int]], int]:
    """The first token in which two continuations differ, and the other's there."""
    for (place, one), other in zip(tokens, rival, strict=False):
        if one != other:
            return [(place, one)], other
    raise ArgumentError(f"{names} begin with the same tokens, so there is nothing to compare")


def _named(tokenizer: Any, ids: Sequence[int]) -> Sequence[str]:
    # Behind another token, so that the first keeps its space.
    return spell(tokenizer, [*ids[:1], *ids]).names[1:]
