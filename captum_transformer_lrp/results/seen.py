"""Images in a prompt: what a processor makes of them, and the way back to pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captum_transformer_lrp.errors import ArgumentError

Picture: TypeAlias = npt.NDArray[np.float32]

_PIXELS, _GRID = "pixel_values", "image_grid_thw"


@dataclass(frozen=True)
class Seen:
    """What a processor of transformers made of the images in a prompt.

    Args:
        pixels: as the model takes them: (images, C, H, W), (images, tiles, C, H, W), or a row for
            each patch where `grids` says how these lie.
        keywords: further arguments of the model.
        of_tokens: those that have a value for each token of the prompt.
        processor: the image processor, which knows patches and normalisation.
        of_written: by name, the value of each token that is written, where that is not 0.
    """

    pixels: Tensor
    keywords: Mapping[str, Any]
    of_tokens: Mapping[str, Tensor]
    processor: Any
    of_written: Mapping[str, int] = field(default_factory=dict)

    def arguments(self, length: int) -> dict[str, Any]:
        """The arguments for a text of so many tokens, the pixels excepted."""
        found = dict(self.keywords)
        for name, value in self.of_tokens.items():
            kept = value[:, :length]
            more = kept.new_full((1, length - kept.shape[1]), self.of_written.get(name, 0))
            found[name] = torch.cat([kept, more], 1)
        return found

    def pictures(self, values: Tensor) -> list[Tensor]:
        """Values shaped as the pixels, as a picture (C, H, W) for each image or tile."""
        if _GRID not in self.keywords:
            return list(values.reshape(-1, *values.shape[-3:]))
        found, start = [], 0
        patch, merge = self.processor.patch_size, self.processor.merge_size
        frames = self.processor.temporal_patch_size
        for time, rows, columns in self.keywords[_GRID].tolist():
            end = start + time * rows * columns
            # Qwen2-VL: groups of merged patches one after the other, frames of time within each.
            laid = values[start:end].reshape(
                time, rows // merge, columns // merge, merge, merge, -1, frames, patch, patch
            )
            # A still image is given as several frames that are the same.
            laid = laid.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)
            found.append(laid.reshape(time * frames, -1, rows * patch, columns * patch).sum(0))
            start = end
        return found

    def shown(self, values: Tensor) -> tuple[list[Picture], list[Picture]]:
        """What the model sees, and for each picture (rows, H, W) of values (rows, *pixels).

        The model sees (H, W, C), 0 to 1: the normalisation is undone.
        """
        frames = self.processor.temporal_patch_size if _GRID in self.keywords else 1
        mean = torch.tensor(getattr(self.processor, "image_mean", None) or [0.0])
        std = torch.tensor(getattr(self.processor, "image_std", None) or [1.0])
        visible = [
            ((one.float().cpu() / frames).movedim(0, -1) * std + mean).clamp(0, 1).numpy()
            for one in self.pictures(self.pixels)
        ]
        rows = [[one.sum(0).numpy() for one in self.pictures(row)] for row in values]
        return visible, [np.stack(one) for one in zip(*rows, strict=True)]


def look(processor: Any, model: Any, text: str, images: Any) -> tuple[list[int], Seen]:
    """The token ids of a prompt with images, and the images.

    Raises:
        ArgumentError: without a processor, and for pixels that nobody can lay out as pictures.
    """
    if getattr(processor, "image_processor", None) is None:
        raise ArgumentError(
            f"found images= with {type(processor).__name__}, expected a processor of transformers: "
            "AutoProcessor.from_pretrained(...)"
        )
    listed = list(images) if isinstance(images, Sequence) else [images]
    where = next(model.parameters())
    batch = dict(processor(text=text, images=listed, return_tensors="pt"))
    ids = batch.pop("input_ids")
    for name in ("attention_mask", "labels"):
        batch.pop(name, None)
    batch = {name: one.to(where.device) for name, one in batch.items() if hasattr(one, "to")}
    pixels = batch.pop(_PIXELS, None)
    flat = _GRID in batch and pixels is not None and pixels.dim() == 2
    if pixels is None or not (flat or pixels.dim() in (4, 5)):
        found = "none" if pixels is None else f"shape {tuple(pixels.shape)}"
        raise ArgumentError(
            f"found pixels of {found}, expected (images, C, H, W), (images, tiles, C, H, W) or the "
            "patches of Qwen2-VL with their image_grid_thw"
        )
    of_tokens = {name: one for name, one in batch.items() if one.shape == ids.shape}
    keywords = {name: one for name, one in batch.items() if name not in of_tokens}
    pixels, written = pixels.to(where.dtype), _of_written(model, of_tokens)
    seen = Seen(pixels, keywords, of_tokens, processor.image_processor, written)
    return [int(one) for one in ids[0]], seen


def _of_written(model: Any, of_tokens: Mapping[str, Tensor]) -> dict[str, int]:
    """What a model gives to the tokens that it generates: PaliGemma's are of another type."""
    try:
        found = model._update_model_kwargs_for_generation({}, dict(of_tokens))
        return {name: int(found[name][0, -1]) for name in of_tokens}
    except Exception:  # not every model has the function, which is no public one
        return {}


def with_image_tokens(processor: Any, prompt: str, images: Any) -> str:
    """A prompt in which each image has a place.

    It is the prompt's own, the chat template's, the processor's, or the beginning.
    """
    mark = str(getattr(processor, "image_token", "<image>"))
    if mark in prompt:
        return prompt
    count = len(images) if isinstance(images, Sequence) else 1
    if getattr(processor, "chat_template", None):
        content = [*({"type": "image"} for _ in range(count)), {"type": "text", "text": prompt}]
        message = {"role": "user", "content": content}
        return str(
            processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        )
    return prompt if _puts_images(processor, mark, prompt, images) else mark * count + prompt


def _puts_images(processor: Any, mark: str, prompt: str, images: Any) -> bool:
    """Whether a processor puts images into a text that does not say where, as BLIP-2's does."""
    try:
        found = processor(text=prompt, images=images, return_tensors="pt")["input_ids"]
        return processor.tokenizer.convert_tokens_to_ids(mark) in found[0].tolist()
    except Exception:  # some do, some raise errors of their own, and some take the text as it is
        return False


def image_token_ids(config: Any) -> set[int]:
    """The ids of the tokens in whose place a model puts its images."""
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    found = (getattr(config, name, None) for name in names)
    return {one for one in found if isinstance(one, int)}
