"""Programs on a GPU as CUDA graphs: all kernels of a call are started at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from captum_transformer_lrp.engine.programs.regions import Program


@dataclass
class _Memory:
    """What graphs share, of which one runs at a time."""

    pool: Any = None
    free: Any = None  # the event that no graph uses the memory any more
    lock: Lock = field(default_factory=Lock)


class Replays:
    """Makes CUDA graphs of programs; the graphs share their memory."""

    def __init__(self) -> None:
        self._memory = _Memory()

    def of(self, program: Program, tensors: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        """The program as a CUDA graph if it runs on one GPU; else the program itself.

        Args:
            program: computes tensors.
            tensors: inputs like those to come.
        """
        if all(one.type != "cuda" for one in program.devices):
            return program
        if len(program.devices) > 1:
            _warn(f"it computes on {' and '.join(sorted(map(str, program.devices)))}")
            return program
        try:
            with torch.cuda.device(*program.devices), torch.no_grad():
                return _Replay(program, tensors, self._memory)
        except RuntimeError as error:
            _warn(str(error))
            return program


class _Replay:
    """A CUDA graph of a program, for tensors like some."""

    def __init__(self, program: Program, tensors: Sequence[Tensor], memory: _Memory) -> None:
        self._program = program  # has the constants, whose addresses are in the graph
        self._inputs = [one.clone() for one in tensors]
        self._memory = memory
        aside, stream = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(stream)
        with torch.cuda.stream(aside):
            program(*self._inputs)  # libraries choose and load their kernels, which no graph may do
        stream.wait_stream(aside)
        if memory.pool is None:
            memory.pool, memory.free = torch.cuda.graph_pool_handle(), torch.cuda.Event()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=memory.pool, capture_error_mode="thread_local"):
            self._outputs = program(*self._inputs)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        with self._memory.lock, torch.cuda.device(self._inputs[0].device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._memory.free)
            for own, value in zip(self._inputs, tensors, strict=True):
                own.copy_(value)
            self._graph.replay()
            found = [one.clone() for one in self._outputs]
            self._memory.free.record(stream)
        return found


def _warn(reason: str) -> None:
    warnings.warn(
        f"compiled without a CUDA graph, so Python starts each kernel: {reason}", stacklevel=3
    )
