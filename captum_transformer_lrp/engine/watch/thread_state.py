"""What PyTorch keeps for a thread: modes, flags and random numbers, put back whatever happens."""

from __future__ import annotations

import sys
from contextlib import _GeneratorContextManager
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack

from captum_transformer_lrp.errors import interruption

_functorch = torch._C._functorch
_autograd = torch._C._autograd


class ThreadState:
    """The state of this thread as it is now, put back as the ``with`` block ends.

    Python may raise KeyboardInterrupt between any two instructions: in the ``__enter__`` of a mode
    that is active already, or in its ``__exit__`` while it still is.  So what is active is put back
    as a whole, and again if that was interrupted.  Enter it twice, ``with state, state:``.  If
    Ctrl-C interrupts the end of the inner block, the end of the outer one follows.

    Args:
        device: where a model is going to run: its random numbers are put back, too; None for a
            block around others that see to that.

    Raises:
        KeyboardInterrupt: if the block was interrupted, whatever came out of it in the end.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._handled = sys.exc_info()[1]
        self._modes = _get_current_function_mode_stack()
        self._depth = _functorch.get_dynamic_layer_stack_depth()
        self._hooks = _autograd._top_saved_tensors_default_hooks(False)
        self._grad = torch.is_grad_enabled()
        self._inference: Any = None
        self._types = ("cpu",) if device is None else dict.fromkeys(("cpu", device.type))
        self._autocast = [
            (one, torch.is_autocast_enabled(one), torch.get_autocast_dtype(one))
            for one in self._types
        ]
        self._caches = torch.is_autocast_cache_enabled()
        self._nesting = torch.autocast_increment_nesting() - 1
        torch.autocast_decrement_nesting()
        self._cuda = device if device is not None and device.type == "cuda" else None
        self._random = None if device is None else torch.get_rng_state()
        self._cuda_random = None if self._cuda is None else torch.cuda.get_rng_state(self._cuda)
        self._is_restored = False

    def __enter__(self) -> ThreadState:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        interrupted = interruption(error, self._handled)
        if interrupted is not None:
            _end_blocks(error, self._handled)
        self.restore()
        if interrupted is not None and interrupted is not error:
            raise interrupted from None

    def for_recording(self) -> None:
        """Set everything as a watched forward pass needs it."""
        if torch.is_inference_mode_enabled():
            self._inference = torch._C._InferenceMode(False)
            self._inference.__enter__()
        torch._C._set_grad_enabled(True)
        for one in self._types:
            torch.set_autocast_enabled(one, False)

    def restore(self) -> None:
        """Put everything back, unless that has been done to the end."""
        if self._is_restored:
            return
        while torch._C._len_torch_function_stack():
            torch._C._pop_torch_function_stack()
        while _functorch.get_dynamic_layer_stack_depth() > self._depth:
            _functorch.pop_dynamic_layer_stack()
        while not _are_same(_autograd._top_saved_tensors_default_hooks(False), self._hooks):
            _autograd._pop_saved_tensors_default_hooks()
        if self._inference is not None:
            self._inference.__exit__(None, None, None)
        torch._C._set_grad_enabled(self._grad)
        for one, is_enabled, dtype in self._autocast:
            torch.set_autocast_enabled(one, is_enabled)
            torch.set_autocast_dtype(one, dtype)
        torch.set_autocast_cache_enabled(self._caches)
        while torch.autocast_increment_nesting() > self._nesting + 1:
            torch.autocast_decrement_nesting()
            torch.autocast_decrement_nesting()
        torch.autocast_decrement_nesting()
        if self._random is not None:
            torch.set_rng_state(self._random)
        if self._cuda_random is not None:
            torch.cuda.set_rng_state(self._cuda_random, self._cuda or "cuda")
        for mode in self._modes:
            torch._C._push_on_torch_function_stack(mode)
        self._is_restored = True


def _are_same(hooks: Any, others: Any) -> bool:
    """Whether two pairs of hooks on saved tensors are the same; there may be none."""
    if hooks is None or others is None:
        return hooks is None
    return all(one is other for one, other in zip(hooks, others, strict=True))


_ENTER = _GeneratorContextManager.__enter__.__code__
_EXIT = _GeneratorContextManager.__exit__.__code__


def _end_blocks(error: BaseException | None, outside: BaseException | None) -> None:
    """End each block of ``contextlib.contextmanager`` that was being entered or left.

    Where Ctrl-C interrupts ``contextlib`` itself, the generator is left in the middle.  It would
    end when the traceback is let go of, and would put a mode or a flag in place then: PyTorch takes
    its modes away, and gives them back, in such blocks.
    """
    blocks: list[Any] = []
    while error is not None and error is not outside:
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code in (_ENTER, _EXIT):
                blocks.append(trace.tb_frame.f_locals["self"].gen)
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    for block in reversed(blocks):
        if not block.gi_running:
            block.close()
