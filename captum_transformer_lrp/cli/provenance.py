"""Where numbers come from: what is written beside maps and at the end of pages."""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_transformer_lrp.cli.options import MapFormat
from captum_transformer_lrp.cli.outputs import write_whole
from captum_transformer_lrp.cli.predictions import Prediction
from captum_transformer_lrp.cli.subjects import ExplainedImage, ExplainedText, Request

if TYPE_CHECKING:
    from captum_transformer_lrp.models import ImageModel, TextModel

_LIBRARIES = ("captum-transformer-lrp", "torch", "captum", "timm", "transformers", "numpy")


def provenance(
    loaded: ImageModel | TextModel, request: Request, checkpoint: Path | None = None
) -> dict[str, Any]:
    """What one needs to know to compute the same again.

    `weights_sha256` is of the loaded model's names and numbers, however they were stored.
    """
    from captum_transformer_lrp.benchmarks.runner import weights_digest

    return {
        "model": loaded.name,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "weights_sha256": weights_digest(loaded.model),
        "methods": list(request.methods),
        "options": {
            "targets": list(request.targets or ()) or f"the {request.top_k} most probable",
            "device": str(request.device),
            "special_tokens": request.special_tokens,
        },
        "versions": {"python": platform.python_version()}
        | {library: version(library) for library in _LIBRARIES},
    }


def as_footer(*found: Mapping[str, Any]) -> dict[str, str]:
    """The same for the end of a page, of one model or of several.

    >>> as_footer({"model": "a", "checkpoint": None, "options": {"device": "cpu"}})
    {'model': 'a', 'options': 'device cpu'}
    """
    footer: dict[str, str] = {}
    for one in found:
        for name, value in one.items():
            if value is None:
                continue
            label, text = name.replace("_", " "), _listed(value)
            if text not in footer.get(label, "").split("; "):
                footer[label] = f"{footer[label]}; {text}" if label in footer else text
    return footer


def _listed(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_listed(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def maps_beside(output: Path, wanted: MapFormat | None) -> list[Path]:
    """The file of an output's numbers, if they are wanted.

    >>> maps_beside(Path("cat.png"), MapFormat.NPZ)
    [PosixPath('cat.npz')]
    """
    return [] if wanted is None else [output.with_suffix(f".{wanted.value}")]


def write_maps(
    path: Path, found: ExplainedImage | ExplainedText, of: Mapping[str, Any], subject: str
) -> None:
    """Write the maps, each under `METHOD/CLASS INDEX`, with their provenance.

    In `.npz`, `provenance` is a JSON text; maps are (H, W) for images and (words,) for texts, with
    `words` beside them. `numpy.load` needs no pickle for it. In `.json`, it is the same as lists.
    """
    arrays = _image_maps(found) if isinstance(found, ExplainedImage) else _text_maps(found)
    about = {**of, "input": subject, "targets": [each.as_json() for each in found.explained]}
    if path.suffix == ".npz":
        file = io.BytesIO()
        contents: dict[str, Any] = {"provenance": np.array(json.dumps(about)), **arrays}
        np.savez_compressed(file, **contents)
        write_whole(path, file.getvalue())
        return
    lists = {name: array.tolist() for name, array in arrays.items()}
    write_whole(path, json.dumps({"provenance": about, "maps": lists}) + "\n")


def _image_maps(found: ExplainedImage) -> dict[str, Any]:
    return {
        _key(method, prediction): one[0].numpy()
        for method, of_class in found.maps.items()
        for prediction, one in zip(found.explained, of_class.values(), strict=True)
    }


def _text_maps(found: ExplainedText) -> dict[str, Any]:
    maps = {
        _key(method, prediction): np.array([word.attribution for word in one.words])
        for method, explanations in found.explanations.items()
        for prediction, one in zip(found.explained, explanations, strict=True)
    }
    words = next(iter(found.explanations.values()))[0].words
    return {"words": np.array([word.text for word in words], dtype=np.str_), **maps}


def _key(method: str, prediction: Prediction) -> str:
    return f"{method}/{prediction.index}"
