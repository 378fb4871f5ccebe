"""The engine under Captum's ``LRP``: its relevance phase, run by Captum's own backward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from captum.attr import LRP
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captum_transformer_lrp.engine.graph.arguments import Function, tensors_in
from captum_transformer_lrp.engine.graph.marks import Mark, merged
from captum_transformer_lrp.engine.graph.tape import Phase, Tape
from captum_transformer_lrp.engine.watch.frames import calling_frame, calling_modules
from captum_transformer_lrp.engine.watch.interception import Interception
from captum_transformer_lrp.rules import Rule
from captum_transformer_lrp.rules.call import Stabilizer
from captum_transformer_lrp.rules.examples import broadcast_examples
from captum_transformer_lrp.rules.stock import EngineRule

_CAPTUM_FORWARD = LRP._forward_fn_wrapper.__code__


class StockLRP(TorchFunctionMode):
    """Watches the forward pass whose gradient ``captum.attr.LRP`` takes for relevance.

    Captum seeds the target's output with 1 and multiplies by the output in the end, so its
    backward pass is this library's relevance phase, if only the calls of the forward pass have
    their switches.  Every other PyTorch call in the block goes by untouched.

    Args:
        function_rules: rules that replace the registry's, by function.
        class_rules: rules of module classes.
        module_rules: rules of modules, by name.
        pixel_rule: the rule of a linear operation that reads the inputs themselves.
        stabilizer: divides relevance safely.
        epsilon: ε of eq. 2.
        strict: whether an operation without a rule is an error, or follows eq. 2.
    """

    def __init__(
        self,
        *,
        function_rules: Mapping[Function, PropagationRule],
        class_rules: dict[type[nn.Module], PropagationRule],
        module_rules: Mapping[str, PropagationRule],
        pixel_rule: Rule | None,
        stabilizer: Stabilizer,
        epsilon: float,
        strict: bool,
    ) -> None:
        super().__init__()
        self._options: dict[str, Any] = {
            "function_rules": function_rules,
            "class_rules": class_rules,
            "module_rules": module_rules,
            "pixel_rule": pixel_rule,
            "strict": strict,
        }
        self._stabilizer = stabilizer
        self._epsilon = epsilon
        self._frame: FrameType | None = None
        self._interception: _LayerwiseInterception | None = None

    @property
    def absorbed(self) -> dict[str, Tensor]:
        """The share of the output's relevance that each parameter has absorbed, (N,) each."""
        if self._interception is None:
            return {}
        found = self._interception.tape.absorbed
        return {name: amount for name, amount in found.items() if bool(amount.any())}

    def __torch_function__(
        self,
        func: Function,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        frame = calling_frame(_CAPTUM_FORWARD)
        if frame is None:
            return func(*args, **(kwargs or {}))
        if frame is not self._frame or self._interception is None:
            self._interception = self._begin(frame)
        return self._interception.call(func, tuple(args), dict(kwargs or {}))

    def close(self) -> None:
        """Let go of the last forward pass, but for what was absorbed."""
        self._frame = None
        if self._interception is not None:
            absorbed = self.absorbed
            self._interception.close()
            self._interception.tape.clear()
            self._interception.tape.absorbed = absorbed

    def _begin(self, frame: FrameType) -> _LayerwiseInterception:
        self.close()
        self._frame = frame
        attribution: LRP = frame.f_locals["self"]
        inputs = [one for one in frame.f_locals["inputs"] if isinstance(one, Tensor)]
        tape = Tape(self._stabilizer, keeps_books=True, epsilon=self._epsilon)
        tape.phase = Phase.RELEVANCE
        tape.explicit_zeros = True
        interception = _LayerwiseInterception(
            tape, attribution.model, inputs[0].shape[0], **self._options
        )
        for index, value in enumerate(inputs):
            interception.input_dims[index] = value.dim()
            if value.requires_grad:
                tape.marks[value] = Mark(
                    interception.examples, origins=1 << index, source=index, base=object()
                )
        for layer in _explained_layers(attribution):
            if "rule" not in vars(layer):  # a block, which Captum gives no rule
                rule = EngineRule()
                rule.relevance_input = {}
                rule.relevance_output = {}
                layer.rule = rule
                attribution.layers.append(layer)
                attribution.forward_handles.append(layer.register_forward_hook(rule.forward_hook))
        return interception


def _explained_layers(attribution: LRP) -> list[nn.Module]:
    """The layer or layers of a ``LayerLRP``."""
    layer = getattr(attribution, "layer", None)
    if layer is None:
        return []
    return list(layer) if isinstance(layer, (list, tuple)) else [layer]


class _LayerwiseInterception(Interception):
    """Leaves modules with a rule of Captum to Captum's hooks."""

    def call(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for _, module in calling_modules():
            rule = vars(module).get("rule")
            if isinstance(rule, PropagationRule) and not isinstance(rule, Rule):
                return self._by_captum(function, args, kwargs)
        return super().call(function, args, kwargs)

    def _by_captum(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = function(*args, **kwargs)
        active = [value for value in tensors_in((args, kwargs)) if self.tape.mark(value)]
        marks = [mark for value in active if (mark := self.tape.mark(value))]
        for part in tensors_in(result):
            if marks and part.requires_grad and self.tape.mark(part) is None:
                examples = broadcast_examples(marks[0].examples, active[0].shape, part.shape)
                mark = merged(marks, examples)
                self.tape.marks[part] = mark.but(
                    events=mark.events | self.tape.new_event(), source=None, base=object()
                )
        return result
