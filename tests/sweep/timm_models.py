"""The suite of timm: every module's smallest model, and all of the registry up to 60 M parameters.

Models are built at the smallest size that they can be built and run with.  Entries that differ by
pretrained weights alone are one.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from captum_transformer_lrp.verification.weights import draw_zero_weights
from tests.sweep.cases import Case, Entry, NotBuilt
from tests.sweep.softmax_attention import computes_softmax_attention

_REGISTRY = Path(__file__).resolve().parents[2] / "docs" / "sweep" / "timm_registry.json"
LARGEST = 60e6
DEEPEST = 250e6
SHORTENED = {"tiny_vit_21m_512": {"depths": (1, 1, 2, 1)}}
"""Built with fewer blocks: whole it takes more than 10 GB, as its windows have 1024 tokens."""

KNOWN = dict.fromkeys(
    ("csatv2", "csatv2_21m"),
    "the model multiplies queries and keys of different examples: timm 1.0.31 has them (B, N) "
    "where (B, N, 1) is meant, so attention is between the examples of the batch",
)
"""Why some models cannot pass."""

SIDES = (64, 80, 96, 112, 120, 128, 160, 192, 204, 224, 256)
"""Images' sides that are tried; 120 and 204 fit CrossViT's two patch sizes."""


def entries() -> list[Entry]:
    """First one with attention for each module, then all with attention, then modules without."""
    listed = _registry()
    by_size = sorted(listed, key=lambda name: (listed[name]["parameters"], name))
    smallest = _smallest(listed, by_size)
    chosen = [
        name
        for name in by_size
        if name in smallest
        or (listed[name]["parameters"] <= LARGEST and listed[name]["softmax_attention"])
    ]
    return [
        Entry(name, listed[name]["module"], "image classification", name in smallest)
        for name in sorted(
            chosen, key=lambda name: (not listed[name]["softmax_attention"], name not in smallest)
        )
    ]


def attends(name: str) -> bool:
    """Whether a model of the registry computes softmax attention."""
    return bool(_registry()[name]["softmax_attention"])


def build(entry: Entry) -> Case:
    """Build one entry with random weights, in float64."""
    if not timm.is_model(entry.name):
        raise NotBuilt(f"timm {timm.__version__} has no model {entry.name}")
    channels, *size = timm.get_pretrained_cfg(entry.name).input_size
    size, options = _smallest_size(entry.name, size)
    model = timm.create_model(entry.name, num_classes=10, **options)
    if not isinstance(model, nn.Module):
        raise NotBuilt(f"timm returned {type(model).__name__}")
    model = model.double().eval()
    draw_zero_weights(model)
    # Encoders without a head return features of tokens.
    target = (0, 1) if entry.name.endswith("_enc") else 1
    return Case(model, torch.randn(2, channels, *size, dtype=torch.float64), target)


def _smallest_size(name: str, own: list[int]) -> tuple[list[int], dict[str, Any]]:
    """The first of ``SIDES`` that the model can be built and run with, tried without memory.

    Models that cannot be built for a size may take images of it as they are.
    """
    for options in _options(name):
        for side in SIDES:
            if side >= min(own):
                break
            sized = {**options, "img_size": side} if "img_size" in options else options
            try:
                _attends(name, _on_meta(name, sized), [side, side])
            except Exception:  # whatever a model raises for a size that it is not made for
                continue
            return [side, side], sized
    return own, {}


def _options(name: str) -> list[dict[str, Any]]:
    """Ways to build a model, for a size or not; the very large ones with two blocks only."""
    fewer = SHORTENED.get(name, {})
    ways: list[dict[str, Any]] = [{**fewer, "img_size": None}, {**fewer}]
    if _parameters(_on_meta(name, {})) > DEEPEST:
        return [{**options, "depth": 2} for options in ways] + ways
    return ways


def _on_meta(name: str, options: dict[str, Any]) -> nn.Module:
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model: nn.Module = timm.create_model(name, num_classes=10, **options).eval()
        return model


def _attends(name: str, model: nn.Module, size: list[int]) -> bool:
    images = torch.empty(2, timm.get_pretrained_cfg(name).input_size[0], *size, device="meta")
    with torch.no_grad():
        return computes_softmax_attention(lambda: model(images))[1]


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _smallest(listed: dict[str, Any], by_size: list[str]) -> set[str]:
    """Of each module the smallest model, with attention if the module has any; none for tests."""
    found: dict[str, str] = {}
    for name in by_size:
        found.setdefault(listed[name]["module"], name)
    for name in reversed(by_size):
        if listed[name]["softmax_attention"] and not name.startswith("test_"):
            found[listed[name]["module"]] = name
    return set(found.values())


def _registry() -> dict[str, dict[str, Any]]:
    """All of timm's registry: module, number of parameters, and whether softmax attention is seen.

    That takes minutes, so it is kept.  Larger models than the sweep takes are not looked at (null).
    """
    if _REGISTRY.exists():
        kept = json.loads(_REGISTRY.read_text(encoding="utf-8"))
        if kept["timm"] == timm.__version__:
            models: dict[str, dict[str, Any]] = kept["models"]
            return models
    listed: dict[str, dict[str, Any]] = {}
    for module in timm.list_modules():
        models = {name: _on_meta(name, {}) for name in timm.list_models(module=module)}
        sizes = {name: _parameters(model) for name, model in models.items()}
        for name, model in models.items():
            own = list(timm.get_pretrained_cfg(name).input_size[1:])
            looked_at = sizes[name] <= max(LARGEST, min(sizes.values()))
            listed[name] = {
                "module": module,
                "parameters": sizes[name],
                "softmax_attention": _attends(name, model, own) if looked_at else None,
            }
    _REGISTRY.parent.mkdir(exist_ok=True)
    text = json.dumps({"timm": timm.__version__, "models": listed}, indent=0)
    _REGISTRY.write_text(text + "\n", encoding="utf-8")
    return listed
