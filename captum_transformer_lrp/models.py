"""Trained classifiers by name: the model, its own preprocessing and its class names.

Names of timm and of the Hugging Face hub are downloaded where there is a network; folders,
checkpoint files and the bundled models need none.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from captum_transformer_lrp.errors import ExplanationError
from captum_transformer_lrp.hub import as_address, check_reachable, name_in_address
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
        about: what results say of where its weights come from.
    """

    name: str
    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    class_names: tuple[str, ...]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    about: Mapping[str, Any] = field(default_factory=dict)

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
        about: what results say of where its weights come from.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    class_names: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer.

    Args:
        name: the name or folder it was loaded by.
        model: in evaluation mode; token ids (N, S) to logits (N, S, vocabulary).
        tokenizer: of transformers.
        about: what results say of where its weights come from.
        processor: of a model that sees images; it makes pixels of them.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    about: Mapping[str, Any] = field(default_factory=dict)
    processor: Any = None


def load_image_model(
    name: str, *, checkpoint: str | Path | None = None, trust_remote_code: bool = False
) -> ImageModel:
    """Load an image classifier by a timm name, a hub name, or a folder that one of them saved.

    Args:
        name: `deit_tiny_patch16_224`, `google/vit-base-patch16-224`, `path/to/folder`, …, or
            `bundled/scenes`, which comes with this package.
        checkpoint: weights to use instead of downloaded ones: a safetensors file, or one that
            `torch.load(weights_only=True)` reads. The number of classes is taken from it.
        trust_remote_code: whether Python code that comes with the model (`auto_map`) is run.

    Raises:
        ModelLoadError: where the name is unknown, the network is missing, or the weights are
            damaged, incomplete or fit another architecture.

    Example:
        >>> load_image_model("deit_tiny_patch16_225", checkpoint="w.safetensors")
        Traceback (most recent call last):
        ...
        captum_transformer_lrp.models.ModelLoadError: found no model called 'deit_tiny_patch16_225',
        expected a timm name (the nearest: deit_tiny_patch16_224, ...
    """
    if name == BUNDLED_IMAGE_MODEL:
        from captum_transformer_lrp import examples

        bundled = examples.scene_classifier()
        if checkpoint is not None:
            load_weights(bundled, read_checkpoint(checkpoint), checkpoint)
        return _of_timm(name, bundled)
    _refuse_others(name, "image", BUNDLED_IMAGE_MODEL)
    path = Path(name)
    with _loading("image", name):
        if path.is_dir():
            if "architecture" in _folder_config(path):  # the way timm saves a model
                return _load_timm(f"local-dir:{path}", checkpoint, name)
            return _load_hugging_face_image(name, checkpoint, trust_remote_code)

        import timm

        of_timm = name.startswith(("hf-hub:", "hf_hub:", "timm/"))
        if of_timm or timm.is_model(name.split(".")[0]):
            prefixed = f"hf-hub:{name}" if name.startswith("timm/") else name
            known = None if of_timm else timm.get_pretrained_cfg(name)
            repository = prefixed.partition(":")[2] or getattr(known, "hf_hub_id", None)
            if checkpoint is None and repository:
                check_reachable(repository)
            return _load_timm(prefixed, checkpoint, name)
        if "/" in name:
            check_reachable(name)
            return _load_hugging_face_image(name, checkpoint, trust_remote_code)
    beginning = [known for known in timm.list_models() if name and known.startswith(name)]
    nearest = beginning[:3] or difflib.get_close_matches(name, timm.list_models(), n=3)
    raise ModelLoadError(
        f"found no model called {name!r}, expected a timm name (the nearest: "
        f"{', '.join(nearest) or 'none'}), an 'owner/name' of the Hugging Face hub, or a folder"
    )


def load_text_model(name: str, *, trust_remote_code: bool = False) -> TextModel:
    """Load a text classifier by a Hugging Face hub name or a folder.

    Half-precision weights are used in float32, in which relevance is computed.

    Args:
        name: `distilbert-base-uncased-finetuned-sst-2-english`, `path/to/folder`, …, or
            `bundled/sentiment`, which comes with this package.
        trust_remote_code: whether Python code that comes with the model (`auto_map`) is run.

    Raises:
        ModelLoadError: where nothing is found by that name, the weights do not fit, or there is no
            tokenizer that can be read.

    Example:
        >>> load_text_model("no/such folder")
        Traceback (most recent call last):
        ...
        captum_transformer_lrp.models.ModelLoadError: cannot load the text model 'no/such folder'...
    """
    if name == BUNDLED_TEXT_MODEL:
        from captum_transformer_lrp import examples

        bundled, bundled_tokenizer = examples.sentiment_classifier()
        return TextModel(name, bundled, bundled_tokenizer, labels(bundled.config))
    _refuse_others(name, "text", BUNDLED_TEXT_MODEL)

    from transformers import AutoModelForSequenceClassification

    with _loading("text", name):
        model, tokenizer = _with_tokenizer(
            AutoModelForSequenceClassification, name, trust_remote_code
        )
        return TextModel(name, model, tokenizer, labels(model.config))


