"""What each token has from each other token: rollout matrices, attention, input by output."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from captum_transformer_lrp.visualization.arrays import ArrayLike, FloatArray, to_array
from captum_transformer_lrp.visualization.colors import Scale
from captum_transformer_lrp.visualization.labels import axes_at, text_width, wrap

_SIZE = 9.0
_CELL_INCHES, _LABEL_INCHES, _MARGIN = 0.26, 1.5, 0.12
# Beyond this many tokens a label for each would be too small to read; every n-th has one.
_MOST_LABELS = 40
_BAR_INCHES = 1.1


def token_matrix(
    matrix: ArrayLike,
    tokens: Sequence[str],
    row_tokens: Sequence[str] | None = None,
    *,
    title: str = "",
    x_label: str = "what it is made from",
    y_label: str = "token of the output",
) -> Figure:
    """Draw a matrix over tokens: what the token of each row has from the token of each column.

    For a rollout, ``attribute(..., granularity="matrix")[0]``; for an encoder–decoder or a
    continuation, one row of source relevances for every generated token.

    Args:
        matrix: (rows, columns), or (1, rows, columns).
        tokens: one label per column.
        row_tokens: one label per row; those of the columns by default.
        title: what stands above.
        x_label: what the columns are.
        y_label: what the rows are.

    Raises:
        ValueError: where labels and matrix disagree, or the matrix contains NaN.

    Example:
        >>> figure = token_matrix([[1.0, 0.0], [0.5, 0.5]], ["[CLS]", "film"])
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['[CLS]', 'film']
    """
    values = _to_matrix(matrix)
    row_tokens = tokens if row_tokens is None else row_tokens
    if values.shape != (len(row_tokens), len(tokens)):
        raise ValueError(
            f"found a matrix of {values.shape[0]} rows and {values.shape[1]} columns with "
            f"{len(row_tokens)} row labels and {len(tokens)} column labels, expected one label each"
        )
    rows, columns = values.shape
    left = _label_room(row_tokens) + 0.3
    bottom = _label_room(tokens) + 0.3
    width_of_cells = max(columns * _cell(columns), 1.6)
    height_of_cells = max(rows * _cell(rows), 1.2)
    titles = wrap(title, 72 * (width_of_cells + left), _SIZE + 1) if title else []
    top = _MARGIN + 0.2 * len(titles)
    figure = Figure(figsize=(left + width_of_cells + _BAR_INCHES, bottom + height_of_cells + top))
    axes = axes_at(figure, left, bottom, width_of_cells, height_of_cells)
    scale = Scale.from_zero(values)
    colors = scale.image_colors
    axes.imshow(colors(scale.position(values)), interpolation="nearest", aspect="auto")
    _label(axes.xaxis, tokens, rotation=90)
    _label(axes.yaxis, row_tokens, rotation=0)
    axes.set_xlabel(x_label, fontsize=_SIZE)
    axes.set_ylabel(y_label, fontsize=_SIZE)
    if titles:
        axes.set_title("\n".join(titles), fontsize=_SIZE + 1, parse_math=False)
    if scale.high > scale.low:
        bar_axes = axes_at(figure, left + width_of_cells + 0.12, bottom, 0.13, height_of_cells)
        bar = figure.colorbar(
            ScalarMappable(Normalize(scale.low, scale.high), colors), cax=bar_axes
        )
        bar.set_label("relevance", fontsize=_SIZE)
        bar_axes.tick_params(labelsize=_SIZE - 1)
    return figure


def _to_matrix(matrix: ArrayLike) -> FloatArray:
    values = to_array(matrix)
    if values.ndim == 3 and len(values) == 1:
        values = values[0]
    if values.ndim != 2 or not values.size:
        raise ValueError(
            f"found a matrix of shape {values.shape}, expected (rows, columns) of a single "
            "example: pick one of the batch"
        )
    return values


def _cell(count: int) -> float:
    """The side of a cell in inches: smaller where there are many."""
    return _CELL_INCHES * min(1.0, _MOST_LABELS / count)


def _label_room(tokens: Sequence[str]) -> float:
    """Inches for the longest label."""
    longest = max(text_width(_short(token), _SIZE) for token in tokens)
    return longest / 72 + _MARGIN


def _short(token: str) -> str:
    return wrap(token, 72 * _LABEL_INCHES, _SIZE, max_lines=1)[0]


def _label(axis: object, tokens: Sequence[str], rotation: float) -> None:
    step = -(-len(tokens) // _MOST_LABELS)
    places = range(0, len(tokens), step)
    axis.set_ticks(  # type: ignore[attr-defined]
        list(places),
        labels=[_short(tokens[place]) for place in places],
        rotation=rotation,
        fontsize=_SIZE,
        parse_math=False,
    )
