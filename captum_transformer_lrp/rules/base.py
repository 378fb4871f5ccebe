"""The base of every rule of this library, a subclass of Captum's ``PropagationRule``."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor

from captum_transformer_lrp.rules.call import Call


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
    """

    @abstractmethod
    def relevance(self, call: Call, relevance: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Divide the relevance of one call's output.

        Args:
            call: the operation, its inputs and its output.
            relevance: relevance of ``call.output``, of the same shape, float32 or float64.

        Returns:
            The relevance of each of ``call.inputs``, shaped as they are; a bare tensor if there
            is one input.
        """

    def _manipulate_weights(self, module: Any, inputs: Any, outputs: Any) -> None:
        """Captum's hook for rules that change a layer's weights; ours never do."""

    def __repr__(self) -> str:
        values = ", ".join(
            f"{name}={value!r}"
            for name, value in vars(self).items()
            if not name.startswith(("_", "relevance_"))
        )
        return f"{type(self).__name__}({values})"
