"""What explains: the methods by name, and their maps of the same input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from captum_transformer_lrp.cli.predictions import Prediction
from captum_transformer_lrp.names import OF_THE_PAPER

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULT_METHOD = OF_THE_PAPER[0]
DEFAULT_COMPARISON = (*OF_THE_PAPER, "integrated_gradients")


def method_label(name: str) -> str:
    """A method's name for a reader.

    >>> method_label("transformer_attribution"), method_label("partial_lrp")
    ('transformer attribution', 'partial LRP')
    """
    words = {"lrp": "LRP", "gradcam": "Grad-CAM", "shap": "SHAP", "x": "×", "lift": "LIFT"}
    return " ".join(words.get(word, word) for word in name.split("_"))


def class_labels(explained: Sequence[Prediction]) -> list[str]:
    """The names of classes, with their indices where two share a name.

    >>> class_labels([Prediction(3, "crane", 0.5), Prediction(7, "crane", 0.4)])
    ['crane (3)', 'crane (7)']
    """
    names = [each.name for each in explained]
    return [
        f"{each.name} ({each.index})" if names.count(each.name) > 1 else each.name
        for each in explained
    ]


def explain_by(
    methods: Sequence[str],
    model: nn.Module,
    inputs: Tensor,
    explained: Sequence[Prediction],
    keywords: Mapping[str, Tensor],
    on_progress: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Tensor]]:
    """For each method's name, for each class's label, the map of the only example in a batch.

    Returns:
        (1, H, W) for images, (1, S) for tokens, on the CPU.
    """
    from captum_transformer_lrp.attr.comparison import compare

    targets: dict[str, Any] = {
        label: each.index for label, each in zip(class_labels(explained), explained, strict=True)
    }
    found = {}
    for method in methods:
        maps = compare(
            model, inputs, targets, [method], additional_forward_args=dict(keywords) or None
        )[method]
        found[method] = {label: one.cpu() for label, one in maps.items()}
        on_progress()
    return found
