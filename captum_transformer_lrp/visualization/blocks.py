"""What happens inside, block by block: attention, gradient, relevance and their product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from captum_transformer_lrp.attr.attention_maps import AttentionMaps
from captum_transformer_lrp.visualization.arrays import FloatArray, to_array
from captum_transformer_lrp.visualization.colors import Scale
from captum_transformer_lrp.visualization.labels import axes_at, wrap

_COLUMNS = {
    "attention": "attention\nA",
    "gradient": "gradient\n∇A",
    "relevance": "relevance\nR",
    "weighted": "weighted map\n(∇A ⊙ R)⁺",
}
_SIGNED = ("gradient", "relevance")
_PANEL_INCHES, _LABEL_INCHES, _TOP_INCHES, _BOTTOM_INCHES, _GAP = 1.45, 0.55, 0.55, 0.6, 0.12
_SIZE = 9.0


def block_grid(
    attentions: Sequence[AttentionMaps],
    *,
    example: int = 0,
    blocks: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    query: int | None = None,
    patches: tuple[int, int] | None = None,
) -> Figure:
    """Draw A, ∇A, R and (∇A ⊙ R)⁺ of eq. 13, one row for each block, or for each of its heads.

    Each panel uses the whole colour range of its own: A of one block and R of another differ by
    orders of magnitude. ∇A and R diverge from zero.

    Args:
        attentions: ``TransformerAttribution(model).explain(...).attentions``, each map
            (N, heads, queries, keys).
        example: which of the N examples.
        blocks: which attentions, counted from the input, negative ones from the output; None for
            all.
        heads: a row for each of these heads of each block; None for one row of their mean.
        query: the token whose row is drawn instead of the whole map, 0 for [CLS].
        patches: the height and width of the patch grid on which that row is laid out. Tokens
            before the patches ([CLS] and the like) are left out.

    Raises:
        ValueError: for an example, block, head, query or patch grid that the maps do not have.

    Example:
        >>> import torch
        >>> maps = torch.rand(1, 2, 5, 5)
        >>> figure = block_grid([AttentionMaps("blocks.0.attn", maps, maps, maps, maps)])
        >>> figure.axes[0].get_ylabel()
        'blocks.0.attn'
    """
    if not attentions:
        raise ValueError("found no attentions, expected at least one: give explain(...).attentions")
    if patches is not None and query is None:
        raise ValueError("patches lays out the row of one query: give it, e.g. query=0 for [CLS]")
    rows = [
        (label, {name: _panel(getattr(maps, name), label, example, head, query, patches)
                 for name in _COLUMNS})
        for maps in (attentions[index] for index in _indices(blocks, len(attentions)))
        for head, label in _heads(maps, heads)
    ]  # fmt: skip
    shape = next(iter(rows[0][1].values())).shape
    panel_height = _PANEL_INCHES * max(min(shape[0] / shape[1], 1.5), 0.25)
    width = _LABEL_INCHES + len(_COLUMNS) * (_PANEL_INCHES + _GAP) + _GAP
    height = _TOP_INCHES + len(rows) * (panel_height + _GAP) + _BOTTOM_INCHES
    figure = Figure(figsize=(width, height))
    for row, (label, panels) in enumerate(rows):
        y = height - _TOP_INCHES - (row + 1) * (panel_height + _GAP) + _GAP
        for column, (name, values) in enumerate(panels.items()):
            x = _LABEL_INCHES + column * (_PANEL_INCHES + _GAP)
            axes = axes_at(figure, x, y, _PANEL_INCHES, panel_height)
            _draw(axes, values, signed=name in _SIGNED)
            if not row:
                axes.set_title(_COLUMNS[name], fontsize=_SIZE, pad=4)
            if not column:
                lines = wrap(label, 68 * panel_height, _SIZE - 1, max_lines=2)
                axes.set_ylabel("\n".join(lines), fontsize=_SIZE - 1, parse_math=False)
    for column, name in enumerate(_COLUMNS):
        x = _LABEL_INCHES + column * (_PANEL_INCHES + _GAP)
        bar = axes_at(figure, x, _BOTTOM_INCHES - 0.22, _PANEL_INCHES, 0.1)
        _color_bar(figure, bar, signed=name in _SIGNED)
    return figure


def _indices(chosen: Sequence[int] | None, count: int) -> list[int]:
    if chosen is None:
        return list(range(count))
    for index in chosen:
        if not -count <= index < count:
            raise ValueError(
                f"found block {index}, expected one of the {count} attentions, {-count} to "
                f"{count - 1}"
            )
    return [index % count for index in chosen]


def _heads(maps: AttentionMaps, heads: Sequence[int] | None) -> list[tuple[int | None, str]]:
    """Each row's head with its label; None is the mean."""
    if maps.attention.dim() != 4:
        raise ValueError(
            f"{maps.name} has maps of shape {tuple(maps.attention.shape)}, expected "
            "(N, heads, queries, keys): it attends within windows or has no heads to tell apart"
        )
    if heads is None:
        return [(None, maps.name)]
    count = maps.attention.shape[1]
    for head in heads:
        if not 0 <= head < count:
            raise ValueError(f"found head {head}, but {maps.name} has {count}, 0 to {count - 1}")
    return [(head, f"{maps.name} head {head}") for head in heads]


def _panel(
    maps: object,
    label: str,
    example: int,
    head: int | None,
    query: int | None,
    patches: tuple[int, int] | None,
) -> FloatArray:
    values = to_array(maps)  # type: ignore[arg-type]
    if not 0 <= example < len(values):
        raise ValueError(f"found example {example}, expected 0 to {len(values) - 1}")
    of_example = values[example].mean(0) if head is None else values[example, head]
    if query is None:
        return np.asarray(of_example)
    if not -len(of_example) <= query < len(of_example):
        raise ValueError(f"found query {query}, but {label} has {len(of_example)} tokens")
    row = of_example[query]
    if patches is None:
        return row[None]
    count = patches[0] * patches[1]
    if not 0 < count <= len(row):
        raise ValueError(
            f"found patches={patches}, {count} in all, but {label} has {len(row)} tokens"
        )
    return row[len(row) - count :].reshape(patches)


def _draw(axes: Axes, values: FloatArray, *, signed: bool) -> None:
    limit = float(np.abs(values).max())
    scale = Scale(-limit, limit, signed=True) if signed else Scale.from_zero(values)
    axes.imshow(
        scale.image_colors(scale.position(values) if limit else np.full_like(values, signed / 2)),
        interpolation="nearest",
        aspect="auto",
    )
    axes.set_xticks([])
    axes.set_yticks([])


def _color_bar(figure: Figure, axes: Axes, *, signed: bool) -> None:
    colors = Scale(-1.0, 1.0, signed=True) if signed else Scale(0.0, 1.0, signed=False)
    mappable = ScalarMappable(Normalize(0, 1), colors.image_colors)
    bar = figure.colorbar(mappable, cax=axes, orientation="horizontal")
    words = ["−max", "0", "max"] if signed else ["0", "max"]
    bar.set_ticks(list(np.linspace(0, 1, len(words))), labels=words)
    axes.tick_params(labelsize=_SIZE - 1)
    # Labels at the ends stay within the bar, so that those of two columns do not touch.
    sides: list[Literal["left", "center", "right"]] = ["left", "right"]
    if signed:
        sides.insert(1, "center")
    for label, side in zip(axes.get_xticklabels(), sides, strict=True):
        label.set_horizontalalignment(side)
