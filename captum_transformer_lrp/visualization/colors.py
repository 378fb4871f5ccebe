"""Colour scales: perceptually uniform, safe for colour-blind readers, the same everywhere.

On photos, irrelevant is dark and relevant is bright, so that the object looks lit up; on text,
irrelevant is the white of the page. Signed attributions get a diverging map centred at zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex

from captum_transformer_lrp.visualization.arrays import FloatArray

# Okabe and Ito's orange and sky blue. Both are light enough for black letters (contrast above 8:1).
_NEGATIVE, _POSITIVE = "#56b4e9", "#e69f00"
# An odd number of colours has white at its very centre.
_TEXT = LinearSegmentedColormap.from_list(
    "relevance_text", [_NEGATIVE, "#ffffff", _POSITIVE], N=257
)


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
    def of(cls, arrays: Iterable[FloatArray]) -> Scale:
        """The scale that spans all values of some maps.

        Non-negative maps span their minimum to their maximum; signed ones are centred at zero.

        >>> Scale.of([np.array([0.0, 2.0]), np.array([1.0])])
        Scale(low=0.0, high=2.0, signed=False)
        >>> Scale.of([np.array([-1.0, 2.0])])
        Scale(low=-2.0, high=2.0, signed=True)
        """
        values = np.concatenate([array.ravel() for array in arrays])
        low, high = float(values.min()), float(values.max())
        if low >= 0:
            return cls(low, high, signed=False)
        limit = max(-low, high)
        return cls(-limit, limit, signed=True)

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
        """The colour map for overlays on photos."""
        return mpl.colormaps["managua_r" if self.signed else "inferno"]

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
