"""An explanation leaves everything as it was, whether it succeeds or not.

After Captum's tests of hook removal: one table of faults and models, one list of everything that
could have been changed.
"""

from __future__ import annotations

import contextlib
import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import captum.attr._core.lrp as captum_lrp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr._utils.lrp_rules import EpsilonRule
from torch import Tensor, nn

from captum_transformer_lrp import TransformerAttribution
from captum_transformer_lrp.rules import Call, Rule
from tests.attr.conftest import BUILDERS
from tests.attr.methods import each_once
from tests.leaks import new_tensors

PATCHABLE: list[tuple[Any, str]] = [
    *((F, name) for name in ("linear", "softmax", "gelu", "layer_norm", "conv2d")),
    (F, "scaled_dot_product_attention"),
    (F, "multi_head_attention_forward"),
    *((torch, name) for name in ("matmul", "softmax", "add", "einsum", "baddbmm")),
    *((Tensor, name) for name in ("__add__", "__matmul__", "softmax", "add_", "backward")),
    (nn.Module, "__call__"),
    (nn.Module, "_call_impl"),
    (nn.Linear, "forward"),
]
"""What other libraries replace in the whole process."""


class RaisedOnPurposeError(Exception):
    """Raised by a module or a rule of these tests."""


class RaisingRule(Rule):
    def relevance(self, call: Call, relevance: Tensor) -> Tensor:
        raise RaisedOnPurposeError("in a rule")


def raise_in_forward(module: nn.Module, args: Any) -> None:
    raise RaisedOnPurposeError("in forward")


@contextlib.contextmanager
def nothing_wrong(case: Any) -> Iterator[dict[str, Any]]:
    yield {"target": 1}


@contextlib.contextmanager
def a_wrong_target(case: Any) -> Iterator[dict[str, Any]]:
    yield {"target": 99}


@contextlib.contextmanager
def a_wrong_start_layer(case: Any) -> Iterator[dict[str, Any]]:
    yield {"target": 1, "start_layer": 99}


@contextlib.contextmanager
def a_module_that_raises(case: Any) -> Iterator[dict[str, Any]]:
    norms = [module for module in case.model.modules() if isinstance(module, nn.LayerNorm)]
    handle = norms[-1].register_forward_pre_hook(raise_in_forward)
    try:
        yield {"target": 1}
    finally:
        handle.remove()


@contextlib.contextmanager
def a_rule_that_raises(case: Any) -> Iterator[dict[str, Any]]:
    linears = [module for module in case.model.modules() if isinstance(module, nn.Linear)]
    linears[-2].rule = RaisingRule()
    try:
        yield {"target": 1}
    finally:
        del linears[-2].rule


FAULTS: dict[str, tuple[Any, type[Exception] | None]] = {
    "success": (nothing_wrong, None),
    "a wrong target": (a_wrong_target, ValueError),
    "a wrong start_layer": (a_wrong_start_layer, ValueError),
    "a module that raises in forward": (a_module_that_raises, RaisedOnPurposeError),
    "a rule that raises in backward": (a_rule_that_raises, RaisedOnPurposeError),
}


def attribute(case: Any, target: Any, **options: Any) -> None:
    case.attribute(target, **options)


def explain(case: Any, target: Any, **options: Any) -> None:
    case.explain(target, **options)


def attribute_targets(case: Any, target: Any, **options: Any) -> None:
    case.attribution.attribute_targets(case.inputs, [0, target], case.kwargs, **options)


def attribute_matrix(case: Any, target: Any, **options: Any) -> None:
    case.attribute(target, granularity="matrix", **options)


METHODS = [attribute, explain, attribute_targets, attribute_matrix]


def bits(tensor: Tensor | None) -> Any:
    """A tensor's identity, contents, version and flags; None for None."""
    if tensor is None:
        return None
    return (
        id(tensor),
        tensor.data_ptr(),
        tensor._version,
        tensor.requires_grad,
        tensor.is_leaf,
        tensor.detach().numpy().tobytes(),
    )


