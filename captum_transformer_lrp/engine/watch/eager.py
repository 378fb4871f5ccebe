"""Running compiled code as it was written, so that its calls can be watched."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch

_lock = threading.Lock()
_running: list[Any] = []
"""For each explanation that is under way the stance; all share the first one's."""


def as_written(model: Any) -> Any:
    """The model that was given to ``torch.compile``; whatever else it is, itself."""
    compiled = type(model).__module__.startswith("torch._dynamo") and hasattr(model, "_orig_mod")
    return model._orig_mod if compiled else model


def runs_as_written() -> bool:
    """Whether this PyTorch can run compiled code plainly (2.6 and newer)."""
    return hasattr(torch.compiler, "set_stance")


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Let what ``torch.compile`` has made run as plain Python, for the ``with`` block.

    PyTorch knows one stance for the whole process.  So it is taken by the first explanation that
    runs and put back after the last; what other threads compile meanwhile runs plainly as well,
    with the same results.

    Example:
        >>> double = torch.compile(lambda x: 2 * x)
        >>> with uncompiled():
        ...     double(torch.ones(1))
        tensor([2.])
    """
    loaded = "torch._dynamo" in sys.modules or "torch.nn.attention.flex_attention" in sys.modules
    if not (loaded and runs_as_written()):
        yield
        return
    with _lock:
        if not _running:
            stance = torch.compiler.set_stance("force_eager")
            stance.__enter__()
            _running.append(stance)
        else:
            _running.append(_running[0])
    try:
        yield
    finally:
        with _lock:
            stance = _running.pop()
            if not _running:
                stance.__exit__(None, None, None)
