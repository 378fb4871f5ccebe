"""What cannot be explained, found before or after the forward pass, with what to do instead."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from captum_transformer_lrp.engine.graph.tape import Tape
from captum_transformer_lrp.engine.graph.values import PLAIN, is_dequantisable, is_finite
from captum_transformer_lrp.engine.watch.apart import is_in_order
from captum_transformer_lrp.engine.watch.eager import runs_as_written
from captum_transformer_lrp.engine.watch.units import Modules
from captum_transformer_lrp.engine.watch.writes import unchanged
from captum_transformer_lrp.errors import ExplanationError, NoAttentionError, interruption


def tensors_of(inputs: Any) -> tuple[Tensor, ...]:
    """The inputs as a tuple of tensors, as Captum takes them.

    Raises:
        TypeError: for anything else, and for tensors that do not hold their values element by
            element: sparse, nested, quantised, meta and fake ones.
        ValueError: for no input, and for a single sequence of token ids without its batch.
    """
    values = inputs if isinstance(inputs, tuple) else (inputs,)
    if not values:
        raise ValueError("inputs is an empty tuple, expected at least one tensor")
    for place, value in enumerate(values):
        which = f"input {place}" if isinstance(inputs, tuple) else "inputs"
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{which} must be a tensor, or inputs a tuple of tensors; found "
                f"{type(value).__name__}: pass images as float tensors (N, C, H, W), token ids as "
                "integer tensors (N, S), and other arguments in additional_forward_args"
            )
        kind = kind_without_values(value)
        if kind is not None:
            raise TypeError(f"{which} is {kind[0]}, expected a dense tensor: {kind[1]}")
    if len(values) == 1 and values[0].dim() == 1 and not values[0].is_floating_point():
        raise ValueError(
            f"inputs has shape {tuple(values[0].shape)}, expected token ids (N, S): it has no "
            "batch dimension; pass inputs.unsqueeze(0)"
        )
    return values


def kind_without_values(value: Tensor) -> tuple[str, str] | None:
    """What a tensor is that does not hold its values element by element, and what to do."""
    if isinstance(value, FakeTensor):
        return "a FakeTensor, which has no values", "explain outside of FakeTensorMode"
    if value.is_meta:
        return "on the meta device, where there are no values", "load it on a device"
    if value.is_nested:
        return "a nested tensor", "pad its examples to one length and pass an attention mask"
    if value.layout != torch.strided:
        return f"sparse ({value.layout})", "pass .to_dense()"
    if value.is_quantized:
        return f"quantised ({value.dtype})", "pass .dequantize()"
    return None


def check_inputs(inputs: tuple[Tensor, ...]) -> None:
    """Raise for inputs that no explanation can be made of."""
    for place, value in enumerate(inputs):
        which = f"input {place}" if len(inputs) > 1 else "inputs"
        if value.dim() == 0:
            raise ValueError(f"{which} has no batch dimension; pass input.unsqueeze(0)")
        if value.shape[0] == 0:
            raise ValueError(f"{which} has no examples: its shape is {tuple(value.shape)}")
        if value.shape[0] != inputs[0].shape[0]:
            raise ValueError(
                f"{which} has {value.shape[0]} examples, but input 0 has {inputs[0].shape[0]}"
            )
        if value.is_floating_point():
            if not is_finite(value):
                raise ValueError(f"{which} contains NaN or infinite values; clean it first")
        elif value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{which} must be float, or integer token ids; found {value.dtype}")
        elif value.dim() > 3 or (value.dim() == 3 and value.dtype == torch.uint8):
            raise TypeError(
                f"{which} is an integer tensor of shape {tuple(value.shape)}; only token ids "
                "(N, S) or (N, choices, S) are integers: pass images as preprocessed floats, "
                "image.float() / 255 and normalised as the model expects"
            )


@contextlib.contextmanager
def naming_a_missing_batch(
    model: Callable[..., Any],
    inputs: Sequence[Tensor],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Where a model fails on an input that it takes with a batch dimension, say so.

    Args:
        model: is called again on the inputs as a batch of one if it has failed.
        inputs: what was given.
        args: its other arguments.
        kwargs: those by name.
    """
    handled = sys.exc_info()[1]
    named = dict(kwargs or {})
    try:
        yield
    except ExplanationError:
        raise
    except Exception as error:
        # An error that a Ctrl-C has led to must keep it in its chain.
        if interruption(error, handled) is not None or not _takes_as_batch(
            model, inputs, args, named
        ):
            raise
        shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
        raise ValueError(
            f"the model fails on inputs of shape {shapes} ({error}), and takes them with a batch "
            "dimension: pass inputs.unsqueeze(0)"
        ) from error


def _takes_as_batch(
    model: Callable[..., Any], inputs: Sequence[Tensor], args: Sequence[Any], named: dict[str, Any]
) -> bool:
    """Whether a model can be called on inputs as a batch of one."""
    if any(value.dim() > 3 for value in inputs):
        return False
    try:
        with torch.no_grad(), torch.random.fork_rng(), unchanged(model, inputs, args, named):
            model(*(value.unsqueeze(0) for value in inputs), *args, **named)
    except Exception:
        return False
    return True


def check_not_within(watch: type) -> None:
    """Raise where an explanation is under way in this thread: its model is running."""
    if any(isinstance(mode, watch) for mode in _get_current_function_mode_stack()):
        raise ExplanationError(
            "found an explanation in the forward pass of a model that is being explained, which "
            "watches every call: compute the inner one before, and pass its result to the model"
        )


