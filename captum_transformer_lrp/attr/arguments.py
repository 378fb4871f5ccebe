"""``attribute`` as Captum calls it: its wrapper, and the model's further arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from captum.log import log_usage

Method = TypeVar("Method", bound=Callable[..., Any])


def captum_method(attribute: Method) -> Method:
    """Wrap ``attribute`` as Captum wraps its own.

    ``NoiseTunnel`` and others of Captum's classes call ``attribute.__wrapped__``.
    """
    wrapped: Method = log_usage()(attribute)
    return wrapped


def split_arguments(additional_forward_args: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``additional_forward_args`` as positional and keyword arguments.

    Example:
        >>> split_arguments(1), split_arguments({"mask": 2}), split_arguments(None)
        (((1,), {}), ((), {'mask': 2}), ((), {}))

    Raises:
        TypeError: for a dictionary whose keys are no names.
    """
    if isinstance(additional_forward_args, Mapping):
        kwargs = dict(additional_forward_args)
        if not all(isinstance(name, str) for name in kwargs):
            raise TypeError(
                "a dictionary in additional_forward_args holds keyword arguments by name, "
                f"found the keys {list(kwargs)}: pass a tuple for positional arguments"
            )
        return (), kwargs
    if isinstance(additional_forward_args, tuple):
        return additional_forward_args, {}
    return (() if additional_forward_args is None else (additional_forward_args,)), {}
