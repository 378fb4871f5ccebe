"""Activations, normalisation, dropout, masking and softmax."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs, first_tensor
from captum_transformer_lrp.engine.graph.flow import Flow
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
    flow: Flow = Flow.KEEP,
    event: bool = False,
    kernel: Kernel | None = None,
    run: Function | None = None,
    **changes: Any,
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
    if event:
        changes["events"] = mark.events | watch.tape.new_event()
    mark = mark.but(source=None, channels=0, **changes)
    return watch.record(
        function,
        kernel or AutogradKernel(lambda value: function(value, *others, **rest)),
        (source,),
        output,
        rule=watch.rules.of(function),
        flow=flow,
        mark=mark,
    )


@HANDLERS.handles(*registry.ACTIVATIONS)
def _activation(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    inplace = kwargs.pop("inplace", False)
    mark = watch.mark(args[0] if args else kwargs["input"])
    if mark is not None and function in _LOG_SOFTMAXES:
        source = args[0] if args else kwargs["input"]
        dim = _softmax_axis(args, kwargs, source.dim())
        require_apart(watch, mark.examples, [dim], source.dim())
    attends = mark is not None and mark.scores and function in _OF_SCORES
    changes: dict[str, Any] = {"attention": True, "flow": Flow.BLOCKED} if attends else {}
    output = elementwise(watch, function, args, kwargs, event=True, activated=True, **changes)
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
    kernel = NormalizationKernel(function, args[1:], kwargs)
    output = elementwise(
        watch,
        function,
        args,
        kwargs,
        kernel=kernel,
        run=with_gradient_laid_out(function),
        # Whatever is normalised is no longer the product of two activations: not softmax scores.
        scores=False,
        base=object(),
        statistic=False,
        activated=False,
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


@HANDLERS.handles(*spelled("dropout", "alpha_dropout", "feature_dropout", "dropout1d", "dropout2d",
                  "dropout3d", "feature_alpha_dropout"))  # fmt: skip
def _dropout(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(
        input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False,
        train: bool = False,
    ) -> Any:  # fmt: skip
        return input, p, training or train, inplace

    source, p, training, _ = bind(*args, **kwargs)
    if p and training:
        raise ExplanationError(
            f"{watch.names.caller()} drops activations at random (p = {p}), so the output has no "
            "one explanation: call model.eval() first"
        )
    return source


@HANDLERS.handles(*spelled("masked_fill"))
def _masked_fill(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """Filled positions are no longer what they were: their relevance goes to the filling."""

    def bind(input: Tensor, mask: Tensor, value: Any) -> Any:
        return input, mask, value

    x, mask, value = bind(*args, **kwargs)
    if not isinstance(value, Tensor):
        value = torch.full((), value, dtype=x.dtype, device=x.device)
    with watch:
        return torch.where(mask, value, x)


@HANDLERS.handles(*spelled("softmin"))
def _softmin(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    source = args[0] if args else kwargs.pop("input")
    kwargs.pop("_stacklevel", None)
    with watch:
        return torch.softmax(-source, *args[1:], **kwargs)


def _softmax_axis(args: Args, kwargs: Kwargs, dims: int) -> int:
    """The axis that sums to 1; for those who name none PyTorch's choice."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return dim if isinstance(dim, int) else int(dims not in (0, 1, 3))


@HANDLERS.handles(*registry.SOFTMAXES)
def _softmax(watch: Context, function: Function, args: Args, kwargs: Kwargs) -> Any:
    source = args[0] if args else kwargs["input"]
    mark = watch.mark(source)
    assert mark is not None
    attends = mark.scores
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
    return elementwise(
        watch,
        function,
        args,
        kwargs,
        kernel=kernel,
        flow=Flow.BLOCKED if attends else Flow.KEEP,
        softmax=True,
        attention=attends,
        base=object(),
        statistic=False,
    )
