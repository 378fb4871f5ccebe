"""The weights that commands explain, and the files of numbers beside what they write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from captum_transformer_lrp.cli.options import MapFormat
from captum_transformer_lrp.result import Result

if TYPE_CHECKING:
    import torch

    from captum_transformer_lrp.models import ImageModel, LanguageModel, TextModel

Loaded = TypeVar("Loaded", "ImageModel", "LanguageModel", "TextModel")


def ready(loaded: Loaded, device: torch.device | None, checkpoint: Path | None = None) -> Loaded:
    """The model on its device, with what results are to say of its weights.

    `weights_sha256` is of the loaded model's names and numbers, however they were stored.
    """
    from captum_transformer_lrp.benchmarks.runner import weights_digest

    about = {
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "weights_sha256": weights_digest(loaded.model),
    }
    loaded.model.to(device)
    return replace(loaded, about=about)


def maps_beside(output: Path, wanted: MapFormat | None) -> list[Path]:
    """The file of an output's numbers, if they are wanted.

    >>> maps_beside(Path("cat.png"), MapFormat.NPZ)
    [PosixPath('cat.npz')]
    """
    return [] if wanted is None else [output.with_suffix(f".{wanted.value}")]


def save(found: Result, output: Path, maps: MapFormat | None, lang: str = "en") -> None:
    """Write a result, and its numbers beside it if they are wanted."""
    for file in [output, *maps_beside(output, maps)]:
        found.save(file, lang=lang)
