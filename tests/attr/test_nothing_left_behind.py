"""No method leaves anything behind, whatever goes wrong: one table, method by model by fault.

After Captum's tests of hook removal, which generate one test for each method, model and fault.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import captum.attr._core.lrp as captum_lrp
import pytest
import torch
from captum.attr import NoiseTunnel
from captum.attr._utils.lrp_rules import EpsilonRule
from torch import Tensor, nn

from captum_transformer_lrp import (
    AttCat,
    AttentionFlow,
    AttentionGradCam,
    AttentionRollout,
    BiAttention,
    GenericAttention,
    LeGrad,
    LibraGradient,
    NormRollout,
    PartialLRP,
    RawAttention,
    TransformerAttribution,
    TransformerLRP,
    compare,
)
from captum_transformer_lrp.rules import Call, Rule
from tests.attr.conftest import BUILDERS
from tests.attr.methods import each_once
from tests.leaks import new_tensors


class RaisedOnPurposeError(Exception):
    """Raised by a module or a rule of these tests."""


class RaisingRule(Rule):
    def relevance(self, call: Call, relevance: Tensor) -> Tensor:
        raise RaisedOnPurposeError("in a rule")


def plain(method: type, **options: Any) -> Callable[..., Any]:
    def explain(case: Any, target: Any) -> Any:
        return method(case.model, **options).attribute(case.inputs, target, case.kwargs)

    return explain


def per_head(case: Any, target: Any) -> Any:
    return PartialLRP(case.model).relevance_per_head(case.inputs, target, case.kwargs)


def with_delta(case: Any, target: Any) -> Any:
    method = TransformerLRP(case.model)
    return method.attribute(case.inputs, target, case.kwargs, return_convergence_delta=True)


def noise_tunnel(case: Any, target: Any) -> Any:
    if not case.is_image:  # token ids take no noise
        return plain(TransformerAttribution)(case, target)
    method = NoiseTunnel(TransformerAttribution(case.model))
    return method.attribute(case.inputs, nt_samples=2, stdevs=0.1, target=target)


def comparison(case: Any, target: Any) -> Any:
    methods = ["transformer_attribution", "occlusion"]
    if "hand-written" not in case.name:  # they add in place, which gradients cannot go through
        methods += ["integrated_gradients", "deep_lift"]
    few: dict[str, Any] = {name: {"n_steps": 2} for name in methods if name.startswith("int")}
    if case.is_image:
        few["occlusion"] = {"sliding_window_shapes": (3, 16, 16), "strides": (3, 16, 16)}
    extra = case.kwargs or None
    return compare(
        case.model, case.inputs, [target], methods, additional_forward_args=extra, options=few
    )


METHODS: dict[str, tuple[Callable[..., Any], bool]] = {
    "TransformerAttribution": (plain(TransformerAttribution), True),
    "TransformerAttribution, attention": (
        plain(TransformerAttribution, head_weighting="attention"),
        True,
    ),
    "AttentionRollout": (plain(AttentionRollout, head_fusion="max", discard_ratio=0.5), False),
    "AttentionFlow": (plain(AttentionFlow), False),
    "RawAttention": (plain(RawAttention), False),
    "AttentionGradCam": (plain(AttentionGradCam), False),
    "PartialLRP": (plain(PartialLRP), True),
    "PartialLRP.relevance_per_head": (per_head, True),
    "TransformerLRP": (with_delta, True),
    "TransformerLRP, sglrp": (plain(TransformerLRP, contrast="sglrp"), True),
    "TransformerLRP, attnlrp": (plain(TransformerLRP, preset="attnlrp"), True),
    "GenericAttention": (plain(GenericAttention), False),
    "LeGrad": (plain(LeGrad), False),
    "AttCat": (plain(AttCat), False),
    "NormRollout": (plain(NormRollout), False),
    "BiAttention": (plain(BiAttention, n_steps=2), False),
    "LibraGradient": (plain(LibraGradient, aggregation="layers"), True),
    "NoiseTunnel": (noise_tunnel, True),
    "compare": (comparison, True),
}
"""By name, and whether the method propagates relevance, so that a rule can raise."""


@contextlib.contextmanager
def nothing_wrong(case: Any) -> Iterator[int]:
    yield 1


@contextlib.contextmanager
def a_wrong_target(case: Any) -> Iterator[int]:
    yield 99


@contextlib.contextmanager
def a_module_that_raises(case: Any) -> Iterator[int]:
    def raise_in_forward(module: nn.Module, args: Any) -> None:
        raise RaisedOnPurposeError("in forward")

    norms = [module for module in case.model.modules() if isinstance(module, nn.LayerNorm)]
    handle = norms[-1].register_forward_pre_hook(raise_in_forward)
    try:
        yield 1
    finally:
        handle.remove()


@contextlib.contextmanager
def a_rule_that_raises(case: Any) -> Iterator[int]:
    heads = [module for module in case.model.modules() if isinstance(module, nn.Linear)]
    before = heads[-1].rule
    heads[-1].rule = RaisingRule()
    try:
        yield 1
    finally:
        heads[-1].rule = before


FAULTS: dict[str, Callable[[Any], contextlib.AbstractContextManager[int]]] = {
    "success": nothing_wrong,
    "a wrong target": a_wrong_target,
    "a module that raises in forward": a_module_that_raises,
    "a rule that raises in backward": a_rule_that_raises,
}


def bits(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    return id(tensor), tensor._version, tensor.requires_grad, tensor.detach().numpy().tobytes()


def state(case: Any) -> dict[str, Any]:
    """Everything that a method might change."""
    found: dict[str, Any] = {
        "modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "gradients enabled": torch.is_grad_enabled(),
        "Captum's rules": dict(captum_lrp.SUPPORTED_LAYERS_WITH_RULES),
        "Captum's non-linear layers": list(captum_lrp.SUPPORTED_NON_LINEAR_LAYERS),
    }
    for name, tensor in (*case.model.named_parameters(), *case.model.named_buffers()):
        found[name] = bits(tensor)
        found[f"gradient of {name}"] = bits(tensor.grad)
        found[f"hooks of {name}"] = dict(tensor._backward_hooks or {})
    for name, value in {"inputs": case.inputs, **case.kwargs}.items():
        found[name] = bits(value)
        found[f"gradient of {name}"] = bits(value.grad)
    for name, module in case.model.named_modules():
        found[f"class of {name}"] = type(module)
        for attribute, value in vars(module).items():
            if attribute.endswith("hooks"):
                found[f"{attribute} of {name}"] = list(value.items())
            elif not attribute.startswith("_"):
                found[f"{attribute} of {name}"] = id(value)
    return found


@pytest.fixture(scope="module")
def used_case(case: Any) -> Iterator[Any]:
    """A model in the middle of its owner's work: a hook, a rule, a gradient, a frozen weight."""
    parameters = list(case.model.parameters())
    parameters[0].requires_grad_(False)
    parameters[1].grad = torch.ones_like(parameters[1])
    heads = [module for module in case.model.modules() if isinstance(module, nn.Linear)]
    heads[-1].rule = EpsilonRule()
    heads[-1].register_forward_hook(lambda module, args, output: None)
    return case


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("method", "case"), each_once(BUILDERS, METHODS), indirect=["case"])
def test_nothing_is_left_behind(used_case: Any, method: str, fault: str) -> None:
    explain, propagates = METHODS[method]
    fails = fault != "success" and (propagates or "rule" not in fault)
    with FAULTS[fault](used_case) as target:
        before = state(used_case)
        raised = None
        try:
            explain(used_case, target)
        except Exception as error:
            raised = error
        after = state(used_case)
    assert (raised is not None) == fails, raised
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    assert changed == []


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", ["timm ViT", "BERT"], indirect=True)
def test_no_tensor_outlives_what_is_returned(case: Any, method: str) -> None:
    explain, _ = METHODS[method]
    explain(case, 1)  # what is made once, and kept
    with new_tensors() as living:
        for target in (0, 1, 99):
            with contextlib.suppress(Exception):
                explain(case, target)
        assert living() == []
