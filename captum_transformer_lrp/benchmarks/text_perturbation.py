"""Does the classifier depend on the highest-ranked tokens, and do they suffice?  ERASER's AOPC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final

from captum_transformer_lrp.benchmark_options import TextPerturbationOptions
from captum_transformer_lrp.benchmarks.annotated_texts import OrderBenchmark, ReadDocument, at_steps
from captum_transformer_lrp.benchmarks.corpus_tokens import mask_id, without_tokens
from captum_transformer_lrp.benchmarks.records import Record
from captum_transformer_lrp.benchmarks.results import Panel
from captum_transformer_lrp.benchmarks.runner import as_function

_METRICS: Final = ("comprehensiveness", "sufficiency")


@dataclass(frozen=True, eq=False)
class TextPerturbationBenchmark(TextPerturbationOptions, OrderBenchmark):
    r"""Comprehensiveness and sufficiency, averaged over rationales of several lengths.

    With p(x) the probability of the explained class and r_b the b % of the tokens that rank
    highest,

    .. math::
        \mathrm{comprehensiveness}_b = p(x) - p(x \setminus r_b), \qquad
        \mathrm{sufficiency}_b = p(x) - p(r_b),

    high and low, respectively, for a faithful ranking.  AOPC is their mean over the bins, as
    ERASER's published code computes it; "AOPC with k=0" also has the empty rationale in the mean,
    ``1/(|B|+1) Σ_{k=0}^{|B|}``, as its paper prints it.  What is perturbed is what the classifier
    read: text beyond the cut does not move up.  A bin has ⌈b % of the tokens read⌉ tokens.  The
    documents' rationales are not used.

    Reference:
        Jay DeYoung et al., *ERASER: A Benchmark to Evaluate Rationalized NLP Models*, ACL 2020,
        section 4.
    """

    name = "text-perturbation"
    methods: Sequence[str] = ("paper", "random")
    mask: int | None = field(init=False, repr=False)

    def prepare(self) -> None:
        """Put the bins in order, see whether tokens can be masked, and say what is shown."""
        mask = mask_id(self.model, self.removal)
        super().prepare()
        bins, shown = tuple(sorted(self.bins)), list(product(self.explain, _METRICS))
        self.put(
            mask=mask,
            bins=bins,
            columns=[f"{m}, {w}, {k}" for w, m in shown for k in ("AOPC", "AOPC with k=0")],
            panels=[
                Panel(
                    f"{metric}, {which} class",
                    metric,
                    {f"{which}, {share:g} %": share for share in bins},
                    ("tokens in the rationale [%]", metric),
                )
                for which, metric in shown
            ],
        )

    def describe(self, example: ReadDocument) -> dict[str, Any]:
        """The classes, how many tokens there are, and the probabilities of text and of none."""
        return {
            **super().describe(example),
            "probabilities": self._probabilities(example, ()),
            "probabilities_of_nothing": self._probabilities(example, example.encoded.read),
        }

    def measure(self, example: ReadDocument, order: Sequence[int], target: int) -> dict[str, Any]:
        """Comprehensiveness and sufficiency at each bin."""
        full = self._probabilities(example, ())[target]
        counts = [math.ceil(share / 100 * len(order)) for share in self.bins]
        left = {"comprehensiveness": [order[:count] for count in counts],
                "sufficiency": [order[count:] for count in counts]}  # fmt: skip
        return {
            metric: [full - self._probabilities(example, one)[target] for one in removed]
            for metric, removed in left.items()
        }

    def values(self, record: Record) -> dict[str, dict[tuple[str, str], float]]:
        """Each metric at each bin and over the bins."""
        steps = {f"{share:g} %": share for share in self.bins}
        figures: dict[str, dict[tuple[str, str], float]] = {}
        for (method, found), which in product(record.methods.items(), self.explain):
            full, nothing = (
                record.values[name][record.values[which]]
                for name in ("probabilities", "probabilities_of_nothing")
            )
            # Without a rationale nothing is taken away, and nothing is left to suffice.
            values = figures.setdefault(method, {})
            for metric, of_empty in zip(_METRICS, (0.0, full - nothing), strict=True):
                at_bins = found[which][metric]
                values |= at_steps(at_bins, steps, which, metric, "AOPC")
                with_empty = (math.fsum(at_bins) + of_empty) / (len(at_bins) + 1)
                values[metric, f"{which}, AOPC with k=0"] = with_empty
        return figures

    def _probabilities(self, example: ReadDocument, removed: Sequence[int]) -> list[float]:
        """The classes' probabilities without some of the tokens."""
        ids, keywords = without_tokens(example.encoded, removed, self.mask)
        logits = self.logits(ids, **keywords)[0].float().cpu()
        return [float(one) for one in logits.double().softmax(-1)]


text_perturbation = as_function(TextPerturbationBenchmark)
