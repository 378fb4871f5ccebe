"""Damaged copies of good files, and a clock for how long to try them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

QUICK = 1
"""Second of processor time for each of the kinds of files; `make slow` takes ten minutes each."""

DURATIONS = pytest.mark.parametrize(
    "seconds", [QUICK, pytest.param(600, marks=pytest.mark.slow)], ids=["quick", "slow"]
)

_TELLING = [b"\0", b"\xff", b"\x7f" * 4, b"\xff" * 4, b"\x80" + b"\0" * 3, b"\0" * 8, b"\xff" * 8]
_TELLING += [b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b'""', b"[" * 5000, b"9" * 25, b"\xed"]


def damaged(whole: list[bytes], program: bytes) -> bytes:
    """One of some files with up to five faults, half of them near its beginning, in its header.

    Args:
        whole: files without faults.
        program: the file, then six numbers for each fault. Drawing them at once is a hundred
            times as fast as one by one.

    >>> damaged([b"abc"], bytes([0, 2, 0, 0, 1, 0, 0]))  # cut one byte at place 1
    b'ac'
    """
    data = whole[program[0] % len(whole)]
    for kind, near, high, low, length, telling in zip(*[iter(program[1:])] * 6, strict=False):
        last = min(len(data), 120) if near % 2 == 0 else len(data)
        start = (high << 8 | low) % (last + 1)
        new = (*_TELLING, bytes([length]))[telling % (len(_TELLING) + 1)]
        before, after, many = data[:start], data[start:], length % 16
        data = (
            before + new + after[len(new) :],
            before + new + after,
            before + after[many + 1 :],
            before + after[: many + 1] + after,
            before if many % 4 == 0 else data,
            before + bytes(one ^ (1 << many % 8) for one in after[:1]) + after[1:],
        )[kind % 6]
    return data


@contextmanager
def read_or_refused(refusal: type[Exception], path: Path) -> Iterator[None]:
    """Let one kind of error pass, if it names the file."""
    try:
        yield
    except refusal as error:
        if str(path) not in str(error):
            raise AssertionError(f"an error that does not name {path}: {error}") from error


def fuzz(check: Callable[[bytes], object], whole: list[bytes], seconds: float) -> int:
    """Give damaged files to a check, one at least, until the time is up; says how many there were.

    Processor time, so that a machine that is busy tries as many.
    """
    tried = 0
    ends = time.process_time() + seconds

    def counted(program: bytes) -> None:
        nonlocal tried
        if not tried or time.process_time() < ends:
            tried += 1
            check(damaged(whole, program))

    for number in range(10**9):
        trial = settings(
            max_examples=100,
            deadline=timedelta(seconds=10),  # a file that takes longer is a fault, too
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )(given(st.binary(min_size=7, max_size=31))(counted))
        seed(number)(trial)()
        if time.process_time() > ends:
            break
    return tried
