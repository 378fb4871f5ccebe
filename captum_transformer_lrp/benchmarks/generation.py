"""Language models: is the relevance where an answer comes from, and does the model need it?"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.benchmark_options import RemovalOptions
from captum_transformer_lrp.benchmarks.corpus_tokens import (
    EncodedTokens,
    check_fast,
    mask_id,
    ranking,
    token_scores,
    without_tokens,
)
from captum_transformer_lrp.benchmarks.errors import UnreadableExampleError
from captum_transformer_lrp.benchmarks.model_benchmark import ModelBenchmark
from captum_transformer_lrp.benchmarks.records import Record
from captum_transformer_lrp.benchmarks.removal import STEPS, area
from captum_transformer_lrp.benchmarks.results import Panel
from captum_transformer_lrp.benchmarks.runner import as_function
from captum_transformer_lrp.benchmarks.segmentation import placed

_TESTS = ("MoRF", "LeRF")


@dataclass(frozen=True)
class Prompt:
    """A prompt, and where in it the answer stands.

    Args:
        prompt: what the model reads.
        written: what follows; None for the token that the model finds likeliest.
        evidence: from which character of the prompt to before which one the answer comes, where
            that is known.
        context: the parts of it that are looked at, such as all but a question; none for all.
    """

    prompt: str
    written: str | None = None
    evidence: tuple[tuple[int, int], ...] = ()
    context: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        length = len(self.prompt)
        for start, end in (*self.evidence, *self.context):
            if not 0 <= start < end <= length:
                raise ValueError(f"{(start, end)} is no part of a prompt of {length} letters")


@dataclass(frozen=True)
class Answered:
    """A prompt as a model reads it, with what follows.

    Args:
        encoded: the ids (1, S + T) of the prompt and T written tokens; the tokens are those of the
            context, without special ones.
        written: the ids (T,).
        evidence: the tokens that the answer comes from; None where they are not known.
        greedy: the ids (T,) that the model finds likeliest.
    """

    encoded: EncodedTokens
    written: Tensor
    evidence: Tensor | None
    greedy: Tensor


@dataclass(frozen=True, eq=False)
class Generation(RemovalOptions, ModelBenchmark[Answered]):
    r"""Compare maps of what language models write with where it comes from, and remove tokens.

    ``data`` is a file with JSON in each line, or :class:`Prompt` objects: ``"prompt"``, a text;
    ``"written"``, what follows, by default the token that the model finds likeliest; and
    ``"evidence"``, from which to before which character of the prompt the answer comes, such as
    ``[[4, 9]]``, where that is known; and ``"context"``, the parts of the prompt that are looked
    at, by default all.  A map is that of the logits of all written tokens, summed up.  Special
    tokens are left out.

    Of prompts with evidence the result has ``"found"``, how often the map is highest there (of
    several highest places, their share), and ``"mass"``, the share there of the positive
    relevance.  Of all prompts it has the areas under the log-probability of what was written while
    0 to 90 % of the context's tokens are removed: ``"MoRF"`` with the most relevant ones first,
    ``"LeRF"`` with the least relevant ones first, and ``"LeRF − MoRF"``, the area between.

    Example:
        >>> import tempfile
        >>> from captum_transformer_lrp.benchmarks import Prompt, generation
        >>> from captum_transformer_lrp.examples import letter_chain
        >>> from captum_transformer_lrp.models import LanguageModel
        >>> model = LanguageModel("letters", *letter_chain())
        >>> prompts = [Prompt("f H g I b e g b ?", "H", ((2, 3),)), Prompt("a J c d K f g a ?")]
        >>> with tempfile.TemporaryDirectory() as output:
        ...     result = generation(model, prompts, ["attnlrp", "random"], output=output)
        >>> result.figure("attnlrp", "found").value
        1.0
    """

    name = "generation"
    columns = ("found", "mass", "LeRF − MoRF", *_TESTS)
    panels = tuple(
        Panel(
            f"{name} relevant tokens first",
            test,
            {f"{step} %": step for step in (0, *STEPS)},
            ("tokens removed [%]", "log-probability"),
        )
        for test, name in zip(_TESTS, ("most", "least"), strict=True)
    )
    instead: int | None = field(init=False, repr=False)

    def prepare(self) -> None:
        """Read the file, and see whether tokens can be masked."""
        data = self.data
        if isinstance(data, (str, Path)):
            data = [line for line in Path(data).read_bytes().splitlines() if line.strip()]
        self.put(data=list(data), instead=mask_id(self.model, self.removal))

    def identifiers(self) -> Sequence[str]:
        """The places of the prompts."""
        return [f"prompt {number}" for number in range(1, len(self.data) + 1)]

    def contents(self, index: int) -> str:
        """Of the line, or of the prompt."""
        one = self.data[index]
        return hashlib.sha256(one if isinstance(one, bytes) else repr(one).encode()).hexdigest()

    def load(self, index: int) -> Answered:
        """Read a prompt, and let the model read it."""
        prompt, tokenizer = self._prompt(index), self.model.tokenizer
        check_fast(tokenizer)
        encoding = tokenizer(
            prompt.prompt, return_offsets_mapping=True, return_special_tokens_mask=True
        )
        special, offsets = encoding["special_tokens_mask"], encoding["offset_mapping"]
        apart = [(0, 0) if hidden else of for hidden, of in zip(special, offsets, strict=True)]

        def tokens(spans: Sequence[tuple[int, int]]) -> list[int]:
            return [
                place
                for place, (first, last) in enumerate(apart)
                if any(first < end and start < last for start, end in spans)
            ]

        places = tokens(prompt.context or [(0, len(prompt.prompt))])
        if not places:
            raise UnreadableExampleError("the tokenizer makes no token of the prompt")
        ids = torch.tensor([encoding["input_ids"]], device=self.device)
        written = self._scores(ids)[:, -1].argmax(-1)
        if prompt.written is not None:
            found = tokenizer(prompt.written, add_special_tokens=False)["input_ids"]
            written = torch.tensor(found, device=self.device)
        if not len(written):
            raise UnreadableExampleError("the tokenizer makes no token of what is written")
        known = tokens(prompt.evidence)
        evidence = torch.tensor([place in known for place in places]) if prompt.evidence else None
        if evidence is not None and not evidence.any():
            raise UnreadableExampleError("no token of its evidence is in its context")
        whole = torch.cat([ids, written[None]], 1)
        greedy = self._scores(whole)[0, ids.shape[1] - 1 : -1].argmax(-1)
        encoded = EncodedTokens(whole, {}, tuple((place,) for place in places))
        return Answered(encoded, written, evidence, greedy)

    def describe(self, example: Answered) -> dict[str, Any]:
        """How many tokens there are, what is written, and whether the model would write it."""
        return {
            "tokens": len(example.encoded.read),
            "written": example.written.tolist(),
            "right": torch.equal(example.greedy, example.written),
        }

    def of_model(self, record: Record) -> dict[str, float]:
        """How often the model itself would write what was written."""
        return {"written by the model": 100.0 * record.values["right"]}

    def evaluate(self, example: Answered, method: str) -> dict[str, Any]:
        """Where the map is highest, and the log-probabilities as tokens go."""
        encoded, written = example.encoded, example.written.tolist()
        last = encoded.input_ids.shape[1] - len(written) - 1
        # Any map of a language model depends on the place that it explains.
        chosen = replace(self.by_label[method], class_agnostic=False)
        maps = chosen.maps(
            self.classifier,
            encoded.input_ids,
            [(last + number, one) for number, one in enumerate(written)],
            {"use_cache": False},
        )
        scores = token_scores(encoded, torch.stack(maps).sum(0))
        order = ranking(encoded, scores)
        found: dict[str, Any] = {}
        if example.evidence is not None:
            of_place = placed(scores, example.evidence.numpy())
            found = {"found": of_place["pointing"], "mass": of_place["mass"]}
        counts = [math.ceil(step * len(order) / 100) for step in STEPS]
        for test, ordered in zip(_TESTS, (order, order[::-1]), strict=True):
            # One token of the prompt always stays, for a model must read something.
            gone = [ordered[: min(count, last)] for count in (0, *counts)]
            curve = [self._log_probability(example, one) for one in gone]
            found[test] = {f"{step} %": one for step, one in zip((0, *STEPS), curve, strict=True)}
        return found

    def values(self, record: Record) -> dict[str, dict[tuple[str, str], float]]:
        """The shares, and the areas."""
        values = {}
        for method, found in record.methods.items():
            morf, lerf = (area(list(found[test].values())) for test in _TESTS)
            shares = {name: one for name, one in found.items() if name not in _TESTS}
            areas = {"MoRF": morf, "LeRF": lerf, "LeRF − MoRF": lerf - morf}
            values[method] = {(name, ""): one for name, one in (shares | areas).items()}
        return values

    def points(self, record: Record) -> Mapping[str, Mapping[tuple[str, str], float]]:
        """The log-probability at each step."""
        return super().values(record)

    def _prompt(self, index: int) -> Prompt:
        given = self.data[index]
        if not isinstance(given, bytes):
            return given
        try:
            found = json.loads(given)
            evidence, context = (
                tuple((int(start), int(end)) for start, end in found.get(name, ()))
                for name in ("evidence", "context")
            )
            return Prompt(str(found["prompt"]), found.get("written"), evidence, context)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnreadableExampleError(f"its line is damaged ({error!r})") from error

    def _scores(self, ids: Tensor) -> Tensor:
        """The logarithms of the probabilities of the next tokens, (1, S, V), float64."""
        return self.logits(ids, use_cache=False).double().log_softmax(-1)

    def _log_probability(self, example: Answered, removed: Sequence[int]) -> float:
        """Of what was written, without some of the context's tokens."""
        ids, _ = without_tokens(example.encoded, removed, self.instead)
        scores = self._scores(ids)[0, -len(example.written) - 1 : -1]
        return float(scores.gather(1, example.written[:, None]).sum())


generation = as_function(Generation)