def load_language_model(
    name: str, *, sees: bool = False, trust_remote_code: bool = False
) -> LanguageModel:
    """Load a causal language model by a Hugging Face hub name or a folder.

    Half-precision weights are used in float32, in which relevance is computed.

    Args:
        name: `gpt2`, `Qwen/Qwen2.5-0.5B-Instruct`, `path/to/folder`, …
        sees: whether it reads images, too, such as `llava-hf/llava-1.5-7b-hf`; its processor is
            then loaded.
        trust_remote_code: whether Python code that comes with the model (`auto_map`) is run.

    Raises:
        ModelLoadError: where nothing is found by that name, the weights do not fit, or there is no
            tokenizer or processor that can be read.

    Example:
        >>> load_language_model("no/such folder")
        Traceback (most recent call last):
        ...
        captum_transformer_lrp.models.ModelLoadError: cannot load the language model 'no/such ...
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    with _loading("language", name):
        model, tokenizer = _with_tokenizer(auto, name, trust_remote_code)
        processor = _load_processor(name, trust_remote_code) if sees else None
        return LanguageModel(name, model, tokenizer, processor=processor)


@contextmanager
def _loading(kind: str, name: str) -> Iterator[None]:
    """Name the model in whatever its files or the network raise, which cannot be foreseen."""
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:
        if "custom code" in str(error):
            advice = (
                "read it, and if you trust it, give --trust-remote-code (trust_remote_code=True)"
            )
        elif Path(name).is_dir():
            advice = "save the whole model there with save_pretrained"
        elif kind == "image":
            advice = (
                "check the name and the network, give the weights' file with --checkpoint, or try "
                f"{BUNDLED_IMAGE_MODEL}, which needs neither"
            )
        else:
            advice = "check the name and the network, or give a folder that save_pretrained wrote"
        raise ModelLoadError(
            f"cannot load the {kind} model {name!r} ({_first_line(error)}): {advice}"
        ) from error


def _refuse_others(name: str, kind: str, expected: str) -> None:
    """An address is no name, and nobody means a user called "bundled" on the hub."""
    if address := as_address(name):
        known = name_in_address(address)
        advice = f"give its name there, {known}" if known else "download it, and give the folder"
        raise ModelLoadError(f"found the address {address}, expected a name or a folder: {advice}")
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
    if address := as_address(path):
        raise ModelLoadError(
            f"found the address {address}: download the weights, and give the file"
        )
    if not os.path.isfile(path):
        raise ModelLoadError(f"found no checkpoint at {path}")
    try:
        if str(path).endswith(".safetensors"):
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes happen to mean
        raise ModelLoadError(
            f"cannot read the checkpoint {path}, expected safetensors or what torch.save writes "
            f"for a state dict ({_first_line(error)})"
        ) from error
    state = _unwrapped(found, path)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelLoadError(f"{path} holds no state dict, expected names with tensors")
    # DistributedDataParallel and torch.compile put these before names, in either order.
    return {
        re.sub(r"^(_orig_mod\.)?(module\.)?(_orig_mod\.)?", "", name): value
        for name, value in state.items()
    }


def _unwrapped(found: Any, path: str | Path) -> dict[str, Any]:
    """The state dict in what a training script saved, the averaged weights first, as in timm."""
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        return {}
    wrappers = ("state_dict_ema", "model_ema", "state_dict", "model")
    inside = [key for key in wrappers if isinstance(found.get(key), dict)]
    if not inside:
        return found
    if len(inside) > 1:
        warnings.warn(
            f"{path} holds weights under {', '.join(inside)}: those under {inside[0]} are used",
            stacklevel=3,
        )
    return dict(found[inside[0]])


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Put weights into a model; all of them must fit.

    Args:
        model: is changed in place.
        state: names with tensors.
        source: the file's name for the error message.

    Raises:
        ModelLoadError: names what is missing, unexpected, of another shape, or of another kind of
            numbers (integers, complex). The model is then as it was.

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
        mistyped=_mistyped(state, expected),
    )
    model.load_state_dict(state)


def _mistyped(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Where copying would round or drop parts of numbers; among floats, only digits are lost."""

    def kind(tensor: Tensor) -> tuple[bool, bool]:
        return tensor.is_floating_point(), tensor.is_complex()

    return [
        f"{key} is {str(value.dtype).removeprefix('torch.')}, expected "
        f"{str(expected[key].dtype).removeprefix('torch.')}"
        for key, value in state.items()
        if key in expected and kind(value) != kind(expected[key])
    ]


