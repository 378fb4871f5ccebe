"""What each PyTorch operation means to the engine: its operands, its kernel, its flow of mass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_transformer_lrp.engine import flows
from captum_transformer_lrp.engine.interception import (
    Function,
    Interception,
    expand,
    handles,
)
from captum_transformer_lrp.engine.marks import Mark, broadcast_examples, merged, unknown_examples
from captum_transformer_lrp.engine.tape import AttentionStep
from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.rules import ScaleRule, registry
from captum_transformer_lrp.rules.call import (
    AutogradKernel,
    Examples,
    Kernel,
    LinearKernel,
    MatmulKernel,
)
from captum_transformer_lrp.rules.spellings import spelled

_SCALE = ScaleRule()

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


# -- linear layers and convolutions -------------------------------------------------------------


@handles(F.linear)
def _linear(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        return input, weight, bias

    x, weight, bias = bind(*args, **kwargs)
    if (
        tape.tape.mark(x) is None
        or tape.tape.mark(weight)
        or (bias is not None and tape.tape.mark(bias))
    ):
        with tape:
            product = torch.matmul(x, weight.t())
            return product if bias is None else product + bias
    return weighted(tape, function, LinearKernel(), x, weight, bias, F.linear(x, weight, bias))


def weighted(
    tape: Interception,
    function: Function,
    kernel: Kernel,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    flow: flows.Flow = flows.spread_over_features,
    examples: Examples | None = None,
) -> Tensor:
    """Record an operation that is linear in one activation."""
    mark = tape.tape.mark(x)
    assert mark is not None
    if mark.source is not None and flow is flows.spread_over_features:
        tape.tape.patch_features = x.shape[-1]
    return tape.tape.record(
        function,
        kernel,
        (x,),
        output,
        rule=tape.rule_for(
            F.linear if function in registry.PRODUCTS else function,
            reads_pixels=tape.reads_pixels(mark, function),
        ),
        flow=flow,
        mark=mark.but(
            events=mark.events | tape.tape.new_event(),
            examples=examples or broadcast_examples(mark.examples, x.shape, output.shape),
            stem=mark.stem and function in registry.CONVOLUTIONS,
            source=None,
            base=object(),
            statistic=False,
        ),
        name=tape.module_name() if tape.tape.keeps_books else "",
        weight=weight,
        bias=bias,
    )


class ConvolutionKernel:
    """A convolution without bias."""

    def __init__(self, function: Callable[..., Tensor], options: Kwargs) -> None:
        self._function = function
        self._options = options

    def forward(self, inputs: Any, weight: Tensor | None) -> Tensor:
        """See :class:`~captum_transformer_lrp.rules.call.Kernel`."""
        return self._function(inputs[0], weight, **self._options)

    def vjp(self, seed: Tensor, inputs: Any, weight: Tensor | None) -> tuple[Tensor, ...]:
        """See :class:`~captum_transformer_lrp.rules.call.Kernel`."""
        with torch.enable_grad():
            x = torch.empty_like(inputs[0]).requires_grad_()
            return torch.autograd.grad(self.forward((x,), weight), x, seed)


@handles(*registry.CONVOLUTIONS)
def _convolution(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    names = (
        ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
        if "transpose" in function.__name__
        else ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    )
    options = dict(zip(names, args, strict=False)) | kwargs
    x, weight = options.pop("input"), options.pop("weight")
    bias = options.pop("bias", None)
    mark = tape.tape.mark(x)
    if mark is None or tape.tape.mark(weight):
        raise tape.unsupported(function, "a kernel that is an activation")
    output = function(x, weight, bias, **options)
    if bias is not None:
        bias = bias.reshape(-1, *[1] * (weight.dim() - 2))
    return weighted(
        tape,
        function,
        ConvolutionKernel(function, options),
        x,
        weight,
        bias,
        output,
        _convolution_flow(mark, weight),
        mark.examples,
    )


def _convolution_flow(mark: Mark, weight: Tensor) -> flows.Flow:
    """Below the first attention a convolution makes the tokens; later ones move their mass."""
    pointwise = all(size == 1 for size in weight.shape[2:])
    if mark.attended or pointwise or not mark.stem:
        return flows.spread_evenly
    return flows.capture_grid


@handles(*spelled("addmm"))
def _addmm(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(
        input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> Any:
        return input, mat1, mat2, beta, alpha

    bias, x, weight, beta, alpha = bind(*args, **kwargs)
    plain = tape.tape.mark(x) and not tape.tape.mark(weight) and not tape.tape.mark(bias)
    if plain and beta == 1 and alpha == 1:
        kernel = AutogradKernel(torch.mm)
        return weighted(tape, function, kernel, x, weight, bias, torch.addmm(bias, x, weight))
    with tape:
        return beta * bias + alpha * torch.mm(x, weight)


# -- products -----------------------------------------------------------------------------------


@handles(*spelled("matmul", "__matmul__", "bmm", "mm"))
def _matmul(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(u: Any = None, v: Any = None, **named: Any) -> Any:
        return (u if u is not None else named.get("input", named.get("self"))), (
            v if v is not None else named.get("other", named.get("mat2"))
        )

    u, v = bind(*args, **kwargs)
    output = torch.matmul(u, v)
    return multiplied(tape, function, MatmulKernel(), torch.matmul, u, v, output, None)


@handles(*spelled("__rmatmul__"))
def _rmatmul(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    return _matmul(tape, torch.matmul, (args[1], args[0]), {})


@handles(*spelled("baddbmm"))
def _baddbmm(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(
        input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> Any:
        return input, batch1, batch2, beta, alpha

    offset, u, v, beta, alpha = bind(*args, **kwargs)
    with tape:
        scores = torch.bmm(u, v)
        scores = scores if alpha == 1 else scores * alpha
        return scores if beta == 0 else scores + (offset if beta == 1 else beta * offset)


@handles(*spelled("einsum"))
def _einsum(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    equation, operands = args[0], args[1:]
    if not isinstance(equation, str):
        raise tape.unsupported(function, "index lists; write the equation as a string")
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    active = [operand for operand in operands if tape.tape.mark(operand)]
    if len(operands) == 1:
        return _einsum_of_one(tape, equation, operands[0])
    if len(operands) > 2:
        raise tape.unsupported(function, f"{len(operands)} operands; multiply them two at a time")
    u, v = operands
    output = torch.einsum(equation, u, v)

    def run(first: Tensor, second: Tensor) -> Tensor:
        return torch.einsum(equation, first, second)

    examples = None
    for operand in active:
        letters = equation.replace(" ", "").split("->")
        mark = tape.tape.mark(operand)
        assert mark is not None
        own = letters[0].split(",")[0 if operand is u else 1]
        if mark.examples.count > 1 and mark.examples.axis is not None and len(letters) == 2:
            axis = mark.examples.axis
            if "." not in equation and own[axis] in letters[1]:
                place = letters[1].index(own[axis])
                examples = Examples(mark.examples.count, place, mark.examples.index)
            elif "." in equation and own.startswith("...") and letters[1].startswith("..."):
                extra = operand.dim() - len(own.replace(".", ""))
                if axis < extra:
                    examples = mark.examples
    if examples is None:
        known = tape.tape.mark(active[0])
        assert known is not None
        examples = unknown_examples(known.examples)
    return multiplied(tape, function, AutogradKernel(run), run, u, v, output, examples)


def _einsum_of_one(tape: Interception, equation: str, operand: Tensor) -> Tensor:
    """An einsum of one operand permutes and sums; the permutation alone is what is met."""
    left, right = equation.replace(" ", "").split("->")
    if sorted(left) != sorted(right):
        raise tape.unsupported(torch.einsum, f"the reduction {equation!r}; use sum()")
    with tape:
        return operand.permute([left.index(letter) for letter in right])


def multiplied(
    tape: Interception,
    function: Function,
    kernel: Kernel,
    run: Callable[[Tensor, Tensor], Tensor],
    u: Tensor,
    v: Tensor,
    output: Tensor,
    examples: Examples | None,
) -> Tensor:
    """Record a contraction of two tensors: linear in one activation, or a product of two."""
    of_u, of_v = tape.tape.mark(u), tape.tape.mark(v)
    if of_u is None or of_v is None:
        x, weight = (u, v) if of_v is None else (v, u)
        mark = of_u or of_v
        assert mark is not None
        if weight.dtype == torch.bool or not weight.is_floating_point():
            weight = weight.to(x.dtype)
        ordered = run if of_v is None else (lambda value, by: run(by, value))
        found = examples or _matmul_examples(mark, x, output)
        tokenwise = run is torch.matmul and of_v is None and weight.dim() == 2
        return weighted(
            tape,
            function,
            AutogradKernel(ordered),
            x,
            weight,
            None,
            output,
            flows.spread_over_features if tokenwise else flows.spread_evenly,
            found,
        )
    if examples is None:
        examples = _matmul_examples(of_u, u, output)
        if not examples.known:
            examples = _matmul_examples(of_v, v, output)
    mark = merged([of_u, of_v], examples)
    event = tape.tape.new_event()
    facts: dict[str, Any] = {}
    if of_u.attention != of_v.attention:
        position = 0 if of_u.attention else 1
        values = (of_v, of_u)[position]
        record = AttentionStep(
            index=len(tape.tape.attentions),
            name=tape.module_name(),
            attention=(u, v)[position],
            mark=(of_u, of_v)[position],
            event=event,
        )
        tape.tape.attentions.append(record)
        tape.tape.attention_events |= event
        facts = {"attention": record, "position": position}
        flow: flows.Flow = flows.attention
        mark = merged([values], examples).but(
            attention=False, scores=False, attended=True, events=mark.events | event
        )
    else:
        flow = flows.product
        mark = mark.but(scores=True, events=mark.events | event)
    return tape.tape.record(
        function,
        kernel,
        (u, v),
        output,
        rule=tape.rule_for(torch.matmul),
        flow=flow,
        mark=mark.but(source=None, base=object(), statistic=False),
        name=tape.module_name() if tape.tape.keeps_books else "",
        **facts,
    )


def _matmul_examples(mark: Mark, operand: Tensor, output: Tensor) -> Examples:
    """Batch axes of a matmul, and the rows of its first operand, keep their place."""
    axis = mark.examples.axis
    if mark.examples.count == 1 or axis is None:
        return mark.examples
    if operand.dim() == 2 and axis == 0 and output.shape[0] == operand.shape[0]:
        return mark.examples if output.dim() == 2 else unknown_examples(mark.examples)
    if axis < operand.dim() - 1:
        return broadcast_examples(mark.examples, operand.shape, output.shape)
    return unknown_examples(mark.examples)


@handles(*spelled("mul", "multiply", "__mul__", "__rmul__"))
def _mul(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    u, v = _two(args, kwargs)
    return _scaled(tape, function, torch.mul, u, v)


@handles(*spelled("div", "divide", "true_divide", "__truediv__", "__div__"))
def _div(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    if kwargs.pop("rounding_mode", None) is not None:
        raise tape.unsupported(function, "rounding")
    u, v = _two(args, kwargs)
    return _divided(tape, function, u, v)


@handles(*spelled("__rtruediv__", "__rdiv__"))
def _rdiv(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    v, u = _two(args, kwargs)
    return _divided(tape, function, u, v)


def _divided(tape: Interception, function: Function, u: Any, v: Any) -> Any:
    divisor = tape.tape.mark(v) if isinstance(v, Tensor) else None
    if divisor is None:
        return _scaled(tape, function, torch.div, u, v)
    dividend = tape.tape.mark(u) if isinstance(u, Tensor) else None
    if dividend is not None and _is_statistic_of(divisor, dividend):
        return _scaled(tape, function, torch.div, u, v)
    with tape:
        return torch.mul(u, torch.reciprocal(v))


def _is_statistic_of(statistic: Mark, of: Mark) -> bool:
    return statistic.statistic and not of.statistic and statistic.base is of.base


def _scaled(
    tape: Interception, function: Function, run: Callable[..., Tensor], u: Any, v: Any
) -> Any:
    of_u = tape.tape.mark(u) if isinstance(u, Tensor) else None
    of_v = tape.tape.mark(v) if isinstance(v, Tensor) else None
    output = run(u, v)
    if not output.requires_grad:
        return output
    if of_u is not None and of_v is not None:
        if _is_statistic_of(of_v, of_u):  # a norm spelled out: x · statistic(x)
            return _scaled_by_constant(tape, function, of_u, u, v, output)
        if _is_statistic_of(of_u, of_v):
            return _scaled_by_constant(tape, function, of_v, v, u, output)
        mark = merged([of_u, of_v], broadcast_examples(of_u.examples, u.shape, output.shape))
        return tape.tape.record(
            function,
            AutogradKernel(run),
            (u, v),
            output,
            rule=tape.rule_for(torch.matmul if function not in registry.SCALINGS else function),
            flow=flows.product,
            mark=mark.but(
                events=mark.events | tape.tape.new_event(),
                source=None,
                base=object() if of_u.base is not of_v.base else of_u.base,
                statistic=of_u.statistic and of_v.statistic,
            ),
            name=tape.module_name() if tape.tape.keeps_books else "",
            mass=_gate_factors(of_u, of_v),
        )
    if of_u is not None:
        return _scaled_by_constant(tape, function, of_u, u, v, output)
    assert of_v is not None
    return _scaled_by_constant(tape, function, of_v, v, u, output)


def _gate_factors(of_u: Mark, of_v: Mark) -> tuple[float, float]:
    """Mass of ``x * gate(x)`` stays with x; of two branches each takes half."""
    if of_u.events != of_v.events:
        if of_u.events & ~of_v.events == 0:
            return 1.0, 0.0
        if of_v.events & ~of_u.events == 0:
            return 0.0, 1.0
    return 0.5, 0.5


def _scaled_by_constant(
    tape: Interception, function: Function, mark: Mark, x: Tensor, by: Any, output: Tensor
) -> Tensor:
    constant = by if isinstance(by, Tensor) and by.dim() > 0 else None
    return tape.tape.record(
        function,
        AutogradKernel(torch.mul),
        (x,),
        output,
        rule=tape.module_rule() or _SCALE,
        flow=flows.keep if constant is None else flows.masked,
        mark=mark.but(
            examples=broadcast_examples(mark.examples, x.shape, output.shape), source=None
        ),
        constant=constant,
    )


# -- sums ---------------------------------------------------------------------------------------


@handles(*spelled("add", "__add__", "__radd__"))
def _add(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    alpha = kwargs.pop("alpha", 1)
    u, v = _two(args, kwargs)
    return _summed(tape, function, u, v if alpha == 1 else _times(tape, v, alpha))


@handles(*spelled("sub", "subtract", "__sub__"))
def _sub(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    alpha = kwargs.pop("alpha", 1)
    u, v = _two(args, kwargs)
    return _subtracted(tape, function, u, v, alpha)


@handles(*spelled("__rsub__", "rsub"))
def _rsub(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    alpha = kwargs.pop("alpha", 1)
    v, u = _two(args, kwargs)
    return _subtracted(tape, function, u, v, alpha)


def _times(tape: Interception, value: Any, factor: Any) -> Any:
    with tape:
        return value * factor


def _subtracted(tape: Interception, function: Function, u: Any, v: Any, alpha: Any) -> Any:
    of_u = tape.tape.mark(u) if isinstance(u, Tensor) else None
    of_v = tape.tape.mark(v) if isinstance(v, Tensor) else None
    if of_u is not None and of_v is not None and _is_statistic_of(of_v, of_u):
        return _scaled_by_constant(tape, function, of_u, u, 1.0, torch.sub(u, v, alpha=alpha))
    return _summed(tape, function, u, _times(tape, v, -alpha))


def _summed(tape: Interception, function: Function, u: Any, v: Any) -> Any:
    of_u = tape.tape.mark(u) if isinstance(u, Tensor) else None
    of_v = tape.tape.mark(v) if isinstance(v, Tensor) else None
    if of_u is not None and of_v is not None:
        return _skip_add(tape, function, u, of_u, v, of_v)
    x, mark, constant = (u, of_u, v) if of_u is not None else (v, of_v, u)
    assert mark is not None
    if not isinstance(constant, Tensor):
        if constant == 0:  # Captum's and others' way to copy
            return _copied(tape, x, mark)
        constant = torch.full((), constant, dtype=x.dtype, device=x.device)
    output = torch.add(x, constant)
    if not output.requires_grad:
        return output
    if constant.dtype == torch.bool or not constant.is_floating_point():
        constant = constant.to(x.dtype)
    mark = mark.but(examples=broadcast_examples(mark.examples, x.shape, output.shape), source=None)
    _require_examples(tape, mark)
    return tape.tape.record(
        function,
        AutogradKernel(torch.add),
        (x,),
        output,
        rule=tape.rule_for(torch.add),
        flow=flows.keep,
        mark=mark,
        constant=constant,
        name=tape.constant_title(v if of_u is not None else u) if tape.tape.keeps_books else "",
    )


def _copied(tape: Interception, x: Tensor, mark: Mark) -> Tensor:
    copy = x.clone()
    tape.tape.marks[copy] = mark
    return copy


def _require_examples(tape: Interception, mark: Mark) -> None:
    if not mark.examples.known:
        raise ExplanationError(
            f"in {tape.module_name()} the examples of the batch cannot be told apart, so their "
            "relevance cannot be normalised one by one: explain one example at a time"
        )


def _skip_add(
    tape: Interception, function: Function, u: Tensor, of_u: Mark, v: Tensor, of_v: Mark
) -> Tensor:
    output = torch.add(u, v)
    examples = broadcast_examples(of_u.examples, u.shape, output.shape)
    if not examples.known:
        examples = broadcast_examples(of_v.examples, v.shape, output.shape)
    mark = merged([of_u, of_v], examples)
    factors = (0.5, 0.5)
    branch_events = 0
    stream: tuple[Tensor, Mark, Mark] | None = None
    if of_u.events != of_v.events:
        if of_u.events & ~of_v.events == 0:
            stream = u, of_u, of_v
        elif of_v.events & ~of_u.events == 0:
            stream = v, of_v, of_u
    if stream is not None:
        tensor, skipped, branch = stream
        attends = bool(branch.events & ~skipped.events & tape.tape.attention_events)
        through_branch = 1.0 if attends else 0.0
        factors = (1.0, through_branch) if tensor is u else (through_branch, 1.0)
        branch_events = branch.events & ~skipped.events
        if attends:
            tape.tape.streams.append(tensor)
        mark = mark.but(events=skipped.events)
    else:
        attending = [bool(one.events & tape.tape.attention_events) for one in (of_u, of_v)]
        if all(attending):
            factors = (1.0, 1.0)
        elif any(attending):
            factors = (1.0, 0.0) if attending[0] else (0.0, 1.0)
    mark = mark.but(source=None)
    _require_examples(tape, mark)
    return tape.tape.record(
        function,
        AutogradKernel(torch.add),
        (u, v),
        output,
        rule=tape.rule_for(torch.add),
        flow=flows.skip_add,
        mark=mark,
        mass=factors,
        branch=branch_events,
        mass_through_branch=(0.0, 1.0) if stream is not None and stream[0] is u else (1.0, 0.0),
    )


def _two(args: Args, kwargs: Kwargs) -> tuple[Any, Any]:
    values = (*args, *(kwargs[name] for name in ("input", "self", "other") if name in kwargs))
    return values[0], values[1]


# -- element by element -------------------------------------------------------------------------


@handles(*registry.ACTIVATIONS)
def _activation(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    inplace = kwargs.pop("inplace", False)
    output = tape.elementwise(function, args, kwargs, event=True)
    if inplace:
        tape.replace(args[0], output)
    return output


@handles(*registry.NORMALIZATIONS)
def _normalization(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    if function is F.batch_norm and (kwargs.get("training", args[5] if len(args) > 5 else False)):
        raise ExplanationError(
            f"{tape.module_name()} normalises by the statistics of the batch, so that one "
            "example's explanation would depend on the others: call model.eval() first"
        )
    return tape.elementwise(function, args, kwargs, base=object(), statistic=False)


@handles(*spelled("dropout", "alpha_dropout", "feature_dropout", "dropout1d", "dropout2d",
                  "dropout3d", "feature_alpha_dropout"))  # fmt: skip
def _dropout(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    def bind(
        input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False,
        train: bool = False,
    ) -> Any:  # fmt: skip
        return input, p, training or train, inplace

    source, p, training, _ = bind(*args, **kwargs)
    if p and training:
        raise ExplanationError(
            f"{tape.module_name()} drops activations at random (p = {p}), so the output has no "
            "one explanation: call model.eval() first"
        )
    return source


@handles(*spelled("masked_fill"))
def _masked_fill(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """Filled positions are no longer what they were: their relevance goes to the filling."""

    def bind(input: Tensor, mask: Tensor, value: Any) -> Any:
        return input, mask, value

    x, mask, value = bind(*args, **kwargs)
    if not isinstance(value, Tensor):
        value = torch.full((), value, dtype=x.dtype, device=x.device)
    with tape:
        return torch.where(mask, value, x)


@handles(*registry.SOFTMAXES)
def _softmax(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    source = args[0] if args else kwargs["input"]
    mark = tape.tape.mark(source)
    assert mark is not None
    attends = mark.scores
    kwargs.pop("_stacklevel", None)
    dtype = kwargs.get("dtype")
    if isinstance(dtype, torch.dtype) and dtype.itemsize < source.element_size():
        kwargs.pop("dtype")  # the tape never loses precision
    return tape.elementwise(
        function,
        args,
        kwargs,
        flow=flows.blocked if attends else flows.keep,
        attention=attends,
        base=object(),
        statistic=False,
    )


# -- pooling ------------------------------------------------------------------------------------


@handles(*registry.POOLINGS)
def _pooling(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    source = args[0] if args else kwargs["input"]
    mark = tape.tape.mark(source)
    assert mark is not None
    output = function(*args, **kwargs)
    if not isinstance(output, Tensor):
        raise tape.unsupported(function, "more than one output")
    if not output.requires_grad:
        return output
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    reduces = function in _REDUCTIONS
    examples = mark.examples
    if reduces and examples.count > 1 and examples.axis is not None:
        kept = output.dim() == source.dim()
        dims = dim if isinstance(dim, (tuple, list)) else (dim,)
        gone = {one % source.dim() for one in dims if isinstance(one, int)}
        if None in dims or examples.axis in gone:
            examples = unknown_examples(examples)
        elif not kept:
            before = sum(one < examples.axis for one in gone)
            examples = Examples(examples.count, examples.axis - before, examples.index)
    return tape.tape.record(
        function,
        AutogradKernel(lambda value: function(value, *args[1:], **kwargs)),
        (source,),
        output,
        rule=tape.rule_for(function),
        flow=flows.native,
        mark=mark.but(examples=examples, source=None, statistic=mark.statistic or reduces),
        name=tape.module_name() if tape.tape.keeps_books else "",
    )


_REDUCTIONS = frozenset(
    spelled(
        "mean", "sum", "nanmean", "nansum", "amax", "amin", "logsumexp", "norm", "vector_norm",
        "var", "std",
    )
)  # fmt: skip


@handles(*spelled("var_mean", "std_mean"))
def _spread_and_mean(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    spread = torch.var if function.__name__ == "var_mean" else torch.std
    source, rest = (args[0], args[1:]) if args else (kwargs.pop("input"), ())
    of_mean = {name: kwargs[name] for name in ("dim", "keepdim") if name in kwargs}
    with tape:
        return spread(source, *rest, **kwargs), torch.mean(source, *rest[:1], **of_mean)


@handles(*spelled("max", "min", "maximum", "minimum"))
def _extremum(tape: Interception, function: Function, args: Args, kwargs: Kwargs) -> Any:
    """Of one tensor along a dimension, of one tensor in all, or of two element by element."""
    larger = function.__name__.startswith("max")
    values = (*args, *kwargs.values())
    if len(values) > 1 and isinstance(values[1], Tensor):
        with tape:
            return torch.where(values[0] >= values[1], *(values if larger else values[::-1]))
    reduced = torch.amax if larger else torch.amin
    if len(values) == 1:
        with tape:
            return reduced(values[0], tuple(range(values[0].dim())))
    result = function(*args, **kwargs)
    dim: int = kwargs["dim"] if "dim" in kwargs else args[1]
    keepdim = bool(kwargs.get("keepdim", args[2] if len(args) > 2 else False))
    with tape:
        found = torch.gather(values[0], dim, result.indices if keepdim else
                             result.indices.unsqueeze(dim))  # fmt: skip
        found = found if keepdim else found.squeeze(dim)
    return type(result)((found, result.indices))


# -- fused attention, taken apart ---------------------------------------------------------------


@handles(F.scaled_dot_product_attention)
def _scaled_dot_product_attention(
    tape: Interception, function: Function, args: Args, kwargs: Kwargs
) -> Any:
    def bind(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, *, scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:  # fmt: skip
        return query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa

    query, key, value, mask, p, is_causal, scale, grouped = bind(*args, **kwargs)
    if p:
        raise ExplanationError(
            f"{tape.module_name()} drops attention at random (p = {p}), so the output has no one "
            "explanation: call model.eval() first"
        )
    with tape:
        if grouped and key.shape[-3] != query.shape[-3]:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
        scores = torch.matmul(query, key.transpose(-2, -1))
        scores = scores * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if is_causal:
            rows, columns = scores.shape[-2:]
            allowed = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~allowed, -math.inf)
        if mask is not None:
            if mask.dtype == torch.bool:
                scores = scores.masked_fill(~mask, -math.inf)
            else:
                scores = scores + mask
        return torch.matmul(torch._safe_softmax(scores, -1), value)


@handles(F.multi_head_attention_forward)
def _multi_head_attention(
    tape: Interception, function: Function, args: Args, kwargs: Kwargs
) -> Any:
    with tape:
        return expand(function)(*args, **kwargs)
