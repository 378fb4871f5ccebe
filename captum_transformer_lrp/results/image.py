"""Which pixels of a photo speak for a class: one call, one result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from captum_transformer_lrp.errors import ArgumentError
from captum_transformer_lrp.names import DEFAULT_METHOD
from captum_transformer_lrp.photos import MAX_PIXELS, Box, read_photo, seen_part
from captum_transformer_lrp.results.classes import (
    OfClasses,
    Prediction,
    Targets,
    check_count,
    explain,
    listed,
    method_label,
)
from captum_transformer_lrp.results.given_models import as_image_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from captum_transformer_lrp.models import ImageModel
    from captum_transformer_lrp.visualization import Section
    from captum_transformer_lrp.visualization.arrays import FloatArray

_SHOWN_PIXELS = 800


@dataclass(frozen=True)
class Region:
    """One rectangle of a photo.

    Args:
        box: left, top, right and bottom in pixels of the photo.
        attribution: the sum of the map inside it.
    """

    box: Box
    attribution: float


@dataclass(frozen=True, repr=False, eq=False)
class ImageResult(OfClasses):
    """A photo with its relevance maps.

    Args:
        photo: the whole photo as RGB, upright.
        box: the part of it that the model saw.
        predictions: all classes, the most probable first.
        explained: the classes that are explained.
        maps: by method's name and class's label, (H, W) as the model saw the photo, float32.
        about: the model, methods, options and versions.
        subject: the photo's name.
        source: the photo's file, which `save` never overwrites.
    """

    photo: Image.Image
    box: Box
    predictions: Sequence[Prediction]
    explained: Sequence[Prediction]
    maps: Mapping[str, Mapping[str, npt.NDArray[np.float32]]]
    about: Mapping[str, Any] = field(default_factory=dict)
    subject: str = "photo"
    source: Path | None = None

    def __repr__(self) -> str:
        size = f"{self.photo.width} × {self.photo.height} pixels"
        return f"ImageResult({size}; {listed(self.explained)}; by {', '.join(self.maps)})"

    def map(
        self, target: int | str | None = None, method: str | None = None
    ) -> npt.NDArray[np.float32]:
        """The map of one class, (H, W), as the model saw the photo; of the first by default."""
        name, place = self.chosen(target, method)
        return list(self.maps[name].values())[place].copy()

    def overlay(
        self, target: int | str | None = None, method: str | None = None, *, opacity: float = 0.6
    ) -> npt.NDArray[np.uint8]:
        """The photo at its own size under the map of one class, (height, width, 3), uint8."""
        from captum_transformer_lrp.visualization import overlay

        return overlay(self.photo, self.map(target, method), box=self.box, opacity=opacity)

    def topk(
        self,
        k: int = 5,
        *,
        target: int | str | None = None,
        method: str | None = None,
        cells: int = 14,
    ) -> list[Region]:
        """The rectangles of the photo with the most relevance, in descending order.

        Args:
            k: how many.
            target: one of the explained classes; the first by default.
            method: one of the methods; the first by default.
            cells: along each side of what the model saw.
        """
        check_count("k", k)
        check_count("cells", cells)
        relevance = self.map(target, method).astype(np.float64)
        rows, columns = (
            np.linspace(0, side, min(cells, side) + 1).round().tolist() for side in relevance.shape
        )
        left, top, right, bottom = self.box
        across, down = (right - left) / relevance.shape[1], (bottom - top) / relevance.shape[0]
        regions = [
            Region(
                (left + across * x0, top + down * y0, left + across * x1, top + down * y1),
                float(relevance[int(y0) : int(y1), int(x0) : int(x1)].sum()),
            )
            for y0, y1 in pairwise(rows)
            for x0, x1 in pairwise(columns)
        ]
        return sorted(regions, key=lambda one: -one.attribution)[:k]

    def shown(self) -> tuple[Image.Image, Box, str]:
        """The photo as figures show it (dark where the model did not see it), box and title."""
        photo = self.photo.copy()
        photo.thumbnail((_SHOWN_PIXELS, _SHOWN_PIXELS))
        across, down = photo.width / self.photo.width, photo.height / self.photo.height
        left, top, right, bottom = self.box
        box = left * across, top * down, right * across, bottom * down
        seen = Image.new("L", photo.size, 0)
        seen.paste(255, tuple(round(side) for side in box))  # type: ignore[arg-type]
        dark = photo.point(lambda value: value * 0.35)
        share = (box[2] - box[0]) * (box[3] - box[1]) / (photo.width * photo.height)
        title = "photo" if share > 0.98 else "photo (dark: not seen)"
        return Image.composite(photo, dark, seen), box, title

    def figure(self, *, panel_inches: float | None = None) -> Figure:
        """The photo and an overlay for each class; a row for each method where there are several.

        Args:
            panel_inches: the width of one picture.
        """
        from captum_transformer_lrp.visualization import class_grid, method_class_grid, on_photo

        photo, box, title = self.shown()
        maps: dict[str, dict[str, FloatArray]] = {
            method_label(method): {
                label: on_photo(one, photo.size, box) for label, one in of_class.items()
            }
            for method, of_class in self.maps.items()
        }
        if len(maps) > 1:
            size = {} if panel_inches is None else {"panel_inches": panel_inches}
            return method_class_grid(maps, photo, image_title=title, **size)
        (of_class,) = maps.values()
        chances = [each.probability for each in self.explained if each.probability is not None]
        return class_grid(
            photo,
            list(of_class.values()),
            list(of_class),
            chances or None,
            image_title=title,
            # On a page two classes are side by side: more could not be read on a phone.
            columns=4 if panel_inches is None else 3,
            panel_inches=panel_inches or 3.2,
        )

    def section(self, title: str = "", text: str = "") -> Section:
        """Itself under a heading, for `visualization.report_html`."""
        from captum_transformer_lrp.visualization import Picture, Section

        title, classes = title or self.subject, listed(self.explained)
        alt = (
            f"{title}: the picture, then where each class is seen, lit up. "
            f"Classes: {classes}. By: {', '.join(map(method_label, self.maps))}."
        )
        picture = Picture("", self.figure(panel_inches=1.3), alt)
        return Section(title, text or f"Explained for: {classes}.", [picture])


def explain_image(
    model: ImageModel | nn.Module | str,
    image: str | Path | Image.Image | npt.NDArray[Any] | Tensor,
    *,
    target: Targets = None,
    top_k: int = 1,
    least: float = 0.0,
    method: str | Sequence[str] = DEFAULT_METHOD,
    transform: Callable[[Any], Any] | None = None,
    class_names: Sequence[str] | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> ImageResult:
    """Show which pixels of a photo speak for a class.

    Args:
        model: a classifier of timm or transformers; any other, with `transform`; what
            `load_image_model` returns; or a name that it takes.
        image: a file; a PIL image; an array (H, W, 3), uint8 or 0 to 1; or a tensor (3, H, W),
            0 to 1. It is the photo, not what the preprocessing makes of it.
        target: a class by index or name, or several; by default the `top_k` most probable.
        top_k: how many classes where no target is given.
        least: the least probability of those classes, 0 to 1; the first is explained anyway.
        method: a name that `compare` knows, or several.
        transform: the preprocessing, from a PIL image to (3, H, W): torchvision's or an image
            processor of transformers; by default the model's own, where its library knows it.
        class_names: one per logit; by default the model's own.
        on_progress: is called after each method.

    Returns:
        The photo, its classes and its maps: a notebook shows them, and `save` writes them.

    Raises:
        ArgumentError: for a class that the model does not have, and a model whose preprocessing
            nobody knows.
        ValueError: where the image cannot be read.

    Example:
        >>> from captum_transformer_lrp import examples, explain_image
        >>> scene = examples.scenes()[0]
        >>> found = explain_image(
        ...     examples.scene_classifier(), scene.image, target=["elephant", "zebra"]
        ... )
        >>> found.map("zebra").shape, found.overlay("zebra").shape
        ((96, 96), (96, 96, 3))
        >>> [round(side) for side in found.topk(1, target="zebra", cells=2)[0].box]
        [48, 0, 96, 48]
    """
    loaded = as_image_model(model, transform, class_names)
    source = Path(image) if isinstance(image, str | Path) else None
    photo = read_photo(source, max_pixels=MAX_PIXELS) if source else _photo(image)
    pixels = loaded.preprocess(photo)
    # Where the model is, and as precise as it is.
    parameter = next((p for p in loaded.model.parameters() if p.is_floating_point()), pixels)
    given = pixels[None].to(parameter)
    found = explain(loaded, given, {}, method, on_progress, target, top_k, least)
    box = _box(loaded, photo)
    if box is None:  # not a crop of the photo: show what the model is given
        seen = loaded.visible(pixels).cpu().movedim(0, -1).numpy()
        photo = Image.fromarray((255 * seen).round().astype(np.uint8))
        box = (0, 0, *photo.size)
    return ImageResult(photo, box, *found, str(source) if source else "photo", source)


def _box(loaded: ImageModel, photo: Image.Image) -> Box | None:
    """The part of a photo that the model sees, found on a small copy of it."""
    small = max(1.0, max(photo.size) / _SHOWN_PIXELS)
    size = (round(photo.width / small) or 1, round(photo.height / small) or 1)
    found = seen_part(lambda picture: loaded.visible(loaded.preprocess(picture)), size)
    if found is None:
        return None
    across, down = photo.width / size[0], photo.height / size[1]
    left, top, right, bottom = found
    return left * across, top * down, right * across, bottom * down


def _photo(image: Any) -> Image.Image:
    from captum_transformer_lrp.photos import upright
    from captum_transformer_lrp.visualization.arrays import to_rgb

    if isinstance(image, Image.Image):
        try:
            return upright(image)
        except ValueError as error:
            raise ArgumentError(f"cannot read the image: {error}") from error
    if not hasattr(image, "shape"):
        raise ArgumentError(
            f"found {type(image).__name__} as the image, expected a file, a PIL image, an array "
            "(H, W, 3) or a tensor (3, H, W)"
        )
    return Image.fromarray((255 * to_rgb(image)).round().astype(np.uint8))