def _refuse_misfits(
    model: nn.Module,
    source: str | Path,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    misshapen: Iterable[tuple[str, Sequence[int], Sequence[int]]] = (),
    mistyped: Sequence[str] = (),
) -> None:
    shapes = [
        f"{key} has shape {tuple(found)}, expected {tuple(wanted)}"
        for key, found, wanted in misshapen
    ]
    faults = [
        *_some("", shapes),
        *_some("", list(mistyped)),
        *_some("missing: ", list(missing)),
        *_some("unexpected: ", list(unexpected)),
    ]
    if faults:
        advice = "choose the architecture it was saved from"
        if Path(source).is_dir():
            advice = "save the whole model there again, with save_pretrained"
        raise ModelLoadError(
            f"{source} does not fit the {type(model).__name__}: {'; '.join(faults)}; {advice}"
        )


def _load_timm(timm_name: str, checkpoint: str | Path | None, name: str) -> ImageModel:
    import timm

    head: dict[str, int] = {}
    source, state = checkpoint, None
    if checkpoint is not None:
        state = read_checkpoint(checkpoint)
        # The number of classes is what the checkpoint was trained for.
        config = timm.get_pretrained_cfg(timm_name, allow_unregistered=True)
        weight = state.get(f"{getattr(config, 'classifier', None)}.weight")
        head = {} if weight is None else {"num_classes": len(weight)}
    elif timm_name.startswith("local-dir:"):
        # Not by timm itself, which draws a new head where the numbers of classes disagree.
        source, state = name, _folder_state(Path(name))
    model = timm.create_model(timm_name, pretrained=state is None, **head)
    if state is not None and source is not None:
        load_weights(model, state, source)
    return _of_timm(name, model)


