"""Trained classifiers by name: the model, its own preprocessing and its class names.

Names of timm and of the Hugging Face hub are downloaded where there is a network; folders,
checkpoint files and the bundled models need none.
"""

from __future__ import annotations

import difflib
import json
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from safetensors import SafetensorError
from torch import Tensor, nn

from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.names import BUNDLED_IMAGE_MODEL, BUNDLED_TEXT_MODEL


class ModelLoadError(ExplanationError):
    """A model's name, folder or checkpoint that cannot be loaded."""


@dataclass(frozen=True)
class ImageModel:
    """An image classifier with everything that is needed to feed it a photo.

    Args:
        name: the name or folder it was loaded by.
        model: the classifier, in evaluation mode; (N, C, H, W) to logits or to a `ModelOutput`.
        preprocess: from an RGB photo to the normalised float tensor (3, H, W).
        class_names: one per logit.
        mean: the mean that `preprocess` subtracts from each channel.
        std: the standard deviation that it divides by.
    """

    name: str
    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    class_names: tuple[str, ...]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def visible(self, pixels: Tensor) -> Tensor:
        """What the model sees, as a picture: the normalisation undone, (3, H, W), 0 to 1.

        >>> import torch
        >>> seen = ImageModel("m", nn.Identity(), lambda photo: torch.zeros(3, 2, 2), ("cat",))
        >>> seen.visible(torch.full((3, 2, 2), 0.5)).shape
        torch.Size([3, 2, 2])
        """
        mean = pixels.new_tensor(self.mean)[:, None, None]
        std = pixels.new_tensor(self.std)[:, None, None]
        return (pixels * std + mean).clamp(0, 1)


