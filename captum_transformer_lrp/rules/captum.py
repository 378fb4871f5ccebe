"""Captum's own rules (``EpsilonRule``, ``GammaRule``, …), set by a user on a module."""

from __future__ import annotations

import copy

import torch
from captum.attr._utils.lrp_rules import IdentityRule, PropagationRule
from torch import Tensor, nn

from captum_transformer_lrp.rules.base import Rule
from captum_transformer_lrp.rules.call import Call


class CaptumRule(Rule):
    """Runs a rule that is written for :class:`captum.attr.LRP` inside this library's engine.

    Such a rule changes a layer's weights and divides by the changed layer's output.  Here it
    changes those of a copy, so the model keeps its own.

    Args:
        rule: any rule of Captum, or a user's subclass of its ``PropagationRule``.
        module: the module that the rule was set on.
    """

    def __init__(self, rule: PropagationRule, module: nn.Module) -> None:
        self._rule = rule
        self._module = module

    def relevance(self, call: Call, relevance: Tensor) -> tuple[Tensor, ...]:
        """See :class:`Rule`."""
        if isinstance(self._rule, IdentityRule):
            return (relevance,)
        layer = _detached_copy(self._module, call.output.dtype)
        self._rule._manipulate_weights(layer, call.inputs, call.output)
        with torch.enable_grad():
            inputs = [value.detach().requires_grad_() for value in call.inputs]
            output = layer(*inputs)
        sign = torch.where(output < 0, -1.0, 1.0)
        share = relevance / (output.detach() + sign * self._rule.STABILITY_FACTOR)
        products = torch.autograd.grad(output, inputs, share)
        parts = tuple(
            value.detach() * product for value, product in zip(inputs, products, strict=True)
        )
        count = call.examples.count
        if all(part.shape[0] == count for part in parts):  # the bias and ε have the rest
            received = torch.stack([part.flatten(1).sum(1) for part in parts]).sum(0)
            call.absorb(lambda: call.examples.sum(relevance) - received)
        return parts


def _detached_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module with parameters of its own; hooks, and whatever else it holds, left behind."""
    memo: dict[int, object] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        memo[id(tensor)] = (
            nn.Parameter(tensor.detach().to(dtype, copy=True), requires_grad=False)
            if isinstance(tensor, nn.Parameter)
            else tensor.detach().to(dtype if tensor.is_floating_point() else None, copy=True)
        )
    rule = module.__dict__.get("rule")
    if rule is not None:
        memo[id(rule)] = None
    duplicate = copy.deepcopy(module, memo)
    for submodule in duplicate.modules():
        for name in list(submodule.__dict__):
            if name.endswith("_hooks"):
                submodule.__dict__[name].clear()
    return duplicate


class EngineRule(Rule):
    """What Captum finds on a module inside ``transformer_rules()``: the engine sees to it."""

    def relevance(self, call: Call, relevance: Tensor) -> Tensor:
        """Never called: the engine has a rule for each call that the module makes."""
        raise AssertionError("EngineRule stands for the rules of a module's calls")
