"""What cannot be explained, found before or after the forward pass, with what to do instead."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_transformer_lrp.engine.graph.tape import Tape
from captum_transformer_lrp.engine.watch.apart import is_in_order
from captum_transformer_lrp.engine.watch.eager import runs_as_written
from captum_transformer_lrp.errors import ExplanationError, NoAttentionError


def check_inputs(inputs: tuple[Tensor, ...]) -> None:
    """Raise for inputs that no explanation can be made of."""
    for place, value in enumerate(inputs):
        which = f"input {place}" if len(inputs) > 1 else "inputs"
        if not isinstance(value, Tensor):
            raise TypeError(f"{which} must be a tensor, found {type(value).__name__}")
        if value.dim() == 0:
            raise ValueError(f"{which} has no batch dimension; pass input.unsqueeze(0)")
        if value.shape[0] == 0:
            raise ValueError(f"{which} has no examples: its shape is {tuple(value.shape)}")
        if value.shape[0] != inputs[0].shape[0]:
            raise ValueError(
                f"{which} has {value.shape[0]} examples, but input 0 has {inputs[0].shape[0]}"
            )
        if value.is_floating_point():
            if not bool(value.isfinite().all()):
                raise ValueError(f"{which} contains NaN or infinite values; clean it first")
        elif value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{which} must be float, or integer token ids; found {value.dtype}")
        elif value.dim() > 3 or (value.dim() == 3 and value.dtype == torch.uint8):
            raise TypeError(
                f"{which} is an integer tensor of shape {tuple(value.shape)}; only token ids "
                "(N, S) or (N, choices, S) are integers: pass images as preprocessed floats, "
                "image.float() / 255 and normalised as the model expects"
            )


def check_model(model: nn.Module) -> None:
    """Raise for models whose calls cannot be watched."""
    for name, module in model.named_modules():
        where = f"{name} ({type(module).__name__})" if name else type(module).__name__
        home = type(module).__module__
        if isinstance(module, torch.jit.ScriptModule):
            raise ExplanationError(
                f"{where} is a TorchScript module, whose calls cannot be watched: explain the "
                "Python module that it was made from"
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
        if ("quantized" in home and "quantized" in home.split(".")) or "bitsandbytes" in home:
            raise ExplanationError(
                f"{where} is quantised, so there are no weights to propagate relevance through: "
                "explain the floating-point model"
            )
        for own_name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.is_quantized:
                raise ExplanationError(
                    f"{own_name} of {where} is quantised ({tensor.dtype}): explain the "
                    "floating-point model"
                )


def check_output(
    output: Tensor, tape: Tape, inputs: tuple[Tensor, ...], leaves: list[list[Tensor]]
) -> None:
    """Raise for outputs that relevance cannot start from."""
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
    if mark is not None and not is_in_order(mark.examples):
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
    if not bool(output.isfinite().all()):
        raise ExplanationError("the model's output contains NaN or infinite values")


def check_attention(tape: Tape, output: Tensor) -> None:
    """Raise for a model without a softmax between tokens, naming what it has in its place."""
    mark = tape.mark(output)
    if mark is not None and mark.attentions:
        return
    instead = ""
    if tape.other_mixing:
        layers = list(dict.fromkeys(tape.other_mixing))
        more = f" and {len(layers) - 3} more layers" if len(layers) > 3 else ""
        instead = (
            f"; {', '.join(layers[:3])}{more} mix activations by linear attention, a gate or a "
            "softmax over something else than products of queries and keys, which leaves no "
            "attention map"
        )
    raise NoAttentionError(
        f"the model computes no softmax attention that its output depends on{instead}; "
        "TransformerLRP needs none, nor do captum.attr.LRP and IntegratedGradients"
    )