@dataclass(frozen=True)
class TextModel:
    """A text classifier with its tokenizer.

    Args:
        name: the name or folder it was loaded by.
        model: the classifier, in evaluation mode; token ids (N, S) to a `ModelOutput`.
        tokenizer: a Hugging Face fast tokenizer, which knows where each token stands in the text.
        class_names: one per logit.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    class_names: tuple[str, ...]


def load_image_model(name: str, *, checkpoint: str | Path | None = None) -> ImageModel:
    """Load an image classifier by a timm name, a hub name, or a folder that Hugging Face saved.

    Args:
        name: `deit_tiny_patch16_224`, `google/vit-base-patch16-224`, `path/to/folder`, …, or
            `bundled/scenes`, which comes with this package.
        checkpoint: weights to use instead of downloaded ones: a safetensors file, or one that
            `torch.load(weights_only=True)` reads. The number of classes is taken from it.

    Raises:
        ModelLoadError: where the name is unknown, the network is missing, or the checkpoint is
            damaged or fits another architecture.

    Example:
        >>> load_image_model("deit_tiny_patch16_225", checkpoint="w.safetensors")
        Traceback (most recent call last):
        ...
        captum_transformer_lrp.models.ModelLoadError: found no model called 'deit_tiny_patch16_225',
        expected a timm name (the nearest: deit_tiny_patch16_224, ...
    """
    if name == BUNDLED_IMAGE_MODEL:
        return _bundled_image_model(checkpoint)
    _refuse_bundled(name, "image", BUNDLED_IMAGE_MODEL)
    path = Path(name)
    if path.is_dir():
        config = _folder_config(path)
        if "architecture" in config:  # the way timm saves a model
            return _load_timm(f"local-dir:{path}", checkpoint, name)
        return _load_hugging_face_image(name, checkpoint)

    import timm

    if timm.is_model(name.split(".")[0]) or name.startswith(("hf-hub:", "hf_hub:", "timm/")):
        prefixed = f"hf-hub:{name}" if name.startswith("timm/") else name
        return _load_timm(prefixed, checkpoint, name)
    if "/" in name:
        return _load_hugging_face_image(name, checkpoint)
    beginning = [known for known in timm.list_models() if name and known.startswith(name)]
    nearest = beginning[:3] or difflib.get_close_matches(name, timm.list_models(), n=3)
    raise ModelLoadError(
        f"found no model called {name!r}, expected a timm name (the nearest: "
        f"{', '.join(nearest) or 'none'}), an 'owner/name' of the Hugging Face hub, or a folder"
    )


def load_text_model(name: str) -> TextModel:
    """Load a text classifier by a Hugging Face hub name or a folder.

    Half-precision weights are used in float32, in which relevance is computed.

    Args:
        name: `distilbert-base-uncased-finetuned-sst-2-english`, `path/to/folder`, …, or
            `bundled/sentiment`, which comes with this package.

    Raises:
        ModelLoadError: where nothing is found by that name, or the folder is incomplete.

    Example:
        >>> load_text_model("no/such folder")
        Traceback (most recent call last):
        ...
        captum_transformer_lrp.models.ModelLoadError: cannot load the text model 'no/such folder'...
    """
    if name == BUNDLED_TEXT_MODEL:
        from captum_transformer_lrp import examples

        bundled, bundled_tokenizer = examples.sentiment_classifier()
        return TextModel(name, bundled, bundled_tokenizer, _labels(bundled.config))
    _refuse_bundled(name, "text", BUNDLED_TEXT_MODEL)

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if Path(name).is_dir():
        _folder_config(Path(name))
    try:
        model = AutoModelForSequenceClassification.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except _LOADING_FAILURES as error:
        raise _cannot_load("text", name, error) from error
    if not tokenizer.is_fast:
        raise ModelLoadError(
            f"the tokenizer of {name!r} does not tell where its tokens stand in the text, expected "
            "a fast one: save a tokenizer.json beside the model"
        )
    return TextModel(name, model.float().eval(), tokenizer, _labels(model.config))


def _refuse_bundled(name: str, kind: str, expected: str) -> None:
    """Nobody means a user called "bundled" on the hub."""
    if name.startswith("bundled/") and not Path(name).is_dir():
        raise ModelLoadError(f"{name!r} is no bundled {kind} model, expected {expected!r}")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the weights in a file, also where a training script wrapped them.

    Args:
        path: a `.safetensors` file, or one that `torch.load(weights_only=True)` reads. Code inside
            a pickle is never run.

    Raises:
        ModelLoadError: where the file is missing, damaged or holds something else.

    Example:
        >>> read_checkpoint("missing.safetensors")
        Traceback (most recent call last):
        ...
        captum_transformer_lrp.models.ModelLoadError: found no checkpoint at missing.safetensors
    """
    if not Path(path).is_file():
        raise ModelLoadError(f"found no checkpoint at {path}")

    import timm

    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes happen to mean
        raise ModelLoadError(
            f"cannot read the checkpoint {path}, expected safetensors or what torch.save writes "
            f"for a state dict ({_first_line(error)})"
        ) from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelLoadError(f"{path} holds no state dict, expected names with tensors")
    return dict(state)


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Put weights into a model; all of them must fit.

    Args:
        model: is changed in place.
        state: names with tensors.
        source: the file's name for the error message.

    Raises:
        ModelLoadError: names what is missing, unexpected or of another shape. The model is then
            as it was.

    Example:
        >>> import torch
        >>> load_weights(nn.Linear(2, 1), {"weight": torch.ones(1, 3)}, "w.pt")
        Traceback (most recent call last):
        ...
        captum_transformer_lrp.models.ModelLoadError: w.pt does not fit the Linear: weight has
        shape (1, 3), expected (1, 2); missing: bias; choose the architecture it was saved from
    """
    expected = model.state_dict()
    _refuse_misfits(
        model,
        source,
        missing=[key for key in expected if key not in state],
        unexpected=[key for key in state if key not in expected],
        misshapen=[
            (key, value.shape, expected[key].shape)
            for key, value in state.items()
            if key in expected and value.shape != expected[key].shape
        ],
    )
    model.load_state_dict(state)


def _refuse_misfits(
    model: nn.Module,
    source: str | Path,
    missing: Iterable[str],
    unexpected: Iterable[str],
    misshapen: Iterable[tuple[str, Sequence[int], Sequence[int]]],
) -> None:
    shapes = [
        f"{key} has shape {tuple(found)}, expected {tuple(wanted)}"
        for key, found, wanted in misshapen
    ]
    faults = [
        *_some("", shapes),
        *_some("missing: ", list(missing)),
        *_some("unexpected: ", list(unexpected)),
    ]
    if faults:
        raise ModelLoadError(
            f"{source} does not fit the {type(model).__name__}: {'; '.join(faults)}; "
            "choose the architecture it was saved from"
        )


# What timm, transformers, safetensors and pickle raise for files that are missing or damaged, and
# for a hub that cannot be reached.
_LOADING_FAILURES = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    pickle.UnpicklingError,
    SafetensorError,
)


def _bundled_image_model(checkpoint: str | Path | None) -> ImageModel:
    from captum_transformer_lrp import examples

    model = examples.scene_classifier()
    if checkpoint is not None:
        load_weights(model, read_checkpoint(checkpoint), checkpoint)

    def preprocess(photo: Image.Image) -> Tensor:
        return examples.preprocess(np.asarray(ImageOps.fit(photo.convert("RGB"), (96, 96))))

    names = tuple(model.class_names)
    return ImageModel(BUNDLED_IMAGE_MODEL, model, preprocess, names, (0.5,) * 3, (0.5,) * 3)


def _load_timm(timm_name: str, checkpoint: str | Path | None, name: str) -> ImageModel:
    import timm
    from timm.data import create_transform, resolve_model_data_config

    state = None if checkpoint is None else read_checkpoint(checkpoint)
    try:
        model = timm.create_model(timm_name, pretrained=state is None, **_head(timm_name, state))
    except _LOADING_FAILURES as error:
        raise _cannot_load("image", name, error) from error
    if state is not None and checkpoint is not None:
        load_weights(model, state, checkpoint)
    config = resolve_model_data_config(model)
    return ImageModel(
        name=name,
        model=model.eval(),
        preprocess=create_transform(**config, is_training=False),
        class_names=_timm_class_names(model),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _head(timm_name: str, state: Mapping[str, Tensor] | None) -> dict[str, int]:
    """The number of classes that a checkpoint was trained for, as an argument of `create_model`."""
    import timm

    config = timm.get_pretrained_cfg(timm_name, allow_unregistered=True)
    classifier = getattr(config, "classifier", None)
    if state is None or not isinstance(classifier, str):
        return {}
    weight = state.get(f"{classifier}.weight")
    return {} if weight is None else {"num_classes": len(weight)}


def _timm_class_names(model: nn.Module) -> tuple[str, ...]:
    from timm.data import ImageNetInfo, infer_imagenet_subset

    config = getattr(model, "pretrained_cfg", {})
    saved = config.get("label_names")
    count = int(getattr(model, "num_classes", 0))
    if saved and len(saved) == count:
        return tuple(saved)
    subset = infer_imagenet_subset(model)
    if subset is None:
        return tuple(f"class {index}" for index in range(count))
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(count))


def _load_hugging_face_image(name: str, checkpoint: str | Path | None) -> ImageModel:
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

    state = None if checkpoint is None else read_checkpoint(checkpoint)
    misfits: dict[str, Any] = {}
    try:
        processor = AutoImageProcessor.from_pretrained(name)
        if state is None:
            model = AutoModelForImageClassification.from_pretrained(name)
        else:
            config = AutoConfig.from_pretrained(name)
            architecture = type(AutoModelForImageClassification.from_config(config))
            # Transformers itself must load it: names in files differ from names in modules.
            model, misfits = architecture.from_pretrained(
                None,
                config=config,
                state_dict=state,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except _LOADING_FAILURES as error:
        raise _cannot_load("image", name, error) from error
    _refuse_misfits(
        model,
        str(checkpoint),
        sorted(misfits.get("missing_keys", ())),
        sorted(misfits.get("unexpected_keys", ())),
        sorted(misfits.get("mismatched_keys", ())),
    )

    def preprocess(photo: Image.Image) -> Tensor:
        return processor(images=photo, return_tensors="pt")["pixel_values"][0]

    normalised = getattr(processor, "do_normalize", False)
    return ImageModel(
        name=name,
        model=model.float().eval(),
        preprocess=preprocess,
        class_names=_labels(model.config),
        mean=tuple(processor.image_mean) if normalised else (0.0, 0.0, 0.0),
        std=tuple(processor.image_std) if normalised else (1.0, 1.0, 1.0),
    )


def _labels(config: Any) -> tuple[str, ...]:
    return tuple(str(config.id2label[index]) for index in range(config.num_labels))


def _folder_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise ModelLoadError(
            f"the folder {folder} has no config.json, expected one that save_pretrained wrote"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{file} is not valid JSON ({_first_line(error)})") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{file} holds a {type(config).__name__}, expected an object")
    return config


def _cannot_load(kind: str, name: str, error: Exception) -> ModelLoadError:
    if Path(name).is_dir():
        advice = "save the whole model there with save_pretrained"
    elif kind == "image":
        advice = (
            "check the name and the network, give the weights' file with --checkpoint, or try "
            f"{BUNDLED_IMAGE_MODEL}, which needs neither"
        )
    else:
        advice = "check the name and the network, or give a folder that save_pretrained wrote"
    return ModelLoadError(f"cannot load the {kind} model {name!r} ({_first_line(error)}): {advice}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(". ")[:200]


def _some(what: str, names: list[str], most: int = 3) -> list[str]:
    """A few names as one text, none as none."""
    if not names:
        return []
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return [what + ", ".join(names[:most]) + more]
