"""A module that a model makes while it runs is not taken for one that it has lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from captum_transformer_lrp import TransformerLRP, UnsupportedOperationError
from captum_transformer_lrp.rules import EpsilonRule

INPUTS = torch.arange(2.0, 8.0, dtype=torch.float64).reshape(2, 3)


class Lost(nn.Module):
    """Of no class that the new one has, so that the name of either tells which it is."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Unruly(nn.Module):
    """Calls a function that has no rule, which is an error with the module's name."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.zeta(x, x)


def lose_attribute(model: nn.Module) -> int:
    found = id(model.lost)
    model.lost = None
    return found


def lose_deleted(model: nn.Module) -> int:
    found = id(model.lost)
    del model.lost
    return found


def lose_from_table(model: nn.Module) -> int:
    return id(model._modules.pop("lost"))


def lose_from_list(model: nn.Module) -> int:
    return id(model.listed.pop(0))


def lose_from_dictionary(model: nn.Module) -> int:
    return id(model.named.pop("one"))


def lose_with_parent(model: nn.Module) -> int:
    found = id(model.parent[0])
    model.parent = None
    return found


WAYS = [
    lose_attribute,
    lose_deleted,
    lose_from_table,
    lose_from_list,
    lose_from_dictionary,
    lose_with_parent,
]


class Replacing(nn.Module):
    """Loses a module, and then makes others until one has the place of the lost one in memory."""

    def __init__(self, lose: Callable[[nn.Module], int]) -> None:
        super().__init__()
        self.lost = Lost()
        self.listed = nn.ModuleList([Lost()])
        self.named = nn.ModuleDict({"one": Lost()})
        self.parent = nn.Sequential(Lost())
        self.lose = lose

    def forward(self, x: Tensor) -> Tensor:
        lost, made = self.lose(self), []
        # Python gives memory to the next few objects of its size.
        while len(made) < 1000 and (not made or id(made[-1]) != lost):
            made.append(Unruly())
        return made[-1](x)


@pytest.mark.parametrize("lose", WAYS)
def test_a_new_module_is_not_named_after_a_lost_one(lose: Callable[[nn.Module], int]) -> None:
    with pytest.raises(UnsupportedOperationError, match="called by Unruly, has no"):
        TransformerLRP(Replacing(lose)).attribute(INPUTS, 0)


@pytest.mark.parametrize("lose", WAYS)
def test_a_new_module_has_not_the_rule_of_a_lost_one(lose: Callable[[nn.Module], int]) -> None:
    """The rule of the lost module would explain the function that has none."""
    rules = dict.fromkeys(("lost", "listed.0", "named.one", "parent.0"), EpsilonRule())
    with pytest.raises(UnsupportedOperationError):
        TransformerLRP(Replacing(lose), rules=rules).attribute(INPUTS, 0)
