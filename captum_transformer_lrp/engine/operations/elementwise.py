"""Activations, normalisation, dropout, masking and softmax."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs, first_tensor
from captum_transformer_lrp.engine.graph.marks import Kind
from captum_transformer_lrp.engine.graph.role import Flow
from captum_transformer_lrp.engine.graph.seen import Normalized
from captum_transformer_lrp.engine.watch.apart import require_apart
from captum_transformer_lrp.engine.watch.context import Context, Handlers
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.rules import registry
from captum_transformer_lrp.rules.kernels import AutogradKernel, Kernel, SoftmaxKernel
from captum_transformer_lrp.rules.normalization import NormalizationKernel, with_gradient_laid_out
from captum_transformer_lrp.rules.spellings import spelled

HANDLERS = Handlers()


def elementwise(
    watch: Context,
    function: Function,
    args: Args,
    kwargs: Kwargs,
    *,
    kind: Kind,
    role: Flow = Flow.KEEP,
    kernel: Kernel | None = None,
    run: Function | None = None,
) -> Any:
    """A call that maps its first argument to a tensor of the same shape.

    ``run`` is what is called in the place of ``function``, which has the same values.
    """
    source, rest = first_tensor(args, kwargs)
    mark = watch.mark(source)
    if mark is None:
        raise watch.unsupported(function, "an activation as a second argument")
    others = args[1:]  # a kernel that held the first one would keep its memory
    if isinstance(kernel, SoftmaxKernel):
        output = watch.computed(function, *args, **kwargs)
    else:
        output = watch.made(run or function, *args, **kwargs)
    if output is source or not output.is_floating_point():
        return output
    kernel = kernel or AutogradKernel(lambda value: function(value, *others, **rest))
    rule, mark = watch.rules.of(function), watch.tape.made(kind, (mark,), mark.examples)
    return watch.record(function, kernel, (source,), output, rule=rule, role=role, mark=mark)


@HANDLERS.handles(*registry.ACTIVATIONS)
def _activation(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    inplace = kwargs.pop("inplace", False)
    source = args[0] if args else kwargs["input"]
    mark = watch.mark(source)
    if mark is not None and function in _LOG_SOFTMAXES:
        dim = _softmax_axis(args, kwargs, source.dim())
        require_apart(watch, mark.examples, [dim], source.dim())
    weighs = mark is not None and mark.node.scores and function in _OF_SCORES
    kind, role = (Kind.WEIGHING, Flow.BLOCKED) if weighs else (Kind.ACTIVATION, Flow.KEEP)
    output = elementwise(watch, function, args, kwargs, kind=kind, role=role)
    if inplace:
        watch.replace(args[0], output)
    return output


_LOG_SOFTMAXES = frozenset(spelled("log_softmax"))

_OF_SCORES = frozenset(spelled("exp", "exp2", "sigmoid", "relu", "acos", "arccos"))
"""Of scores they make attention weights: a softmax spelled out, and attention without softmax."""


@HANDLERS.handles(*spelled("sign", "sgn", "heaviside"))
def _sign(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """A constant: its derivative is 0."""
    with torch.no_grad():
        return function(*args, **kwargs)


@HANDLERS.handles(*registry.NORMALIZATIONS)
def _normalization(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    if function is F.batch_norm and (kwargs.get("training", args[5] if len(args) > 5 else False)):
        raise ExplanationError(
            f"{watch.names.caller()} normalises by the statistics of the batch, so that one "
            "example's explanation would depend on the others: call model.eval() first"
        )
    source = args[0] if args else kwargs["input"]
    if (mark := watch.mark(source)) is not None:
        axes = _normalized_axes(function, args, kwargs, source.dim())
        require_apart(watch, mark.examples, axes, source.dim())
    kernel, run = NormalizationKernel(function, args[1:], kwargs), with_gradient_laid_out(function)
    output = elementwise(
        watch, function, args, kwargs, kind=Kind.NORMALIZATION, kernel=kernel, run=run
    )
    if watch.tape.keeps_streams and isinstance(output, Tensor):
        watch.tape.normalizations.append(Normalized(source, output, kernel))
    return output


def _normalized_axes(function: Function, args: Args, kwargs: Kwargs, dims: int) -> Iterable[int]:
    """The axes that a normalisation takes its statistics over."""
    name = function.__name__.removeprefix("native_")
    if name in ("layer_norm", "rms_norm"):
        return range(-len(kwargs["normalized_shape"] if len(args) < 2 else args[1]), 0)
    if name == "normalize":
        dim: Any = kwargs.get("dim", args[2] if len(args) > 2 else 1)
        return dim if isinstance(dim, tuple) else (dim,)
    if name == "batch_norm":
        return ()  # by constants
    return range(2 if name == "instance_norm" else 1, dims)


@HANDLERS.binds(*spelled("dropout", "alpha_dropout", "feature_dropout", "dropout1d", "dropout2d",
                  "dropout3d", "feature_alpha_dropout"))  # fmt: skip
def _dropout(
    watch: Context, function: Function, input: Tensor, p: float = 0.5, training: bool = True,
    inplace: bool = False, train: bool = False,
) -> Any:  # fmt: skip
    if p and (training or train):
        raise ExplanationError(
            f"{watch.names.caller()} drops activations at random (p = {p}), so the output has no "
            "one explanation: call model.eval() first"
        )
    return input


@HANDLERS.composes(*spelled("masked_fill"))
def _masked_fill(input: Tensor, mask: Tensor, value: Any) -> Tensor:
    """Filled positions are no longer what they were: their relevance goes to the filling."""
    return torch.where(mask, value, input)


@HANDLERS.composes(*spelled("softmin"))
def _softmin(input: Tensor, *args: Any, _stacklevel: int = 3, **kwargs: Any) -> Tensor:
    return torch.softmax(-input, *args, **kwargs)


def _softmax_axis(args: Args, kwargs: Kwargs, dims: int) -> int:
    """The axis that sums to 1; for those who name none PyTorch's choice."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return dim if isinstance(dim, int) else int(dims not in (0, 1, 3))


@HANDLERS.handles(*registry.SOFTMAXES)
def _softmax(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    source = args[0] if args else kwargs["input"]
    mark = watch.mark(source)
    assert mark is not None
    attends = mark.node.scores
    if not attends:
        watch.tape.other_mixing.append(watch.names.caller())
    kwargs.pop("_stacklevel", None)
    dtype = kwargs.get("dtype")
    if isinstance(dtype, torch.dtype) and dtype.itemsize < source.element_size():
        kwargs.pop("dtype")  # the watch never loses precision
    others = args[1:]
    dim = _softmax_axis(args, kwargs, source.dim())
    require_apart(watch, mark.examples, [dim], source.dim())
    rest = {name: value for name, value in kwargs.items() if name != "input"}
    kernel = SoftmaxKernel(lambda scores: function(scores, *others, **rest), dim)
    role = Flow.BLOCKED if attends else Flow.KEEP
    return elementwise(watch, function, args, kwargs, kind=Kind.SOFTMAX, role=role, kernel=kernel)