def _of_timm(name: str, model: Any) -> ImageModel:
    """A model of timm with the preprocessing that timm knows of it."""
    from timm.data import create_transform, resolve_model_data_config

    config = resolve_model_data_config(model)
    return ImageModel(
        name=name,
        model=model.eval(),
        preprocess=create_transform(**config, is_training=False),
        class_names=timm_class_names(model),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def timm_class_names(model: nn.Module) -> tuple[str, ...]:
    """The classes of a model of timm, as far as timm knows them."""
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


def _load_hugging_face_image(
    name: str, checkpoint: str | Path | None, trust_remote_code: bool
) -> ImageModel:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    model = _load_hugging_face(AutoModelForImageClassification, name, checkpoint, trust_remote_code)

    def preprocess(photo: Image.Image) -> Tensor:
        return processor(images=photo, return_tensors="pt")["pixel_values"][0]

    normalised = getattr(processor, "do_normalize", False)
    return ImageModel(
        name=name,
        model=model.eval(),
        preprocess=preprocess,
        class_names=labels(model.config),
        mean=tuple(processor.image_mean) if normalised else (0.0, 0.0, 0.0),
        std=tuple(processor.image_std) if normalised else (1.0, 1.0, 1.0),
    )


def _load_hugging_face(
    auto: Any, name: str, checkpoint: str | Path | None, trust_remote_code: bool
) -> Any:
    """A model in float32 all of whose weights were found; no other weights may be there."""
    from transformers import AutoConfig

    source = name if checkpoint is None else str(checkpoint)
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if checkpoint is None and not Path(name).is_dir():
        model, misfits = auto.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
    else:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        state = _folder_state(Path(name)) if checkpoint is None else read_checkpoint(checkpoint)
        with torch.device("meta"):  # for its names; nothing is allocated
            blueprint = auto.from_config(
                config, dtype=torch.float32, trust_remote_code=trust_remote_code
            )
        expected = blueprint.state_dict()
        _refuse_misfits(blueprint, source, mistyped=_mistyped(state, expected))
        # Old files hold counters that are no weights. Under a name that transformers changes,
        # integers that should be weights are then missing.
        state = {
            key: value
            for key, value in state.items()
            if value.is_floating_point() or key in expected
        }
        # Transformers itself must load it: names in files differ from names in modules.
        model, misfits = type(blueprint).from_pretrained(
            None, config=config, state_dict=state, **options
        )
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    _refuse_misfits(model, source, *(sorted(misfits[kind]) for kind in kinds))
    return model


def _with_tokenizer(auto: Any, name: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """A model of transformers with its tokenizer, of a folder or of the hub."""
    if Path(name).is_dir():
        _folder_config(Path(name))
    else:
        check_reachable(name)
    model = _load_hugging_face(auto, name, None, trust_remote_code)
    return model.eval(), _load_tokenizer(name, model, trust_remote_code)


def _load_tokenizer(name: str, model: Any, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    advice = "save one that fits beside the model, with tokenizer.save_pretrained"
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        vocabulary = tokenizer.get_vocab()
        special = {*tokenizer.all_special_tokens}
        fast, embeddings = tokenizer.is_fast, model.get_input_embeddings().num_embeddings
    except Exception as error:  # a damaged folder raises whatever its bytes happen to mean
        raise ModelLoadError(
            f"cannot read the tokenizer of {name!r} ({_first_line(error)}): {advice}"
        ) from error
    if not fast:
        raise ModelLoadError(
            f"the tokenizer of {name!r} does not tell where its tokens stand in the text, expected "
            "a fast one: save a tokenizer.json beside the model"
        )
    # Transformers makes an empty tokenizer where it finds none: every word is then unknown.
    if special.issuperset(vocabulary):
        raise ModelLoadError(f"found no tokenizer with words in {name!r}: {advice}")
    largest = max(vocabulary.values())
    if largest >= embeddings:
        raise ModelLoadError(
            f"the tokenizer of {name!r} makes tokens up to {largest}, but the model knows "
            f"{embeddings}: {advice}"
        )
    return tokenizer


def _load_processor(name: str, trust_remote_code: bool) -> Any:
    """What makes token ids and pixels of a prompt with images."""
    from transformers import AutoProcessor

    advice = "save one beside the model, with processor.save_pretrained"
    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelLoadError(
            f"cannot read the processor of {name!r} ({_first_line(error)}): {advice}"
        ) from error
    if getattr(processor, "image_processor", None) is None:
        raise ModelLoadError(f"found no image processor in {name!r}: {advice}")
    return processor


def _folder_state(folder: Path) -> dict[str, Tensor]:
    """All weights in a folder that transformers or timm saved, in one file or several."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_checkpoint(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = _json_object(index).get("weight_map")
            if not isinstance(parts, dict) or not parts:
                raise ModelLoadError(f"{index} has no weight_map, expected names with files")
            state: dict[str, Tensor] = {}
            for part in sorted({str(part) for part in parts.values()}):
                if Path(part).name != part:
                    raise ModelLoadError(f"{index} names {part!r}, expected a file beside it")
                state |= read_checkpoint(folder / part)
            return state
    raise ModelLoadError(
        f"the folder {folder} holds no weights, expected model.safetensors or pytorch_model.bin"
    )


def labels(config: Any) -> tuple[str, ...]:
    """The classes in a configuration of transformers."""
    names = [config.id2label.get(index) for index in range(config.num_labels)]
    if None in names:
        raise ModelLoadError(
            f"config.json names no class {names.index(None)}, expected id2label for all "
            f"{len(names)} classes"
        )
    return tuple(str(name) for name in names)


def _folder_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise ModelLoadError(
            f"the folder {folder} has no config.json, expected one that save_pretrained wrote"
        )
    return _json_object(file)


def _json_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{file} is not valid JSON ({_first_line(error)})") from error
    if not isinstance(found, dict):
        raise ModelLoadError(f"{file} holds a {type(found).__name__}, expected an object")
    return found


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    # The text of a KeyError is the key alone.
    if not lines or not isinstance(error, OSError | ValueError | RuntimeError):
        lines = [": ".join([type(error).__name__, *lines[:1]])]
    return lines[0].rstrip(". ")[:200]


def _some(what: str, names: list[str], most: int = 3) -> list[str]:
    """A few names as one text, none as none."""
    if not names:
        return []
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return [what + ", ".join(names[:most]) + more]
