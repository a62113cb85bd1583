"""Heat maps of representations: with every label beside its cells, or in the layout of the published maps.

Sizes are in points at the figure's own width; layouts are computed from text extents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from speechsim_jax.errors import UserError
from speechsim_jax.figures.style import (
    DPI,
    PUBLISHED,
    StandaloneFigure,
    colour_bar_width,
    draw_bar,
    draw_cells,
    draw_differences,
)
from speechsim_jax.figures.text_layout import (
    CROWD,
    GAP,
    LINE,
    MEDIUM,
    NO_SIDE,
    SMALL,
    Side,
    blocks,
    headline,
    side_labels,
)
from speechsim_jax.results.result import SimilarityResult

STYLES = ("labelled", "paper")

# Of the published figures, 640 x 480 pixels at 100 a inch: where the map and the bar lie, as
# fractions, and the size of the bar's numbers. It is the layout of seaborn.heatmap without ticks.
_PAPER_WIDTH, _PAPER_HEIGHT = 6.4, 4.8
_PAPER_MAP = (0.125, 0.11, 0.62, 0.77)
_PAPER_BAR = (0.78375, 0.11, 0.77 * 480 / 20 / 640, 0.77)
_PAPER_TEXT = 10.0


@dataclass(frozen=True, eq=False)
class Map:
    """What a heat map shows: a matrix with a result's labels, and what stands at its colour bar.

    `directed`: x and y are not exchangeable; `signed`: differences around zero.
    """

    matrix: xr.DataArray
    limits: tuple[float, float]
    label: str
    directed: bool = False
    signed: bool = False

    @property
    def values(self) -> Float[np.ndarray, "x y"]:
        """The matrix as numbers."""
        return np.asarray(self.matrix.values, dtype=np.float64)

    @property
    def bar_label(self) -> str:
        """What stands at the colour bar of a labelled map."""
        return f"{self.label}\nrow x accounted for by column y" if self.directed else self.label


def check_style(style: str) -> None:
    """Raise UserError unless heat maps have this style."""
    if style not in STYLES:
        raise UserError(f"no style {style!r}; there are: {', '.join(STYLES)}")


def draw(
    shown: Map,
    style: str,
    title: str,
    notes: Sequence[str],
    width: int | float | None,
    beside: float = 0.0,
) -> tuple[StandaloneFigure, Axes]:
    """A figure with the map in its axes; `beside` inches on the right of the bar stay free.

    Raises:
        UserError: an unknown style, limits that are not increasing, or a figure that is too narrow.
    """
    check_style(style)
    low, high = shown.limits
    if not low < high:
        raise UserError(f"colour limits must increase, not {low} to {high}")
    own = max(2.6 + 0.044 * shown.values.shape[1], 3.5) if style == "labelled" else _PAPER_WIDTH
    inches = float(min(own + beside, 7.0) if width is None else width)
    if inches < 3 + beside:
        raise UserError(f"a heat map needs a width of at least {3 + beside:g} in, not {inches:g}")
    if style == "paper":
        return _paper(shown, title, inches, beside)
    return _labelled(shown, title, notes, inches, beside)


def _labelled(
    shown: Map, title: str, notes: Sequence[str], width: float, beside: float
) -> tuple[StandaloneFigure, Axes]:
    rows, columns = shown.values.shape
    bar_space = colour_bar_width(*shown.limits, shown.bar_label)
    axis_label = MEDIUM * LINE + GAP + 2
    left, needed = 0.0, 2 * axis_label
    cell, side_x, side_y = 0.0, NO_SIDE, NO_SIDE
    while left < needed:  # the depth of the labels depends on the size of the map, and the reverse
        left = needed
        cell = (72 * (width - beside) - left - bar_space) / columns
        side_x, side_y = (side_labels(shown.matrix, axis, cell) for axis in (0, 1))
        needed = side_x.depth + axis_label
    key = [f"{letter}: {name}" for letter, name in side_x.key.items()]
    key += ["dash: below zero"] if shown.signed else []
    key += ["hatched: not defined"] if np.isnan(shown.values).any() else []
    head = headline(title, width, notes, key)
    below, map_width, map_height = side_y.depth + axis_label, cell * columns, cell * rows
    points = np.array([72 * width, below + map_height + head.depth])
    figure = StandaloneFigure(figsize=tuple(points / 72), dpi=DPI, facecolor="white")
    scale = 1 / np.tile(points, 2)
    axes = figure.add_axes(tuple([left, below, map_width, map_height] * scale), label="map")
    image = _draw_values(axes, shown)
    _draw_separators(axes, shown)
    _draw_sides(axes, side_x, side_y, shown.directed)
    draw_bar(image, shown.bar_label, shown.values)
    head.draw(figure)
    return figure, axes


def _paper(shown: Map, title: str, width: float, beside: float) -> tuple[StandaloneFigure, Axes]:
    """Row 0 on top, no labels, no lines between models, cells that fill the frame."""
    own = width - beside
    size = own / _PAPER_WIDTH
    figure = StandaloneFigure(figsize=(width, _PAPER_HEIGHT * size), dpi=DPI, facecolor="white")
    scale = np.array([own / width, 1, own / width, 1])
    axes = figure.add_axes(tuple(scale * _PAPER_MAP), label="map")
    image = _draw_values(axes, shown, PUBLISHED)
    axes.set_axis_off()
    beside_map = figure.add_axes(tuple(scale * _PAPER_BAR), label="bar")
    bar = figure.colorbar(image, cax=beside_map)
    bar.outline.set_linewidth(0)  # pyright: ignore[reportCallIssue]
    beside_map.tick_params(labelsize=max(SMALL, _PAPER_TEXT * size))
    if title:
        axes.set_title(title, fontsize=max(MEDIUM, 1.2 * _PAPER_TEXT * size), parse_math=False)
    return figure, axes


def _draw_values(axes: Axes, shown: Map, *colours: Any) -> AxesImage:
    if shown.signed:
        return draw_differences(axes, shown.values, *shown.limits)
    return draw_cells(axes, shown.values, *shown.limits, *colours)


def published_order(result: SimilarityResult) -> list[str]:
    """The models as in the published maps: predictive before contrastive, small before large.

    A model is contrastive if it is a wav2vec2, by what its result says or by its name.
    """
    told = result.attributes.get("models", {})
    representations = result.representations

    def place(model: str) -> tuple[bool, int, int]:
        family = told.get(model, {}).get("model_type") or model
        own = [
            k for k, representation in enumerate(representations) if representation.model == model
        ]
        width = result.dataset["width"].values[own[0]] if "width" in result.dataset else 0
        return "wav2vec2" in family, len(own), int(width)

    return sorted(result.models, key=place)


def _draw_separators(axes: Axes, shown: Map) -> None:
    rows, columns = blocks(shown.matrix, 0), blocks(shown.matrix, 1)
    if len(rows) > CROWD and len(rows) == rows[-1].stop:
        return  # single representations: a grid would hide the cells
    colour = "black" if shown.signed else "white"
    style: dict[str, Any] = {"color": colour, "linewidth": 0.8, "gid": "separator"}
    for run in rows[:-1]:
        axes.axhline(run.stop - 0.5, **style)
    for run in columns[:-1]:
        axes.axvline(run.stop - 0.5, **style)


def _draw_sides(axes: Axes, x: Side, y: Side, directed: bool) -> None:
    """Layers and names of the rows (representation x, on the left) and the columns (y, below)."""
    axes.set_yticks([i for i, _ in x.ticks], [label for _, label in x.ticks])
    axes.set_xticks([i for i, _ in y.ticks], [label for _, label in y.ticks])
    axes.tick_params(labelsize=SMALL, length=2, width=0.5, pad=1.5)
    axes.spines[:].set_visible(False)
    _draw_names(axes, x, "x name", rotation=90, ha="right", va="center")
    _draw_names(axes, y, "y name", rotation=0, ha="center", va="top")
    kind = " (layer)" if x.ticks else ""
    row, column = ("row x", "column y") if directed else ("representation x", "representation y")
    axes.set_ylabel(f"{row}{kind}", fontsize=MEDIUM, labelpad=x.name_depth + 1)
    axes.set_xlabel(f"{column}{kind}", fontsize=MEDIUM, labelpad=y.name_depth + 1)


def _draw_names(axes: Axes, side: Side, gid: str, **style: Any) -> None:
    upright = gid == "x name"
    transform = axes.get_yaxis_transform() if upright else axes.get_xaxis_transform()
    offset = -side.tick_depth - 1
    for position, name in side.names:
        axes.annotate(
            name,
            xy=(0, position) if upright else (position, 0),
            xytext=(offset, 0) if upright else (0, offset),
            xycoords=transform,
            textcoords="offset points",
            annotation_clip=False,
            fontsize=MEDIUM,
            linespacing=LINE,
            multialignment="center",
            parse_math=False,
            gid=gid,
            **style,
        )
