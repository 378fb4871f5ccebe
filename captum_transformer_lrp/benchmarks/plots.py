"""Curves over steps, one colour for each method."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.figure import Figure as Drawing

from captum_transformer_lrp.benchmarks.curves import Curve

_WIDTH, _HEIGHT, _LEGEND = 4.2, 3.6, 2.6
# More shades than these, one over the other, hide the curves.
_MOST_SHADED = 7


def curves_figure(curves: Sequence[Curve]) -> Drawing:
    """Draw each panel's curves into axes of their own, ± one standard error shaded.

    Of more than seven methods the errors are not shaded.

    Args:
        curves: at least one.

    Example:
        >>> figure = curves_figure([Curve("ours", "positive", (10, 20), (9, 5), (1, 1), "x", "y")])
        >>> [axes.get_title() for axes in figure.axes]
        ['positive']
    """
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    methods = list(dict.fromkeys(curve.method for curve in curves))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Drawing(figsize=(columns * _WIDTH + _LEGEND, rows * _HEIGHT), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    palette = colormaps["tab10" if len(methods) <= 10 else "tab20"]
    for position, panel in enumerate(panels):
        axes = grid[position // columns][position % columns]
        for curve in (one for one in curves if one.panel == panel):
            number = methods.index(curve.method)
            color = palette(number % palette.N)
            # Twenty colours are hard to tell apart; the first method is the thickest line.
            width = 2.2 if number == 0 else 1.2
            axes.plot(curve.x, curve.y, color=color, linewidth=width, label=curve.method)
            if len(methods) > _MOST_SHADED:
                continue
            low = [y - error for y, error in zip(curve.y, curve.standard_errors, strict=True)]
            high = [y + error for y, error in zip(curve.y, curve.standard_errors, strict=True)]
            axes.fill_between(curve.x, low, high, color=color, alpha=0.12, linewidth=0)
        first = next(one for one in curves if one.panel == panel)
        axes.set_xlabel(first.x_label)
        axes.set_ylabel(first.y_label)
        axes.set_title(panel, parse_math=False)
        axes.grid(alpha=0.25)
    for unused in range(len(panels), rows * columns):
        grid[unused // columns][unused % columns].set_visible(False)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    return figure