def check_modules(modules: Modules) -> None:
    """Raise for models whose calls cannot be watched."""
    for name, module in modules:
        where = f"{name} ({type(module).__name__})" if name else type(module).__name__
        home = type(module).__module__
        if isinstance(module, torch.jit.ScriptModule):
            raise ExplanationError(
                f"{where} is a TorchScript module, whose calls cannot be watched: explain the "
                "Python module that it was made from"
            )
        graph = module.graph if isinstance(module, GraphModule) else None
        if graph is not None and any(isinstance(one.target, OpOverload) for one in graph.nodes):
            raise ExplanationError(
                f"{where} is an exported program of PyTorch's own operations, in which layers are "
                "not what they were: explain the Python module that it was made from"
            )
        if module._backward_hooks and module._is_full_backward_hook is False:
            raise ExplanationError(
                f"{where} has a backward hook that would be called with relevance, too: remove it, "
                "or set it by register_full_backward_hook"
            )
        compiled = vars(module).get("_compiled_call_impl") is not None
        if compiled and not runs_as_written():
            raise ExplanationError(
                f"{where} is compiled, so its calls cannot be watched: build it without "
                ".compile(), or update PyTorch to 2.6 or newer"
            )
        if ("quantized" in home and "quantized" in home.split(".")) or _looks_up_packed(module):
            raise ExplanationError(
                f"{where} is quantised, so there are no weights to propagate relevance through: "
                "explain the floating-point model"
            )
        for own_name, tensor in (*module._parameters.items(), *module._buffers.items()):
            found = None if tensor is None else _kind_of_state(tensor)
            if found is not None:
                raise ExplanationError(f"{own_name} of {where} is {found}")


def _looks_up_packed(module: nn.Module) -> bool:
    """Whether a module looks embeddings up in what bitsandbytes has packed."""
    if not isinstance(module, nn.Embedding):
        return False
    # Not as an attribute: a parametrised weight is computed, and changes the module.
    kind = type(module._parameters.get("weight"))
    return "bitsandbytes" in kind.__module__


def _kind_of_state(tensor: Tensor) -> str | None:
    """What a parameter or buffer is that nothing can be computed with as usual, and what to do."""
    if is_lazy(tensor):
        return "not initialised yet: run the model once before it is explained"
    if tensor.is_quantized:
        return f"quantised ({tensor.dtype}): explain the floating-point model"
    kind = None if tensor.layout != torch.strided else kind_without_values(tensor)
    if kind is not None:
        return f"{kind[0]}: {kind[1].replace('load it', 'load the weights')}"
    own = type(tensor) not in PLAIN and is_traceable_wrapper_subclass(tensor)
    if own and not is_dequantisable(tensor):
        return (
            f"a {type(tensor).__name__} ({type(tensor).__module__}), which keeps its values in a "
            "form of its own, quantised or sharded: explain the model before it is converted, with "
            "floating-point weights"
        )
    return None


def check_output(
    output: Tensor, tape: Tape, inputs: tuple[Tensor, ...], leaves: list[list[Tensor]]
) -> None:
    """Raise for outputs that relevance cannot start from."""
    kind = kind_without_values(output)
    if kind is not None or output.is_complex():
        what, advice = kind or (f"complex ({output.dtype})", "return .abs() or .real of it")
        raise TypeError(f"the model's output is {what}, expected real numbers: {advice}")
    if tape.mark(output) is None or not output.requires_grad:
        raise ExplanationError(
            "the model's output does not depend on the inputs by differentiable operations: was it "
            "computed under torch.no_grad(), detached, or are the inputs indices that no embedding "
            "looked up?"
        )
    if output.dim() == 0 or output.shape[0] != inputs[0].shape[0]:
        raise ValueError(
            f"the model returned shape {tuple(output.shape)} for {inputs[0].shape[0]} examples; "
            "its first dimension must be the batch"
        )
    mark = tape.mark(output)
    if mark is not None and (mark.columns is not None or not is_in_order(mark.examples)):
        raise ExplanationError(
            "the model's output does not have the examples of the batch in their order along its "
            "first dimension, so it is not known whose answer is whose: explain one example at a "
            "time"
        )
    for place, found in enumerate(leaves):
        if not found:
            raise ExplanationError(
                f"input {place} is an integer tensor that no embedding looked up: pass it in "
                "additional_forward_args instead"
            )


def check_finite_output(output: Tensor) -> None:
    """Raise for NaN and infinity."""
    if not is_finite(output):
        raise ExplanationError("the model's output contains NaN or infinite values")


def check_attention(tape: Tape, output: Tensor) -> None:
    """Raise for a model without a softmax between tokens, naming what it has in its place."""
    mark = tape.mark(output)
    if mark is not None and mark.node.attentions:
        return
    instead = ""
    if tape.other_mixing:
        layers = list(dict.fromkeys(tape.other_mixing))
        more = f" and {len(layers) - 3} more layers" if len(layers) > 3 else ""
        instead = (
            f"; {', '.join(layers[:3])}{more} mix activations by linear attention, a gate, a "
            "Fourier transform or a softmax over something else than products of queries and keys, "
            "which leaves no attention map"
        )
    raise NoAttentionError(
        f"the model computes no softmax attention that its output depends on{instead}; "
        "TransformerLRP needs none, nor do captum.attr.LRP and IntegratedGradients"
    )
