"""From a tokenizer's pieces to the whitespace-separated tokens of a corpus."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_transformer_lrp.benchmarks.errors import BenchmarkError

FUSIONS: Final[Mapping[str, Callable[[Sequence[float]], float]]] = {
    "sum": sum,
    "max": max,
    "mean": lambda values: sum(values) / len(values),
}
"""How the attributions of a token's pieces become one."""


@dataclass(frozen=True)
class EncodedTokens:
    """A document as the model reads it, and which piece belongs to which token of the corpus.

    Args:
        input_ids: int64 (1, S), special tokens included.
        keywords: what else the tokenizer gives to the model, (1, S) each.
        pieces: for each token the positions of its pieces; none beyond what the model reads.
    """

    input_ids: Tensor
    keywords: Mapping[str, Tensor]
    pieces: tuple[tuple[int, ...], ...]

    @property
    def read(self) -> tuple[int, ...]:
        """The positions of the tokens that the model reads at least one piece of."""
        return tuple(token for token, pieces in enumerate(self.pieces) if pieces)

    def to(self, device: torch.device) -> EncodedTokens:
        """The same with its tensors on a device."""
        keywords = {name: value.to(device) for name, value in self.keywords.items()}
        return EncodedTokens(self.input_ids.to(device), keywords, self.pieces)


def encode_tokens(
    tokenizer: Any, tokens: Sequence[str], max_length: int | None = None
) -> EncodedTokens:
    """Encode a document of a corpus, cut to what the model reads.

    The tokens are joined by single spaces, and the tokenizer's offsets in that text say whose each
    piece is.  A piece over several tokens belongs to each of them.

    Example:
        >>> from captum_transformer_lrp.examples import sentiment_classifier
        >>> _, tokenizer = sentiment_classifier()
        >>> encode_tokens(tokenizer, ["unwatchable", "film"]).pieces
        ((1, 2, 3), (4,))
    """
    check_fast(tokenizer)
    encoding = tokenizer(
        " ".join(tokens),
        return_tensors="pt",
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        truncation=True,
        max_length=max_length,
    )
    offsets = encoding.pop("offset_mapping")[0].tolist()
    special = encoding.pop("special_tokens_mask")[0].tolist()
    keywords = dict(encoding)
    return EncodedTokens(keywords.pop("input_ids"), keywords, _pieces(tokens, offsets, special))


def token_scores(
    encoded: EncodedTokens, attribution: Tensor, fusion: str = "sum"
) -> NDArray[np.float64]:
    """One attribution for each token of the corpus, float64 (T,); −∞ for those not read.

    Args:
        encoded: what was explained.
        attribution: one value for each piece, (S,) or (1, S).
        fusion: ``"sum"``, ``"max"`` or ``"mean"`` of the pieces' values.

    Example:
        >>> ids = torch.tensor([[101, 7, 8, 9, 102]])
        >>> encoded = EncodedTokens(ids, {}, ((1,), (2, 3), ()))
        >>> token_scores(encoded, torch.tensor([9.0, 0.25, 0.5, 0.25, 9.0])).tolist()
        [0.25, 0.75, -inf]
    """
    if fusion not in FUSIONS:
        raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, found {fusion!r}")
    length = encoded.input_ids.shape[-1]
    if attribution.numel() != length:
        raise ValueError(
            f"the attribution has shape {tuple(attribution.shape)}, expected one value for each "
            f"of {length} pieces"
        )
    values = attribution.detach().double().flatten().tolist()
    if any(value != value for value in values):
        raise ValueError("the attribution contains NaN")
    scores = [
        FUSIONS[fusion]([values[piece] for piece in pieces]) if pieces else -np.inf
        for pieces in encoded.pieces
    ]
    return np.array(scores)


def ranking(encoded: EncodedTokens, scores: NDArray[np.float64]) -> list[int]:
    """The tokens that the model reads, the highest score first; of equal ones the earliest first.

    Example:
        >>> encoded = EncodedTokens(torch.zeros(1, 4), {}, ((0,), (1,), (2,), (3,), ()))
        >>> ranking(encoded, np.array([0.1, 0.5, 0.5, 0.9, -np.inf]))
        [3, 1, 2, 0]
    """
    read = np.array(encoded.read, dtype=np.int64)
    order: list[int] = read[np.argsort(-scores[read], kind="stable")].tolist()
    return order


def check_fast(tokenizer: Any) -> None:
    """Raise for a tokenizer that does not know the places of its pieces."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} does not tell where its pieces stand in the text, "
            "expected a fast tokenizer: save a tokenizer.json beside the model"
        )


def _pieces(
    tokens: Sequence[str], offsets: Sequence[tuple[int, int]], special: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """For each token the pieces that share a character with it."""
    ends = np.cumsum([len(token) + 1 for token in tokens]) - 1  # one space after each
    starts = ends - [len(token) for token in tokens]
    found: list[list[int]] = [[] for _ in tokens]
    for piece, ((start, end), is_special) in enumerate(zip(offsets, special, strict=True)):
        if is_special:
            continue
        # Some tokenizers count the space before a word to its first piece.
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(starts, end, side="left"))
        for token in range(first, last):
            found[token].append(piece)
    return tuple(map(tuple, found))


def mask_id(model: Any, removal: str) -> int | None:
    """What stands in the place of removed pieces: the id of a mask; None where they are deleted."""
    found: int | None = model.tokenizer.mask_token_id
    if removal == "mask" and found is None:
        raise BenchmarkError(
            f"the tokenizer of {model.name} has no mask token: use removal 'delete'"
        )
    return found if removal == "mask" else None


def without_tokens(
    encoded: EncodedTokens, removed: Sequence[int], mask: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The model's ids (1, S') and other inputs without some of the corpus' tokens.

    Their pieces are deleted, or replaced by the id ``mask``; special tokens stay.

    Example:
        >>> encoded = EncodedTokens(torch.tensor([[101, 7, 8, 9, 102]]), {}, ((1,), (2, 3)))
        >>> without_tokens(encoded, [1])[0].tolist()
        [[101, 7, 102]]
        >>> without_tokens(encoded, [1], mask=103)[0].tolist()
        [[101, 7, 103, 103, 102]]
    """
    pieces = sorted({piece for token in removed for piece in encoded.pieces[token]})
    if mask is not None:
        ids = encoded.input_ids.clone()
        ids[0, pieces] = mask
        return ids, dict(encoded.keywords)
    stays = torch.ones(encoded.input_ids.shape[1], dtype=torch.bool)
    stays[pieces] = False
    kept = stays.nonzero().flatten().to(encoded.input_ids.device)
    keywords = {name: value[:, kept] for name, value in encoded.keywords.items()}
    return encoded.input_ids[:, kept], keywords
