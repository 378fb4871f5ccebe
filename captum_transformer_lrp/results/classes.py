"""What a classifier says, which of its classes are explained, and by which methods."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeAlias

from captum_transformer_lrp.errors import ArgumentError
from captum_transformer_lrp.names import DEFAULT_METHOD
from captum_transformer_lrp.result import Result
from captum_transformer_lrp.results.targets import resolve_target

if TYPE_CHECKING:
    from torch import Tensor, nn

Targets: TypeAlias = int | str | Sequence[int | str] | None

_LIBRARIES = ("captum-transformer-lrp", "torch", "captum", "timm", "transformers", "numpy")


@dataclass(frozen=True)
class Prediction:
    """One class with the probability that the model gives to it.

    Args:
        index: of its logit.
        name: the class's name.
        probability: 0 to 1; None where the model has one logit, which is a score.
    """

    index: int
    name: str
    probability: float | None

    def as_json(self) -> dict[str, Any]:
        """The prediction as a JSON object.

        >>> Prediction(1, "cat", 0.5).as_json()
        {'index': 1, 'name': 'cat', 'probability': 0.5}
        """
        return asdict(self)

    def __str__(self) -> str:
        from captum_transformer_lrp.visualization.labels import percent

        return self.name if self.probability is None else f"{self.name} {percent(self.probability)}"


def predict(
    model: nn.Module, inputs: Tensor, keywords: Mapping[str, Tensor], class_names: Sequence[str]
) -> list[Prediction]:
    """The classes of the only example in a batch, the most probable first.

    The model returns logits (1, classes), a tuple that begins with them, or a `ModelOutput`. There
    is a class name for each logit, or none where nobody knows them.
    """
    from captum_transformer_lrp.engine.recording import find_logits
    from captum_transformer_lrp.results.given_models import only_read

    with only_read(model, inputs.shape[1] if inputs.dim() == 2 else 0):
        logits = find_logits(model(inputs, **keywords))
    if logits.dim() != 2 or len(logits) != 1 or len(class_names) not in (0, logits.shape[1]):
        expected = f"each of its {len(class_names)} classes" if class_names else "each class"
        raise ValueError(
            f"the model returned a tensor of shape {tuple(logits.shape)}, expected one logit for "
            f"{expected}"
        )
    names = class_names or [f"class {index}" for index in range(logits.shape[1])]
    of_each = getattr(getattr(model, "config", None), "problem_type", None)
    scores = logits[0].float()
    # Several classes may be right at once, so that each has a probability of its own.
    several = of_each == "multi_label_classification"
    probabilities = scores.sigmoid() if several else scores.softmax(-1)
    known = several or len(scores) > 1
    return [
        Prediction(index, names[index], float(probabilities[index]) if known else None)
        for index in scores.argsort(descending=True).tolist()
    ]


def choose(
    predictions: Sequence[Prediction], target: Targets, top_k: int, least: float = 0.0
) -> list[Prediction]:
    """The classes to explain: the ones asked for, else the most probable ones.

    >>> choose([Prediction(1, "cat", 0.999), Prediction(0, "dog", 0.001)], None, 2, least=0.01)
    [Prediction(index=1, name='cat', probability=0.999)]

    Raises:
        ArgumentError: for a class that the model does not have.
    """
    by_index = {prediction.index: prediction for prediction in predictions}
    names = [by_index[index].name for index in range(len(by_index))]
    wanted = asked_for(target)
    if not wanted:
        check_count("top_k", top_k)
        first, *others = predictions[:top_k]
        return [first, *(one for one in others if (one.probability or 0.0) >= least)]
    try:
        found = [resolve_target(str(one), names) for one in wanted]
    except ValueError as error:
        raise ArgumentError(str(error)) from error
    return [by_index[index] for index in dict.fromkeys(found)]


def asked_for(target: Targets) -> list[int | str]:
    """One or several targets as a list; NumPy's and PyTorch's integers become Python's.

    >>> import numpy as np
    >>> asked_for("cat"), asked_for(np.array([0, 2])), asked_for(None)
    (['cat'], [0, 2], [])
    """
    if target is None:
        return []
    listed = [_plain(one) for one in target] if isinstance(target, list | tuple) else _plain(target)
    return listed if isinstance(listed, list) else [listed]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def check_count(name: str, count: int) -> None:
    """Raise for a number of things that is no positive integer."""
    if not isinstance(count, int) or count < 1:
        raise ArgumentError(f"found {name}={count!r}, expected at least 1, an integer")


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


def listed(explained: Sequence[Prediction]) -> str:
    """Classes with their probabilities as a text.

    >>> listed([Prediction(0, "cat", 0.75), Prediction(1, "dog", 0.25)])
    'cat 75.0 %, dog 25.0 %'
    """
    return ", ".join(map(str, explained))


def method_label(name: str) -> str:
    """A method's name for a reader.

    >>> method_label("transformer_attribution"), method_label("partial_lrp")
    ('transformer attribution', 'partial LRP')
    """
    words = {"lrp": "LRP", "gradcam": "Grad-CAM", "shap": "SHAP", "x": "×", "lift": "LIFT"}
    return " ".join(words.get(word, word) for word in name.split("_"))


def method_names(method: str | Sequence[str]) -> list[str]:
    """One or several methods as a list without duplicates.

    Raises:
        ArgumentError: for none, and for what is no name.
    """
    names = [method] if isinstance(method, str) or not isinstance(method, Sequence) else method
    if not names or not all(isinstance(one, str) for one in names):
        raise ArgumentError(
            f"found method={method!r}, expected the name of one or several, such as "
            f"{DEFAULT_METHOD!r}; compare() takes classes, too"
        )
    return list(dict.fromkeys(names))


def explain(
    loaded: Any,
    inputs: Tensor,
    keywords: Mapping[str, Tensor],
    method: str | Sequence[str],
    on_progress: Callable[[], None],
    target: Targets,
    top_k: int,
    least: float,
    **options: Any,
) -> tuple[list[Prediction], list[Prediction], dict[str, dict[str, Any]], dict[str, Any]]:
    """Explain classes of the only example in a batch by one or several methods.

    Takes the arguments of :func:`predict` and :func:`provenance`; `on_progress` is called after
    each method.

    Returns:
        All classes; those that are explained; for each method's name, for each class's label, a
        map, (H, W) for images, (S,) for tokens; and what one needs to compute them again.
    """
    from captum_transformer_lrp.attr.comparison import compare

    predictions = predict(loaded.model, inputs, keywords, loaded.class_names)
    explained = choose(predictions, target, top_k, least)
    methods = method_names(method)
    targets: dict[str, Any] = {
        label: each.index for label, each in zip(class_labels(explained), explained, strict=True)
    }
    found = {}
    for one in methods:
        maps = compare(
            loaded.model, inputs, targets, [one], additional_forward_args=dict(keywords) or None
        )[one]
        found[one] = {label: of_class[0].float().cpu().numpy() for label, of_class in maps.items()}
        on_progress()
    about = provenance(loaded, methods, target, top_k, least, **options)
    return predictions, explained, found, about


def provenance(
    loaded: Any,
    method: str | Sequence[str],
    target: Targets = None,
    top_k: int = 1,
    least: float = 0.0,
    **options: Any,
) -> dict[str, Any]:
    """What one needs to know to compute the same again.

    The loaded model says what is known of its weights; `least` is the least probability of classes
    after the first.
    """
    wanted = asked_for(target)
    improbable = f", without those below {100 * least:g} %" if least else ""
    targets = wanted or f"the {top_k} most probable{improbable}"
    device = next((str(one.device) for one in loaded.model.parameters()), "cpu")
    return {
        "model": loaded.name,
        **loaded.about,
        "methods": method_names(method),
        "options": {"targets": targets, "device": device, **options},
        "versions": {"python": platform.python_version()}
        | {library: version(library) for library in _LIBRARIES},
    }  # fmt: skip


class OfClasses(Result):
    """A result with a map for each method and class."""

    maps: Mapping[str, Mapping[str, Any]]
    predictions: Sequence[Prediction]
    explained: Sequence[Prediction]
    subject: str

    def chosen(self, target: int | str | None, method: str | None) -> tuple[str, int]:
        """A method's name and the place among the explained classes; the first by default.

        Raises:
            ArgumentError: for a class or a method that was not explained.
        """
        methods = list(self.maps)
        if method is not None and method not in methods:
            raise ArgumentError(f"found method {method!r}, expected one of {', '.join(methods)}")
        place = 0
        if target is not None:
            wanted = choose(self.predictions, target, 1)[0]
            if wanted not in self.explained:
                raise ArgumentError(
                    f"{wanted.name} was not explained, but {listed(self.explained)}: give it as "
                    "target="
                )
            place = list(self.explained).index(wanted)
        return method or methods[0], place

    def to_numpy(self) -> dict[str, Any]:
        """Every map, (H, W) of an image, under `METHOD/CLASS INDEX`."""
        return {
            f"{method}/{each.index}": one.copy()
            for method, of_class in self.maps.items()
            for each, one in zip(self.explained, of_class.values(), strict=True)
        }

    def provenance(self) -> dict[str, Any]:
        """What computed the maps, of which input and which classes."""
        targets = [each.as_json() for each in self.explained]
        return {**self.about, "input": self.subject, "targets": targets}

    def as_dict(self) -> dict[str, Any]:
        """Predictions, explained classes, maps, and what computed them."""
        return {
            "provenance": self.provenance(),
            "predictions": [each.as_json() for each in self.predictions[:5]],
            "explained": [each.as_json() for each in self.explained],
            "maps": {name: array.tolist() for name, array in self.to_numpy().items()},
        }
