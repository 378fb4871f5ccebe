"""Metrics of Quantus in our benchmarks, and our methods in Quantus (Hedström et al., JMLR 2023)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from captum_transformer_lrp.benchmarks.errors import BenchmarkError, optional
from captum_transformer_lrp.benchmarks.methods import Method, methods_by_name, option_of

Explainer = Callable[..., NDArray[np.float64]]


def quantus_explainer(method: str | Method = "transformer_attribution") -> Explainer:
    """A method, or its name, as Quantus' ``explain_func``.

    That is a function of a model, images (N, C, H, W) and classes (N,), both of NumPy, that gives
    maps (N, 1, H, W).

    Example:
        >>> import timm
        >>> explain = quantus_explainer("attention_gradcam")
        >>> explain(timm.create_model("test_vit").eval(), np.zeros((2, 3, 160, 160)), [1, 2]).shape
        (2, 1, 160, 160)
    """
    (found,) = [method] if isinstance(method, Method) else methods_by_name([method])

    def explain(model: Any, inputs: Any, targets: Any, **_: Any) -> NDArray[np.float64]:
        weight = next(model.parameters())
        images = torch.as_tensor(np.asarray(inputs)).to(weight)
        maps = [
            found.maps(model, image[None], [int(target)])[0]
            for image, target in zip(images, targets, strict=True)
        ]
        return torch.stack(maps)[:, None].numpy()

    return explain


def quantus_score(name: str, found: Any) -> float:
    """One of Quantus' metrics of a :class:`~captum_transformer_lrp.benchmarks.maps.Map`.

    The name is the metric's class between ``quantus:`` and its options:
    ``"quantus:Sparseness:abs=False"``.
    """
    quantus = optional("quantus", "quantus", name)
    _, kind, *parts = name.split(":")
    if not hasattr(quantus, kind):
        raise BenchmarkError(f"Quantus has no metric {kind!r}")
    quiet = {"disable_warnings": True, "display_progressbar": False}
    metric = getattr(quantus, kind)(**quiet, **dict(option_of(part, name) for part in parts))
    scores = metric(
        model=found.model,
        x_batch=found.pixels.cpu().numpy(),
        y_batch=np.array([found.target]),
        a_batch=found.relevance.numpy()[None, None],
        explain_func=quantus_explainer(found.method),
        softmax=True,
        device=str(found.pixels.device),
    )
    score = np.asarray(scores, dtype=np.float64)
    if score.size != 1:
        raise BenchmarkError(f"{name} gives {score.shape} numbers, expected one for a photo")
    return float(score.item())
