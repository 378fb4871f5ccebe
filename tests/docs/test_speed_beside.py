"""The script that times other libraries gives each the same model, and takes lxt's patches away."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from captum.attr import InputXGradient
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

SIZES = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 32}


def test_the_baseline_is_captum_s_input_times_gradient(
    script_of: Callable[[str], ModuleType],
) -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=1, **SIZES)).eval()
    embeddings = torch.randn(1, 5, 24)
    found = script_of("speed_beside").gradient_times_input(model, embeddings, (1,))
    captums = InputXGradient(lambda given: model(inputs_embeds=given).logits)
    torch.testing.assert_close(found, captums.attribute(embeddings, target=1))


def test_patches_are_there_for_lxt_alone(
    script_of: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubled(owner: Any) -> None:
        owner.forward = lambda self, x: 2 * x

    patches = SimpleNamespace(attnLRP={nn.Identity: doubled})
    monkeypatch.setitem(sys.modules, "lxt.efficient.models.of_tests", patches)
    monkeypatch.setattr(nn.Identity, "forward", nn.Identity.forward)  # put back in the end
    switch = script_of("speed_beside").patched_by_lxt("of_tests")

    def seen(x: Tensor) -> Tensor:
        result: Tensor = nn.Identity()(x)
        return result

    one = torch.ones(1)
    assert seen(one) == 2
    switch(False)
    assert seen(one) == 1
    switch(True)
    assert seen(one) == 2
