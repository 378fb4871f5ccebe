"""Activations, normalisation, dropout, masking and softmax."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer_lrp.engine import flows
from captum_transformer_lrp.engine.graph.arguments import Args, Function, Kwargs
from captum_transformer_lrp.engine.graph.seen import Normalized
from captum_transformer_lrp.engine.watch import in_place
from captum_transformer_lrp.engine.watch.interception import Interception, handles
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.rules import registry
from captum_transformer_lrp.rules.kernels import SoftmaxKernel
from captum_transformer_lrp.rules.normalization import NormalizationKernel, with_gradient_laid_out
from captum_transformer_lrp.rules.spellings import spelled


@handles(*registry.ACTIVATIONS)
def _activation(watch: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    inplace = kwargs.pop("inplace", False)
    mark = watch.tape.mark(args[0] if args else kwargs["input"])
    attends = mark is not None and mark.scores and function in _OF_SCORES
    changes: dict[str, Any] = {"attention": True, "flow": flows.blocked} if attends else {}
    output = watch.elementwise(function, args, kwargs, event=True, activated=True, **changes)
    if inplace:
        in_place.replace(watch, args[0], output)
    return output


_OF_SCORES = frozenset(spelled("exp", "sigmoid", "relu", "acos", "arccos"))
"""Of scores they make attention weights: a softmax spelled out, and attention without softmax."""


@handles(*registry.NORMALIZATIONS)
def _normalization(watch: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    if function is F.batch_norm and (kwargs.get("training", args[5] if len(args) > 5 else False)):
        raise ExplanationError(
            f"{watch.module_name()} normalises by the statistics of the batch, so that one "
            "example's explanation would depend on the others: call model.eval() first"
        )
    source = args[0] if args else kwargs["input"]
    kernel = NormalizationKernel(function, args[1:], kwargs)
    output = watch.elementwise(
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


@handles(*spelled("dropout", "alpha_dropout", "feature_dropout", "dropout1d", "dropout2d",
                  "dropout3d", "feature_alpha_dropout"))  # fmt: skip
def _dropout(watch: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(
        input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False,
        train: bool = False,
    ) -> Any:  # fmt: skip
        return input, p, training or train, inplace

    source, p, training, _ = bind(*args, **kwargs)
    if p and training:
        raise ExplanationError(
            f"{watch.module_name()} drops activations at random (p = {p}), so the output has no "
            "one explanation: call model.eval() first"
        )
    return source


@handles(*spelled("masked_fill"))
def _masked_fill(watch: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """Filled positions are no longer what they were: their relevance goes to the filling."""

    def bind(input: Tensor, mask: Tensor, value: Any) -> Any:
        return input, mask, value

    x, mask, value = bind(*args, **kwargs)
    if not isinstance(value, Tensor):
        value = torch.full((), value, dtype=x.dtype, device=x.device)
    with watch:
        return torch.where(mask, value, x)


@handles(*registry.SOFTMAXES)
def _softmax(watch: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    source = args[0] if args else kwargs["input"]
    mark = watch.tape.mark(source)
    assert mark is not None
    attends = mark.scores
    if not attends:
        watch.tape.other_mixing.append(watch.module_name())
    kwargs.pop("_stacklevel", None)
    dtype = kwargs.get("dtype")
    if isinstance(dtype, torch.dtype) and dtype.itemsize < source.element_size():
        kwargs.pop("dtype")  # the watch never loses precision
    others = args[1:]
    dim = kwargs.get("dim", others[0] if others else None)
    kernel = None
    if isinstance(dim, int):
        rest = {name: value for name, value in kwargs.items() if name != "input"}
        kernel = SoftmaxKernel(lambda scores: function(scores, *others, **rest), dim)
    return watch.elementwise(
        function,
        args,
        kwargs,
        kernel=kernel,
        flow=flows.blocked if attends else flows.keep,
        softmax=True,
        attention=attends,
        base=object(),
        statistic=False,
    )
