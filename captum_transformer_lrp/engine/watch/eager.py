"""Running compiled code as it was written, so that its calls can be watched."""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch

_lock = threading.RLock()
_running: dict[uncompiled, Any] = {}
"""For each explanation that is under way the stance; all share the first one's."""


def as_written(model: Any) -> Any:
    """The model that was given to ``torch.compile``; whatever else it is, itself."""
    compiled = type(model).__module__.startswith("torch._dynamo") and hasattr(model, "_orig_mod")
    return model._orig_mod if compiled else model


def runs_as_written() -> bool:
    """Whether this PyTorch can run compiled code plainly (2.6 and newer)."""
    return hasattr(torch.compiler, "set_stance")


class uncompiled:  # noqa: N801
    """Lets what ``torch.compile`` has made run as plain Python, for the ``with`` block.

    PyTorch knows one stance for the whole process.  So it is taken by the first explanation that
    runs and put back after the last; what other threads compile meanwhile runs plainly as well,
    with the same results.  One object may be entered twice, see
    :class:`~captum_transformer_lrp.engine.thread_state.ThreadState`.

    Example:
        >>> double = torch.compile(lambda x: 2 * x)
        >>> with uncompiled():
        ...     double(torch.ones(1))
        tensor([2.])
    """

    def __enter__(self) -> None:
        compiles = {"torch._dynamo", "torch.nn.attention.flex_attention"} & sys.modules.keys()
        if not (compiles and runs_as_written()):
            return
        with _lock:
            if not _running:  # it takes effect as it is made
                _running[self] = torch.compiler.set_stance("force_eager")
            _running.setdefault(self, next(iter(_running.values())))

    def __exit__(self, *error: object) -> None:
        with _lock:
            if list(_running) == [self]:
                _running[self].__exit__(None, None, None)
            _running.pop(self, None)
