"""What an operation does to token mass, by name."""

from __future__ import annotations

import enum


class Flow(enum.Enum):
    """How token mass passes an operation; what each means is the rollout phase's affair."""

    KEEP = enum.auto()
    NATIVE = enum.auto()
    SUMMANDS = enum.auto()
    BLOCKED = enum.auto()
    MASKED = enum.auto()
    SPREAD_EVENLY = enum.auto()
    AVERAGED = enum.auto()
    SPREAD_OVER_FEATURES = enum.auto()
    TO_PIXELS = enum.auto()
    PATCHES_TO_PIXELS = enum.auto()
    SKIP_ADD = enum.auto()
    ATTENTION = enum.auto()
    PRODUCT = enum.auto()
    ACCUMULATION = enum.auto()
    UNKNOWN = enum.auto()
    REFUSED = enum.auto()
    UNIT = enum.auto()

    @property
    def keeps_places(self) -> bool:
        """Whether the output has the places and features of the inputs."""
        return self in (Flow.KEEP, Flow.MASKED, Flow.SKIP_ADD)
