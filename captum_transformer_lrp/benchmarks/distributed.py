"""The processes that share a benchmark's examples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# The slowest process may need this much longer than the fastest for its share of the examples.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is; the first, 0, writes the result."""

    rank: int = 0
    world: int = 1

    def wait(self) -> None:
        """Wait until all are here."""
        if self.world > 1:
            dist.barrier()

    def from_first(self, value: Any) -> Any:
        """What the first process calls ``value``, on every process."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, for as long as the block lasts.

    Outside ``torchrun`` there is one.  Only records' files, and at the end the result, pass between
    processes, so the group is one of CPUs (gloo) also where each process computes on a GPU of its
    own.  A group that is there already is used and left.
    """
    if dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size())
    elif int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
    else:
        dist.init_process_group("gloo", timeout=_PATIENCE)
        try:
            yield Processes(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()


def own_device(name: str) -> str:
    """This process' device: under ``torchrun``, ``cuda`` means the GPU of its local rank.

    More processes than GPUs take them in turn.

    >>> own_device("cpu")
    'cpu'
    """
    if name == "cuda" and "LOCAL_RANK" in os.environ and (count := torch.cuda.device_count()):
        return f"cuda:{int(os.environ['LOCAL_RANK']) % count}"
    return name
