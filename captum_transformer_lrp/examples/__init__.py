"""Four small trained models and a few pictures, to try explanations on without a download.

`scene_classifier` is a plain `timm` Vision Transformer that recognises emoji in cluttered
scenes, and `scenes` are such scenes with the exact mask of every object: the relevance for a class
belongs inside its mask. `sentiment_classifier` is a Hugging Face BERT for the sentiment of a
sentence, and `letter_chain` a GPT-2 that thinks before it answers. `digit_reader` is a LLaVA that
names one of the two digits in a picture such as `digit_picture`. README.md in this folder says how
they were trained, how good they are and who drew the emoji.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer
    from transformers import (
        BertForSequenceClassification,
        GPT2LMHeadModel,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

__all__ = [
    "Scene",
    "digit_picture",
    "digit_reader",
    "letter_chain",
    "preprocess",
    "scene_classifier",
    "scenes",
    "sentiment_classifier",
]

_ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Scene:
    """A picture of one to three objects.

    Attributes:
        name: what the picture is called.
        image: uint8 (96, 96, 3), red, green, blue.
        labels: the classes of its objects.
        masks: by label, bool (96, 96), the pixels where that object is what one sees.
    """

    name: str
    image: npt.NDArray[np.uint8]
    labels: tuple[str, ...]
    masks: dict[str, npt.NDArray[np.bool_]]


def scene_classifier() -> VisionTransformer:
    """Load the scene classifier.

    Returns:
        a `timm` VisionTransformer in float32 and evaluation mode: float images (N, 3, 96, 96) as
        `preprocess` makes them, patches of 8 × 8 pixels, one class token, 6 blocks of 4 heads,
        24 logits. Its attribute `class_names`, a list of str, names them. A scene's objects have
        the largest logits.

    Example:
        >>> model = scene_classifier()
        >>> scene = next(scene for scene in scenes() if scene.name == "elephant-zebra")
        >>> logits = model(preprocess(scene.image)[None])
        >>> sorted(model.class_names[index] for index in logits[0].topk(2).indices)
        ['elephant', 'zebra']
    """
    # timm and transformers take seconds to import. Who uses one model pays for one.
    from timm.models.vision_transformer import VisionTransformer

    configuration = json.loads((_ASSETS / "scene_classifier.json").read_text(encoding="utf-8"))
    model = VisionTransformer(**configuration["architecture"])
    model.load_state_dict(_load_float32(_ASSETS / "scene_classifier.safetensors"))
    model.class_names = configuration["class_names"]
    # Where timm keeps what `preprocess` does.
    half = (0.5, 0.5, 0.5)
    model.pretrained_cfg = {
        **{"architecture": "scene_classifier", "label_names": model.class_names},
        **{"input_size": (3, 96, 96), "crop_pct": 1.0, "mean": half, "std": half},
    }
    return model.eval()


def preprocess(image: npt.NDArray[np.uint8]) -> Tensor:
    """Turn a picture into the scene classifier's input.

    Args:
        image: uint8 (96, 96, 3), red, green, blue.

    Returns:
        float32 (3, 96, 96) in [−1, 1].

    Raises:
        ValueError: the picture has another shape or dtype.
    """
    if image.shape != (96, 96, 3) or image.dtype != np.uint8:
        raise ValueError(
            "The scene classifier takes uint8 pictures of shape (96, 96, 3), this one is "
            f"{image.dtype} of shape {image.shape}. Resize it, for instance with "
            "PIL.Image.fromarray(image).convert('RGB').resize((96, 96))."
        )
    return torch.tensor(image).permute(2, 0, 1).float() / 127.5 - 1


def scenes() -> list[Scene]:
    """Load the sample scenes. The model never saw them in training.

    Example:
        >>> scene = scenes()[0]
        >>> scene.labels, scene.image.shape
        (('elephant', 'zebra'), (96, 96, 3))
        >>> sorted(scene.masks)
        ['elephant', 'zebra']
    """
    folder = _ASSETS / "scenes"
    entries = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
    return [_load_scene(folder, entry["name"], tuple(entry["labels"])) for entry in entries]


def _load_scene(folder: Path, name: str, labels: tuple[str, ...]) -> Scene:
    image = np.array(Image.open(folder / f"{name}.png").convert("RGB"))
    # The mask's pixels count the labels from 1; 0 is background.
    numbers = np.array(Image.open(folder / f"{name}.mask.png"))
    masks = {label: numbers == number for number, label in enumerate(labels, start=1)}
    return Scene(name, image, labels, masks)


def sentiment_classifier() -> tuple[BertForSequenceClassification, PreTrainedTokenizerFast]:
    """Load the sentiment classifier and its tokenizer.

    Returns:
        a Hugging Face BERT of three layers in float32 and evaluation mode, whose two logits are
        NEGATIVE and POSITIVE, and its uncased WordPiece tokenizer.

    Example:
        >>> model, tokenizer = sentiment_classifier()
        >>> encoded = tokenizer("A moving and beautiful film.", return_tensors="pt")
        >>> model.config.id2label[model(**encoded).logits.argmax().item()]
        'POSITIVE'
    """
    from transformers import BertForSequenceClassification

    return _of_transformers("sentiment_classifier", BertForSequenceClassification)


def letter_chain() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Load the model that thinks before it answers, and its tokenizer.

    A prompt is eight letters, a to g but for two different capitals of H to K, and a question mark.
    The model copies the capitals in their order, writes the number of each, and answers with the
    letter of the first number: H is 1 is w, I is 2 is x, and so on.  Each step is taken from the
    one before it, so where each letter comes from is known.

    Returns:
        a Hugging Face GPT-2 of two layers in float32 and evaluation mode, and its tokenizer, for
        which each letter is a word.

    Example:
        >>> model, tokenizer = letter_chain()
        >>> prompt = tokenizer("f H g I b e g b ?", return_tensors="pt")
        >>> tokenizer.decode(model.generate(**prompt, max_new_tokens=5)[0, 9:])
        'H I 1 2 w'
    """
    from transformers import GPT2LMHeadModel

    return _of_transformers("letter_chain", GPT2LMHeadModel)


