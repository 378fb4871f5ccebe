"""What :func:`captum_transformer_lrp.verify` found, as data and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["passed", "failed", "undecided", "does not apply"]


@dataclass(frozen=True)
class Check:
    """One row of the table.

    Args:
        name: what it is called, such as ``relevance``.
        claim: what must hold, in words.
        found: the number that was measured; None for a check that measures none.
        expected: what it must be, such as ``≤ 1e-06``; empty for a check that measures none.
        verdict: ``"passed"``, ``"failed"``, ``"undecided"`` (of occlusion alone) or
            ``"does not apply"``.
        reason: why it failed, is undecided or does not apply; and what was measured, in words.
    """

    name: str
    claim: str
    found: float | None = None
    expected: str = ""
    verdict: Verdict = "passed"
    reason: str = ""

    @classmethod
    def at_most(cls, name: str, claim: str, found: float, most: float) -> Check:
        """A deviation that must not be larger than ``most``; NaN fails.

        Example:
            >>> Check.at_most("output", "is unchanged", float("nan"), 1e-5).verdict
            'failed'
        """
        return cls(name, claim, found, f"≤ {most:.0e}", "passed" if found <= most else "failed")

    @classmethod
    def holds(cls, name: str, claim: str, faults: str) -> Check:
        """A claim that holds unless there are faults, in words."""
        return cls(name, claim, verdict="failed" if faults else "passed", reason=faults)

    @classmethod
    def skipped(cls, name: str, claim: str, reason: str) -> Check:
        """A check that does not apply."""
        return cls(name, claim, verdict="does not apply", reason=reason)


_HEADINGS = ("check", "what must hold", "found", "expected", "verdict")


@dataclass(frozen=True)
class Verification:
    """What was checked of one model, with one method, on one batch.

    ``str()`` and ``print`` give a table, notebooks show one.  ``verification["batch"]`` is a row.

    Args:
        title: the model and the method.
        checks: the rows.
        attentions: how many attentions the model computes.
        absorbed: the mean share of the relevance that each parameter or constant takes, by name.
    """

    title: str
    checks: tuple[Check, ...]
    attentions: int = 0
    absorbed: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not any(check.verdict == "failed" for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"{name!r}: expected one of {', '.join(one.name for one in self.checks)}")

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def __str__(self) -> str:
        rows = [_HEADINGS, *map(_cells, self.checks)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(map(str.ljust, row, widths)).rstrip()
            for row in (rows[0], tuple("─" * width for width in widths), *rows[1:])
        ]
        notes = [f"{check.name}: {check.reason}" for check in self.checks if check.reason]
        return "\n".join([self.title, *lines, *notes])

    def _repr_html_(self) -> str:
        def row(cells: tuple[str, ...], tag: str) -> str:
            return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

        body = "".join(row((*_cells(check), check.reason), "td") for check in self.checks)
        heading = row((*_HEADINGS, "why"), "th")
        return f"<table><caption>{escape(self.title)}</caption>{heading}{body}</table>"


def _cells(check: Check) -> tuple[str, ...]:
    found = "" if check.found is None else f"{check.found:.1e}"
    return check.name, check.claim, found, check.expected, check.verdict