def state(case: Any) -> dict[str, Any]:
    """Everything that an explanation might change."""
    found: dict[str, Any] = {}
    for name, parameter in case.model.named_parameters():
        found[f"parameter {name}"] = bits(parameter)
        found[f"gradient of {name}"] = bits(parameter.grad)
        found[f"hooks of {name}"] = dict(parameter._backward_hooks or {})
    for name, buffer in case.model.named_buffers():
        found[f"buffer {name}"] = bits(buffer)
    for name, module in case.model.named_modules():
        found[f"class of {name}"] = type(module)
        found[f"training flag of {name}"] = module.training
        found[f"attributes of {name}"] = sorted(vars(module))
        found[f"rule of {name}"] = id(vars(module).get("rule"))
        for attribute_name, value in vars(module).items():
            if attribute_name.endswith("_hooks"):
                found[f"{attribute_name} of {name}"] = list(value.items())
    for name, value in {"inputs": case.inputs, **case.kwargs}.items():
        found[name] = bits(value)
        found[f"gradient of {name}"] = bits(value.grad if value.is_leaf else None)
    found["random numbers"] = (
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        np.random.get_state()[1].tobytes(),
    )
    found["modes"] = torch._C._len_torch_function_stack()
    found["dispatch modes"] = torch._C._len_torch_dispatch_stack()
    found["gradients enabled"] = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    found["autocast"] = torch.is_autocast_enabled("cpu")
    found["default dtype"] = torch.get_default_dtype()
    found["Captum's rules"] = dict(captum_lrp.SUPPORTED_LAYERS_WITH_RULES)
    found["Captum's non-linear layers"] = list(captum_lrp.SUPPORTED_NON_LINEAR_LAYERS)
    for owner, name in PATCHABLE:
        found[f"{owner.__name__}.{name}"] = getattr(owner, name)
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    names = before.keys() | after.keys()
    return sorted(name for name in names if before.get(name) != after.get(name))


@pytest.fixture
def used_case(case: Any) -> Iterator[Any]:
    """A model as it is found in the middle of its owner's work.

    Some parameters are frozen, some have gradients, one module has a rule and one a hook.
    """
    parameters = list(case.model.parameters())
    parameters[0].requires_grad_(False)
    for parameter in parameters[1::2]:
        parameter.grad = torch.full_like(parameter, 0.25)
    linears = [module for module in case.model.modules() if isinstance(module, nn.Linear)]
    linears[-1].rule = EpsilonRule()
    handle = linears[-1].register_forward_hook(lambda module, args, output: None)
    before = case.inputs
    if case.is_image:
        case.inputs = case.inputs.clone().requires_grad_()
        case.inputs.grad = torch.ones_like(case.inputs)
    yield case
    case.inputs = before
    handle.remove()
    del linears[-1].rule
    for parameter in parameters:
        parameter.grad = None
        parameter.requires_grad_(True)


@pytest.mark.parametrize(("method", "case"), each_once(BUILDERS, METHODS), indirect=["case"])
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_left_behind(used_case: Any, fault: str, method: Callable[..., None]) -> None:
    prepare, error = FAULTS[fault]
    with prepare(used_case) as options:
        before = state(used_case)
        with contextlib.nullcontext() if error is None else pytest.raises(error):
            method(used_case, **options)
        assert changes(before, state(used_case)) == []


def test_an_explanation_after_a_fault_is_as_if_nothing_had_happened(case: Any) -> None:
    expected = case.attribute()
    for prepare, error in FAULTS.values():
        if error is not None:
            with prepare(case) as options, pytest.raises(error):
                case.attribute(**options)
    assert torch.equal(case.attribute(), expected)


