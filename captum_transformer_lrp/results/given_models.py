"""Models that a caller holds, with the preprocessing and the names that they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from captum_transformer_lrp.errors import ArgumentError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from captum_transformer_lrp.models import ImageModel, LanguageModel, TextModel


def as_image_model(
    model: Any, transform: Callable[[Any], Any] | None, class_names: Sequence[str] | None
) -> ImageModel:
    """An image classifier with its preprocessing: timm and transformers know that of their models.

    Raises:
        ArgumentError: where nobody knows it.
    """
    import torch

    from captum_transformer_lrp import models

    if isinstance(model, str):
        model = models.load_image_model(model)
    if isinstance(model, models.ImageModel):
        if transform is None and class_names is None:
            return model
        transform, class_names = transform or model.preprocess, class_names or model.class_names
        name, about, model = model.name, model.about, model.model
    else:
        transform = transform or getattr(model, "image_processor", None)  # of a pipeline
        model = getattr(model, "model", model) if hasattr(model, "image_processor") else model
        name, about = _name(model), {}
    if not isinstance(model, torch.nn.Module):
        raise ArgumentError(
            f"found {type(model).__name__} as the model, expected a torch.nn.Module, the name of "
            "one, or what load_image_model returns"
        )
    names = _class_names(model) if class_names is None else _checked_names(class_names)
    preprocess = _preprocess(transform or _known_transform(model))
    mean, std = _normalisation(preprocess)
    return models.ImageModel(name, model, preprocess, names, mean, std, about)


def as_text_model(model: Any, tokenizer: Any, class_names: Sequence[str] | None) -> TextModel:
    """A text classifier with its tokenizer.

    Raises:
        ArgumentError: where there is no tokenizer that says where its tokens stand in the text.
    """
    import torch

    from captum_transformer_lrp import models

    if isinstance(model, str):
        model = models.load_text_model(model)
    name, about = getattr(model, "name", ""), getattr(model, "about", {})
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        # A TextModel, a pipeline of transformers, a cross-encoder of sentence-transformers.
        tokenizer = tokenizer or getattr(model, "tokenizer", None)
        class_names = class_names or getattr(model, "class_names", None)
        model = getattr(model, "model", model)
    if not callable(tokenizer) or not getattr(tokenizer, "is_fast", False):
        raise ArgumentError(
            f"found {type(tokenizer).__name__} as the tokenizer, expected a fast one of "
            "transformers, which says where its tokens stand in the text: "
            "AutoTokenizer.from_pretrained(...)"
        )
    names = _checked_names(class_names) if class_names else _class_names(model)
    return models.TextModel(name or _name(model), model, tokenizer, names, about)


def as_language_model(model: Any, tokenizer: Any) -> LanguageModel:
    """A causal language model with its tokenizer.

    Raises:
        ArgumentError: where there is no tokenizer, and for a model that reads and writes apart.
    """
    import torch

    from captum_transformer_lrp import models

    if isinstance(model, str):
        model = models.load_language_model(model)
    name, about = getattr(model, "name", ""), getattr(model, "about", {})
    if not isinstance(model, torch.nn.Module):  # a LanguageModel, a pipeline of transformers
        tokenizer = tokenizer or getattr(model, "tokenizer", None)
        model = getattr(model, "model", model)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    if not isinstance(model, torch.nn.Module):
        raise ArgumentError(
            f"found {type(model).__name__} as the model, expected a causal language model of "
            "transformers, the name of one, or a pipeline"
        )
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise ArgumentError(
            f"found {type(tokenizer).__name__} as the tokenizer, expected one of transformers: "
            "AutoTokenizer.from_pretrained(...)"
        )
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ArgumentError(
            f"{_name(model)} has an encoder and a decoder, expected a causal language model: give "
            "both inputs to TransformerAttribution, as docs/beyond_classification.md shows"
        )
    return models.LanguageModel(name or _name(model), model, tokenizer, about)


@contextmanager
def only_read(model: Any, length: int = 0) -> Iterator[None]:
    """A block in which a model is called with so many tokens.

    It and PyTorch's random numbers are left as they were.
    """
    import torch

    from captum_transformer_lrp.engine.watch.thread_state import ThreadState
    from captum_transformer_lrp.engine.watch.writes import unchanged

    state = ThreadState(next((one.device for one in model.parameters()), torch.device("cpu")))
    with naming_length(model, length), state, state, torch.no_grad(), unchanged(model):
        yield


@contextmanager
def naming_length(model: Any, length: int) -> Iterator[None]:
    """A block in which a model is called with a text of so many tokens.

    Raises:
        ArgumentError: where it fails because it has no positions for them.
    """
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    try:
        yield
    except (IndexError, RuntimeError) as error:
        if not most or length <= most:  # where positions are relative, there may be more
            raise
        raise ArgumentError(
            f"found {length} tokens, expected at most {most}, which the model has positions for: "
            "give a shorter text"
        ) from error


def _name(model: Any) -> str:
    """What a reader calls a model: where it comes from, or its class."""
    config = getattr(model, "config", None)
    timm = getattr(model, "pretrained_cfg", None) or {}
    known = getattr(config, "name_or_path", "") or timm.get("architecture", "")
    return str(known or type(model).__name__)


def _checked_names(class_names: Any) -> tuple[str, ...]:
    """Class names as they are given: in the order of their logits, or by index."""
    if isinstance(class_names, Mapping) and set(class_names) == set(range(len(class_names))):
        class_names = [class_names[index] for index in range(len(class_names))]  # id2label
    if isinstance(class_names, str | Mapping) or not all(isinstance(n, str) for n in class_names):
        raise ArgumentError(
            f"found class_names={class_names!r}, expected a list with a name for each logit"
        )
    return tuple(class_names)


def _class_names(model: Any) -> tuple[str, ...]:
    from captum_transformer_lrp import models

    if hasattr(model, "class_names"):
        return tuple(model.class_names)
    if getattr(model, "pretrained_cfg", None):
        return models.timm_class_names(model)
    return models.labels(model.config) if hasattr(model, "config") else ()


def _known_transform(model: Any) -> Callable[[Any], Any]:
    """The preprocessing that timm or transformers keep for a model."""
    if getattr(model, "pretrained_cfg", None):
        from timm.data import create_transform, resolve_model_data_config

        return create_transform(**resolve_model_data_config(model), is_training=False)
    name = getattr(getattr(model, "config", None), "name_or_path", "")
    advice = (
        "give transform=, from a PIL image to (3, H, W): a transform of torchvision, or the "
        "image processor of transformers"
    )
    if not name:
        raise ArgumentError(f"nobody knows the preprocessing of this {_name(model)}: {advice}")
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(name)
    except Exception as error:  # what folders and networks raise cannot be foreseen
        raise ArgumentError(f"found no image processor at {name}: {advice}") from error


def _preprocess(transform: Callable[[Any], Any]) -> Callable[[Image.Image], Tensor]:
    """A transform of any library as a function from a photo to (3, H, W)."""
    import torch

    def preprocess(photo: Image.Image) -> Tensor:
        if hasattr(transform, "image_mean") or hasattr(transform, "preprocess"):
            found = transform(images=photo, return_tensors="pt")  # type: ignore[call-arg]
        else:
            found = transform(photo)
        if not isinstance(found, torch.Tensor) and hasattr(found, "keys"):
            found = found["pixel_values"]
        found = torch.as_tensor(found)
        found = found[0] if found.dim() == 4 and len(found) == 1 else found
        if found.dim() != 3 or not found.is_floating_point():
            raise ArgumentError(
                f"the transform made a tensor {found.dtype} of shape {tuple(found.shape)}, "
                "expected floats (3, H, W)"
            )
        return found

    return preprocess


def _normalisation(
    preprocess: Callable[[Image.Image], Tensor],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that a preprocessing uses: what it makes of black and white."""
    from PIL import Image

    black, white = (preprocess(Image.new("RGB", (64, 64), color)) for color in ("black", "white"))
    middle = black.shape[1] // 2, black.shape[2] // 2
    low, high = (one[:, middle[0], middle[1]].double() for one in (black, white))
    std = 1 / (high - low) if bool((high > low).all()) else low * 0 + 1
    mean = -low * std
    return tuple(mean.tolist()), tuple(std.tolist())
