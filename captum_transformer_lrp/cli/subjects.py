"""One image or one text, explained for some classes by some methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from captum_transformer_lrp.cli.errors import warn
from captum_transformer_lrp.cli.files import check_text
from captum_transformer_lrp.cli.methods import class_labels, explain_by, method_label
from captum_transformer_lrp.cli.predictions import Prediction, choose, predict

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from captum_transformer_lrp.models import ImageModel, TextModel
    from captum_transformer_lrp.photos import Box
    from captum_transformer_lrp.visualization import TextExplanation
    from captum_transformer_lrp.visualization.arrays import FloatArray

_SHOWN_PIXELS = 800


@dataclass(frozen=True)
class Request:
    """What is asked of every input.

    Args:
        methods: names of methods.
        targets: classes by index or name; none for the `top_k` most probable.
        top_k: how many classes where no target is given.
        device: where the model runs.
        special_tokens: whether words such as [CLS] are kept.
    """

    methods: Sequence[str]
    targets: Sequence[str] | None = None
    top_k: int = 1
    device: torch.device | str = "cpu"
    special_tokens: bool = False


@dataclass(frozen=True)
class ExplainedImage:
    """An image with its maps.

    Args:
        photo: the whole photo, at most as large as figures show it.
        box: the part of it that the model saw, as (left, top, right, bottom).
        predictions: all classes, the most probable first.
        explained: the classes that are explained.
        maps: by method's name and class's label, (1, H, W).
    """

    photo: Image.Image
    box: Box
    predictions: list[Prediction]
    explained: list[Prediction]
    maps: dict[str, dict[str, Tensor]]

    def drawn_photo(self) -> Image.Image:
        """The photo, dark where the model did not see it."""
        from PIL import Image

        dark = self.photo.point(lambda value: value * 0.35)
        seen = Image.new("L", self.photo.size, 0)
        left, top, right, bottom = (round(side) for side in self.box)
        seen.paste(255, (left, top, right, bottom))
        return Image.composite(self.photo, dark, seen)

    def photo_title(self) -> str:
        """What stands above the photo."""
        area = (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])
        seen = area / (self.photo.width * self.photo.height)
        return "photo" if seen > 0.98 else "photo (dark: not seen)"

    def drawn_maps(self) -> dict[str, dict[str, FloatArray]]:
        """The maps at the photo's size, under names for a reader."""
        from captum_transformer_lrp.visualization import on_photo

        return {
            method_label(method): {
                label: on_photo(one, self.photo.size, self.box) for label, one in of_class.items()
            }
            for method, of_class in self.maps.items()
        }


@dataclass(frozen=True)
class ExplainedText:
    """A text with its relevant words.

    Args:
        text: as it was given.
        predictions: all classes, the most probable first.
        explained: the classes that are explained.
        explanations: by method's name, one per class.
    """

    text: str
    predictions: list[Prediction]
    explained: list[Prediction]
    explanations: dict[str, list[TextExplanation]]

    def labelled(self) -> dict[str, list[TextExplanation]]:
        """The explanations under names for a reader."""
        return {method_label(method): found for method, found in self.explanations.items()}


def explain_image_by(
    loaded: ImageModel,
    photo: Image.Image,
    request: Request,
    on_progress: Callable[[], None] = lambda: None,
) -> ExplainedImage:
    """Explain one photo."""
    from torchvision.transforms.functional import to_pil_image

    from captum_transformer_lrp.photos import seen_part

    model = loaded.model.to(request.device)
    pixels = loaded.preprocess(photo).to(request.device)
    predictions = predict(model, pixels[None], {}, loaded.class_names)
    explained = choose(predictions, request.targets, request.top_k, loaded.class_names)
    maps = explain_by(request.methods, model, pixels[None], explained, {}, on_progress)
    shown = photo.copy()
    shown.thumbnail((_SHOWN_PIXELS, _SHOWN_PIXELS))
    box = seen_part(lambda picture: loaded.visible(loaded.preprocess(picture)), shown.size)
    if box is None:  # not a crop of the photo: show what the model is given
        shown = to_pil_image(loaded.visible(pixels).cpu())
        box = (0, 0, *shown.size)
    return ExplainedImage(shown, box, predictions, explained, maps)


def explain_text_by(
    loaded: TextModel,
    text: str,
    request: Request,
    on_progress: Callable[[], None] = lambda: None,
) -> ExplainedText:
    """Explain one text.

    Raises:
        UsageError: where the text is empty or no UTF-8.
    """
    from captum_transformer_lrp.visualization import TextExplanation, words_from_pieces

    check_text(text)
    encoding = loaded.tokenizer(text, return_tensors="pt", truncation=True)
    offsets = encoding.encodings[0].offsets
    read = max((end for _, end in offsets), default=0)
    if text[read:].strip():
        warn(f"note: the model reads only the first {read} characters of the text")
    inputs = {name: tensor.to(request.device) for name, tensor in encoding.items()}
    input_ids = inputs.pop("input_ids")
    model = loaded.model.to(request.device)
    predictions = predict(model, input_ids, inputs, loaded.class_names)
    explained = choose(predictions, request.targets, request.top_k, loaded.class_names)
    maps = explain_by(request.methods, model, input_ids, explained, inputs, on_progress)
    explanations = {
        method: [
            TextExplanation(
                label,
                words_from_pieces(
                    text,
                    encoding.tokens(),
                    of_class[label],
                    offsets=offsets,
                    word_ids=encoding.word_ids(),
                    special_tokens=request.special_tokens,
                ),
                prediction.probability,
            )
            for label, prediction in zip(class_labels(explained), explained, strict=True)
        ]
        for method, of_class in maps.items()
    }
    return ExplainedText(text, predictions, explained, explanations)


def relevant_words(
    explanations: Mapping[str, Sequence[TextExplanation]], place: int
) -> dict[str, Any]:
    """For one class, each method's words with their relevance, for JSON."""
    return {
        method: [[word.text, word.attribution] for word in found[place].words]
        for method, found in explanations.items()
    }