@pytest.mark.parametrize(
    "case", ["timm ViT", "Hugging Face ViT", "torchvision ViT", "BERT"], indirect=True
)
def test_the_model_trains_on_after_an_explanation(case: Any) -> None:
    def gradients() -> list[Tensor]:
        case.model.zero_grad()
        output = case.model(case.inputs, **case.kwargs)
        logits = output if isinstance(output, Tensor) else output.logits
        logits[:, 1].sum().backward()
        return [p.grad.clone() for p in case.model.parameters() if p.grad is not None]

    expected = gradients()
    case.attribute()
    found = gradients()
    case.model.zero_grad()
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_hooks_of_the_user_are_called_and_stay(case: Any) -> None:
    called: list[str] = []
    handles = [
        module.register_forward_hook(lambda m, a, o, name=name: called.append(name))
        for name, module in case.model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        case.logits()
        expected, called[:] = list(called), []
        case.attribute()
        assert called == expected
    finally:
        for handle in handles:
            handle.remove()


def test_a_mode_of_the_user_stays_in_place(vit_case: Any) -> None:
    with torch.overrides.BaseTorchFunctionMode():
        depth = torch._C._len_torch_function_stack()
        vit_case.attribute()
        assert torch._C._len_torch_function_stack() == depth


# -- threads ------------------------------------------------------------------------------------


def test_two_threads_explain_two_targets_as_one_after_the_other_does(case: Any) -> None:
    expected = [case.attribute(target) for target in (0, 1)]
    found: list[list[Tensor]] = [[], []]
    start = threading.Barrier(2)

    def work(target: int) -> None:
        start.wait(timeout=30)
        for _ in range(3):
            found[target].append(case.attribute(target))

    threads = [threading.Thread(target=work, args=(target,)) for target in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for maps, reference in zip(found, expected, strict=True):
        assert len(maps) == 3
        assert all(torch.equal(one, reference) for one in maps)


def test_a_forward_pass_in_another_thread_is_not_watched(vit_case: Any) -> None:
    """While one thread explains, another uses the model as usual."""
    results: list[Tensor] = []

    def interrupted(images: Tensor) -> Tensor:
        def predict() -> None:
            with torch.no_grad():
                results.append(vit_case.model(vit_case.inputs))

        other = threading.Thread(target=predict)
        other.start()
        other.join(timeout=30)
        return vit_case.model(images)

    found = TransformerAttribution(interrupted).attribute(vit_case.inputs, 1)
    assert torch.equal(results[0], vit_case.logits())
    assert torch.allclose(found, vit_case.attribute(), rtol=1e-9, atol=1e-12)


# -- memory -------------------------------------------------------------------------------------


def test_tensors_that_are_kept_by_old_objects_or_cycles_of_new_ones_are_told_apart() -> None:
    old: list[Any] = []
    with new_tensors() as living:
        old.append(torch.ones(1))
        cycle: list[Any] = [torch.zeros(1)]
        cycle.append(cycle)
        assert len(living()) == 2
        del cycle
        assert [float(one) for one in living()] == [1]


@pytest.mark.parametrize(
    ("method", "case"),
    each_once(["timm ViT", "torchvision ViT", "BERT"], METHODS),
    indirect=["case"],
)
def test_twenty_explanations_leave_no_tensor_behind(case: Any, method: Callable[..., None]) -> None:
    method(case, 1)  # what is made once, and kept
    with new_tensors() as living:
        for _ in range(20):
            method(case, 1)
        assert living() == []


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "success"])
@pytest.mark.parametrize("case", ["timm ViT", "BERT"], indirect=True)
def test_failed_explanations_leave_no_tensor_behind(case: Any, fault: str) -> None:
    prepare, error = FAULTS[fault]

    def fail() -> None:
        with pytest.raises(error):
            case.attribute(**options)

    with prepare(case) as options:
        fail()  # what is made once, and kept
        with new_tensors() as living:
            for _ in range(5):
                fail()
            assert living() == []


def test_the_tape_goes_as_soon_as_the_explanation_is_done(vit_case: Any) -> None:
    """Without waiting for the garbage collector, which on a GPU would be memory lost."""
    refs: list[weakref.ref[Tensor]] = []

    def watched(images: Tensor) -> Tensor:
        tokens = vit_case.model.forward_features(images)
        logits = vit_case.model.forward_head(tokens)
        refs.extend([weakref.ref(tokens), weakref.ref(logits)])
        return logits

    gc.collect()
    gc.disable()
    try:
        TransformerAttribution(watched).attribute(vit_case.inputs, 1)
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


def test_what_explain_returns_does_not_hold_the_tape(vit_case: Any) -> None:
    explanation = vit_case.explain()
    tensors = [explanation.attributions, explanation.output, explanation.total]
    for maps in explanation.attentions:
        tensors += [maps.attention, maps.gradient, maps.relevance, maps.weighted]
    tensors += [*explanation.relevances, *explanation.absorbed.values()]
    assert all(tensor.grad_fn is None and not tensor.requires_grad for tensor in tensors)
