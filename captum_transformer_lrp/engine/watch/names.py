"""What modules, parameters and buffers are called, and constants that are made from them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from captum_transformer_lrp.engine.graph.tensor_table import HeldTable, TensorTable
from captum_transformer_lrp.engine.watch.units import Modules, calling_modules


class Names:
    """The names of one forward pass.

    Args:
        modules: those of the explained model; a plain function's are learned when they call.

    Attributes:
        state: the parameters and buffers.
        constants: the tensors that are made from them alone.
    """

    def __init__(self, modules: Modules) -> None:
        self.state: TensorTable[str] = TensorTable()
        self.constants: TensorTable[str] = TensorTable()
        self._modules: HeldTable[str] = HeldTable()
        self._repeated: TensorTable[bool] = TensorTable()
        self.learn(modules)

    def learn(self, modules: Modules, wrapper: nn.Module | None = None) -> None:
        """Note the names of modules, parameters and buffers; a wrapper has none."""
        for name, module in modules:
            if module not in self._modules:
                self._modules[module] = name
            prefix = f"{name}." if name else ""
            for own_name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and tensor not in self.state:
                    self.state[tensor] = prefix + own_name
        if wrapper is not None and wrapper not in self._modules:
            self._modules[wrapper] = ""

    def knows(self, module: nn.Module) -> bool:
        """Whether a module is one of the model's."""
        return module in self._modules

    def of_module(self, module: nn.Module) -> str:
        """The qualified name of a module, or else its class."""
        return self._modules.get(module) or type(module).__name__

    def caller(self) -> str:
        """The qualified name of the innermost calling module, e.g. ``blocks.0.attn``."""
        for _, module in calling_modules():
            return self.of_module(module)
        return "the forward function"

    def of_constant(self, tensor: Tensor) -> str:
        """The name of the parameter or buffer that a constant is or was made from, if any."""
        name = self.state.get(tensor)
        if name is None:
            name = self.constants.get(tensor)
        return name or ""

    def title(self, value: Any) -> str:
        """What the relevance that a constant absorbs is reported under."""
        name = self.of_constant(value) if isinstance(value, Tensor) else ""
        return name or f"{self.caller()} (constant)"

    def inherit(self, tensor: Tensor, source: Tensor) -> None:
        """Call a tensor what its source is called, if that has a name."""
        if name := self.of_constant(source):
            self.constants[tensor] = name
            if source in self._repeated:
                self._repeated[tensor] = True

    def note(self, tensor: Tensor, name: str, *, is_repeated: bool) -> None:
        """Call a constant what it was made from."""
        self.constants[tensor] = name
        if is_repeated:
            self._repeated[tensor] = True

    def is_repeated(self, constant: Tensor) -> bool:
        """Whether a parameter was repeated for the examples, as a class token is; no bias is.

        For a batch of one the shapes do not tell them apart.
        """
        return constant in self._repeated