def _of_transformers(name: str, kind: Any) -> tuple[Any, PreTrainedTokenizerFast]:
    """A model of a class of transformers, and its tokenizer."""
    from transformers import PreTrainedTokenizerFast

    folder = _ASSETS / name
    # Built and filled by hand: `from_pretrained` shows a progress bar, keeps the file's float16
    # and may look for other files on the network.
    configuration = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = kind(kind.config_class.from_dict({**configuration, "dtype": None}))
    weights = _load_float32(folder / "model.safetensors")
    model.load_state_dict({**model.state_dict(), **weights})  # tied weights are saved once
    tokens = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del tokens["tokenizer_class"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **tokens)
    return model.eval(), tokenizer


def digit_reader() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load the model that names the digit on the side that the prompt asks for.

    Returns:
        a Hugging Face LLaVA in float32 and evaluation mode, whose two layers see pictures of
        24 × 24 pixels in patches of 4 and whose other two write; and its processor. It answers
        the prompts "name the digit on the left" and "name the digit on the right" with one word.

    Example:
        >>> from captum_transformer_lrp import explain_generation
        >>> model, processor = digit_reader()
        >>> prompt = "name the digit on the left"
        >>> story = explain_generation(
        ...     model, processor, prompt, images=digit_picture(), max_new_tokens=1)
        >>> story.written[0].text
        'three'
        >>> left, right = story.pixels[0][0, :, :12].sum(), story.pixels[0][0, :, 12:].sum()
        >>> bool(left > right)
        True
    """
    # transformers says which of its image processors needs torchvision, and takes seconds.
    from transformers import (
        CLIPImageProcessor,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    folder = _ASSETS / "digit_reader"
    configuration = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = LlavaForConditionalGeneration(LlavaConfig.from_dict(configuration))
    state = _load_float32(folder / "model.safetensors")
    tower = "model.vision_tower."
    if f"{tower}vision_model.embeddings.class_embedding" in model.state_dict():  # transformers 5.0
        state = {name.replace(tower, f"{tower}vision_model."): one for name, one in state.items()}
    model.load_state_dict(state)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]", unk_token="[PAD]"
    )
    size, half = {"height": 24, "width": 24}, [0.5] * 3
    images = CLIPImageProcessor(size=size, crop_size=size, image_mean=half, image_std=half)
    processor = LlavaProcessor(
        images, tokenizer, patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return model.eval(), processor


def digit_picture() -> Image.Image:
    """Load a picture for `digit_reader`: a three on the left and a seven on the right.

    Returns:
        a PIL image of 24 × 24 pixels in red, green and blue. No training picture shows its digits.

    Example:
        >>> digit_picture().size
        (24, 24)
    """
    return Image.open(_ASSETS / "digit_reader" / "three-seven.png").convert("RGB")


def _load_float32(file: Path) -> dict[str, Tensor]:
    """The weights of a float16 file, which is half as large, in float32."""
    return {name: value.float() for name, value in load_file(file).items()}
