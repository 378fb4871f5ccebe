"""Which module is calling: read from the interpreter's stack, so that no module is touched."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import CodeType, FrameType

from torch import nn

_MODULE_CALL = nn.Module._call_impl.__code__


def calling_modules() -> Iterator[tuple[FrameType, nn.Module]]:
    """The modules whose call is under way in this thread, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _MODULE_CALL:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module):
                yield frame, module
        frame = frame.f_back


def calling_frame(code: CodeType) -> FrameType | None:
    """The innermost frame of a given function in this thread's stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame
