"""The base of every rule of this library, a subclass of Captum's ``PropagationRule``."""

from __future__ import annotations

import threading
from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar

from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor

from captum_transformer_lrp.rules.call import Call

_thread = threading.local()


def engine_propagates(value: bool | None = None) -> bool:
    """Whether this thread is inside ``transformer_rules()``; with a value, set it first."""
    if value is not None:
        _thread.engine_propagates = value
    return getattr(_thread, "engine_propagates", False)


class Rule(PropagationRule):
    """How one operation divides the relevance of its output among its inputs.

    A subclass writes :meth:`relevance`.  Set an instance as ``module.rule``, as with Captum's
    rules, or file it with :func:`~captum_transformer_lrp.rules.register_rule`.

    Example: half of the relevance stays, half goes to whatever was positive.

        >>> import torch
        >>> from captum_transformer_lrp.rules import Rule
        >>> class PositiveInputsRule(Rule):
        ...     def relevance(self, call, relevance):
        ...         return relevance * (call.inputs[0] > 0)

    Attributes:
        reads_values: whether :meth:`relevance` looks at the values of ``call.inputs`` and
            ``call.output``.  Of a rule that does not, nothing but their shapes is kept.
    """

    reads_values: ClassVar[bool] = True
    shares_with_bias: ClassVar[bool] = False
    """Whether the bias of a linear operation takes a share, so that one added by itself does."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "relevance" in vars(cls):  # what holds for a superclass says nothing of this method
            cls.reads_values = vars(cls).get("reads_values", True)

    @abstractmethod
    def relevance(self, call: Call, relevance: Tensor) -> Tensor | tuple[Tensor | None, ...]:
        """Divide the relevance of one call's output.

        Args:
            call: the operation, its inputs and its output.
            relevance: relevance of ``call.output``, of the same shape, float32 or float64.

        Returns:
            The relevance of each of ``call.inputs``, shaped as they are, or None for none at all;
            a bare tensor if there is one input.
        """

    # What captum.attr.LRP calls of a rule: inside transformer_rules() the engine propagates, and
    # Captum's hooks only note, for LayerLRP, what relevance arrives at the module.

    def forward_hook(self, module: Any, inputs: Any, outputs: Any) -> Any:
        """Captum's hook of the second forward pass."""
        if not engine_propagates():
            return super().forward_hook(module, inputs, outputs)
        self._handle_input_hooks = [
            value.register_hook(partial(self._note, self.relevance_input, len(inputs)))
            for value in inputs
            if isinstance(value, Tensor) and value.requires_grad
        ]
        output = outputs[0] if isinstance(outputs, tuple) else outputs
        if output.requires_grad:  # not so for position embeddings
            self._handle_output_hook = output.register_hook(
                partial(self._note, self.relevance_output, 1)
            )

    def forward_hook_weights(self, module: Any, inputs: Any, outputs: Any) -> None:
        """Captum's hook of the first forward pass."""
        if not engine_propagates():
            super().forward_hook_weights(module, inputs, outputs)

    def forward_pre_hook_activations(self, module: Any, inputs: Any) -> Any:
        """Captum's hook before each module of the second forward pass."""
        return (
            inputs if engine_propagates() else super().forward_pre_hook_activations(module, inputs)
        )

    @staticmethod
    def _note(found: dict[Any, Any], count: int, relevance: Tensor) -> None:
        device = relevance.device
        if count == 1:
            found[device] = relevance.detach()
        else:
            found.setdefault(device, [])
            found[device].append(relevance.detach())

    def _manipulate_weights(self, module: Any, inputs: Any, outputs: Any) -> None:
        """Captum's hook for rules that change a layer's weights; ours never do."""

    def __repr__(self) -> str:
        values = ", ".join(
            f"{name}={value!r}"
            for name, value in vars(self).items()
            if not name.startswith(("_", "relevance_"))
        )
        return f"{type(self).__name__}({values})"
