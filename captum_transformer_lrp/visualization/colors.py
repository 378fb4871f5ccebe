"""Colour scales: perceptually uniform, safe for colour-blind readers, the same everywhere.

On photos, irrelevant is dark and relevant is bright, so that the object looks lit up; on text,
irrelevant is the white of the page. Signed attributions get a colour for each sign: on photos they
are transparent near zero and opaque where they are large.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex, to_rgb

from captum_transformer_lrp.visualization.arrays import FloatArray

# Okabe and Ito's orange and sky blue. Both are light enough for black letters (contrast above 8:1).
_NEGATIVE, _POSITIVE = "#56b4e9", "#e69f00"
# An odd number of colours has white at its very centre.
_SIGNED_BAR = LinearSegmentedColormap.from_list(
    "relevance_signed", [_NEGATIVE, "#808080", _POSITIVE], N=257
)
_TEXT = LinearSegmentedColormap.from_list(
    "relevance_text", [_NEGATIVE, "#ffffff", _POSITIVE], N=257
)


PERCENTILE = 99
"""Where the colours of photos end: few extreme pixels would leave the rest of a map pale."""


@dataclass(frozen=True)
class Scale:
    """Where attributions lie between the ends of a colour map.

    Args:
        low: the value at the map's start.
        high: the value at the map's end; equal to `low` for constant maps, which are drawn as such.
        signed: whether the map diverges from zero.
    """

    low: float
    high: float
    signed: bool

    @classmethod
    def of(cls, arrays: Iterable[FloatArray], percentile: float = 100) -> Scale:
        """The scale that spans the values of some maps, but for those beyond a percentile of sizes.

        Non-negative maps begin at their minimum; signed ones are centred at zero. Where the
        percentile is as low as the rest, the maximum is taken: few values are not zero.

        >>> Scale.of([np.array([0.0, 2.0]), np.array([1.0])])
        Scale(low=0.0, high=2.0, signed=False)
        >>> Scale.of([np.array([-1.0, 2.0])])
        Scale(low=-2.0, high=2.0, signed=True)
        >>> Scale.of([np.array([0.0, 1.0, 2.0, 900.0])], percentile=50)
        Scale(low=0.0, high=1.5, signed=False)
        """
        values = np.concatenate([array.ravel() for array in arrays])
        low, sizes = float(values.min()), np.abs(values)
        limit = float(np.percentile(sizes, percentile))
        if limit <= max(low, 0.0):
            limit = float(sizes.max())
        return cls(-limit, limit, signed=True) if low < 0 else cls(low, limit, signed=False)

    @classmethod
    def from_zero(cls, values: FloatArray) -> Scale:
        """The scale of words, where no relevance must stay white: from zero, not the minimum.

        >>> Scale.from_zero(np.array([1.0, 2.0]))
        Scale(low=0.0, high=2.0, signed=False)
        """
        return cls.of([values, np.zeros(1)])

    def position(self, values: FloatArray) -> FloatArray:
        """Values as positions between 0 and 1. A constant map has no contrast: all zeros.

        >>> Scale(3.0, 3.0, signed=False).position(np.array([3.0, 3.0]))
        array([0., 0.])
        """
        if self.high == self.low:
            return np.zeros_like(values)
        return np.clip((values - self.low) / (self.high - self.low), 0, 1)

    @property
    def image_colors(self) -> Colormap:
        """The colour map of matrices, where nothing lies beneath."""
        return mpl.colormaps["managua_r" if self.signed else "inferno"]

    @property
    def overlay_bar(self) -> Colormap:
        """How the colours of `overlay_colors` look on a grey photo."""
        return _SIGNED_BAR if self.signed else mpl.colormaps["inferno"]

    def overlay_colors(self, values: FloatArray) -> FloatArray:
        """The colours of a map that is laid over a photo: red, green, blue and opacity, 0 to 1.

        >>> Scale(-1.0, 1.0, signed=True).overlay_colors(np.array([-1.0, 0.0, 0.5]))[:, 3]
        array([1. , 0. , 0.5])
        """
        position = self.position(values)
        if not self.signed:
            # A map that is zero everywhere leaves the photo as it is.
            return np.asarray(mpl.colormaps["inferno"](position)) * [1, 1, 1, self.high > 0]
        of_sign = np.where(values[..., None] < 0, to_rgb(_NEGATIVE), to_rgb(_POSITIVE))
        opacity = np.abs(2 * position - 1) if self.high > self.low else np.zeros_like(position)
        return np.concatenate([of_sign, opacity[..., None]], axis=-1)

    def text_color(self, value: float) -> str:
        """The background of a word, as `#rrggbb`.

        >>> Scale(0.0, 1.0, signed=False).text_color(0.0)
        '#ffffff'
        """
        position = float(self.position(np.asarray(value)))
        return to_hex(_TEXT(position if self.signed else 0.5 + position / 2))

    def text_legend(self, steps: int = 11) -> list[str]:
        """The colours of words from the scale's start to its end, as `#rrggbb`."""
        positions = np.linspace(0 if self.signed else 0.5, 1, steps)
        return [to_hex(_TEXT(position)) for position in positions]
